"""Which product a hop is, and the line of its configuration that helps. Pure.

Decisions
    1. A hop is known by what it adds to an answer. Some add nothing, and many pass on the ``Server``
       of the hop before; there the name that the caller gave it counts.
    2. Several products may stand behind one address that was given. Each that shows itself, in the answer or
       in the ``Via`` of the request that the app got, is named, with its line.
"""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

__all__ = ["APP", "PRODUCTS", "products_of", "remedy"]

#: What serves the app itself.
APP = "app server"
#: (header, pattern in its value, product); the surest first.
_SIGNS: Tuple[Tuple[str, str, str], ...] = (
    ("cf-ray", "", "Cloudflare"),
    ("x-amz-cf-id", "", "CloudFront"),
    ("server", "cloudfront", "CloudFront"),
    ("x-amz-apigw-id", "", "API Gateway"),
    ("apigw-requestid", "", "API Gateway"),
    ("server", "awselb", "AWS ALB"),
    ("x-varnish", "", "Varnish"),
    ("via", "varnish", "Varnish"),
    ("via", r"\d caddy", "Caddy"),
    ("server", "^caddy", "Caddy"),
    ("server", "traefik", "Traefik"),
    ("via", "squid", "Squid"),
    ("server", "openresty|nginx", "nginx"),
    ("x-envoy-upstream-service-time", "", "Envoy"),
    ("server", "envoy|istio", "Envoy"),
    ("server", "haproxy", "HAProxy"),
    ("server", "apache|httpd", "Apache"),
    ("via", r"\bvegur|heroku", "Heroku"),
    ("server", "gunicorn|waitress|werkzeug|uwsgi|gevent|wsgiserver", APP),
)
#: Words in the name of a hop.
_NAMES: Tuple[Tuple[str, str], ...] = (
    ("nginx|ingress", "nginx"), ("haproxy", "HAProxy"), ("apache|httpd", "Apache"), ("varnish", "Varnish"),
    ("traefik", "Traefik"), ("caddy", "Caddy"), ("cloudflare", "Cloudflare"), ("cloudfront", "CloudFront"),
    (r"\balb\b|\belb\b", "AWS ALB"), ("apigw|api.?gateway", "API Gateway"), ("envoy|istio", "Envoy"),
    ("squid", "Squid"), ("heroku", "Heroku"), (r"^app\b|gunicorn|waitress|uwsgi|flask", APP),
)

_BELOW = "keep LLMSTREAM_HEARTBEAT_INTERVAL below half of it"
_RAISE = f"and {_BELOW}"
_NGINX_11 = 'proxy_http_version 1.1;\nproxy_set_header Connection "";'

#: What helps, by product and cause.
PRODUCTS: Dict[str, Dict[str, str]] = {
    "nginx": {
        "response-buffering": "In the location of the streams:\nproxy_buffering off;\n"
        "and take out proxy_ignore_headers X-Accel-Buffering.",
        "compression": "In the location of the streams:\ngzip off;\nproxy_buffering off;",
        "http-1.0": f"In the location of the streams:\n{_NGINX_11}",
        "idle-timeout": f"proxy_read_timeout 3600s;\n{_RAISE}.",
        "cache": "In the location of the streams:\nproxy_cache off;",
        "departure-unseen": "Take out:\nproxy_ignore_client_abort on;",
    },
    "HAProxy": {
        "packet-delay": "In the frontend, or in defaults:\noption http-no-delay",
        "response-buffering": "In the frontend, or in defaults:\noption http-no-delay\n"
        "and take out option http-buffer-request and filters that hold bodies.",
        "compression": "Take text/event-stream out of:\ncompression type",
        "idle-timeout": f"timeout server 1h\ntimeout client 1h\n{_RAISE}.",
        "departure-unseen": "Leave heartbeats on: HAProxy finds out when one cannot be delivered.",
        "cache": "Take out of the backend:\nhttp-request cache-use\nhttp-response cache-store",
    },
    "Apache": {
        "response-buffering": "Take the filter out where the streams are:\nRemoveOutputFilter BUFFER\n"
        "SetEnv proxy-sendchunked 1\nand flushpackets=on at ProxyPass.",
        "compression": 'SetEnvIf Accept "text/event-stream" no-gzip no-brotli',
        "idle-timeout": f'ProxyPass "/" "http://127.0.0.1:8000/" timeout=3600\n{_RAISE}.',
        "departure-unseen": "Leave heartbeats on: Apache finds out when one cannot be delivered.",
        "cache": "CacheDisable on",
        "http-1.0": "Take out:\nSetEnv force-proxy-request-1.0 1\nSetEnv downgrade-1.0 1",
    },
    "Varnish": {
        "response-buffering": "In vcl_backend_response, for text/event-stream:\nset beresp.do_stream = true;",
        "compression": "In vcl_backend_response, for text/event-stream:\nset beresp.do_gzip = false;\n"
        "set beresp.do_stream = true;",
        "idle-timeout": f"varnishd -p between_bytes_timeout=3600\n{_RAISE}.",
        "cache": "In vcl_backend_response, for text/event-stream:\nset beresp.uncacheable = true;",
        "departure-unseen": "Leave heartbeats on: Varnish finds out when two of them cannot be delivered.",
    },
    "Traefik": {
        "response-buffering": "Take the buffering middleware out of the router, and set on the service:\n"
        "loadBalancer.responseForwarding.flushInterval: 1ms",
        "compression": "compress:\n  excludedContentTypes: [text/event-stream]",
        "idle-timeout": f"entryPoints.<name>.transport.respondingTimeouts.idleTimeout: 3600\n{_RAISE}.",
    },
    "Caddy": {
        "response-buffering": "In reverse_proxy:\nflush_interval -1\nand take out response_buffers.",
        "compression": "encode {\n    match {\n        not header Content-Type text/event-stream*\n    }\n}",
        "idle-timeout": f"In reverse_proxy:\ntransport http {{\n    read_timeout 1h\n}}\n{_RAISE}.",
    },
    "Envoy": {
        "response-buffering": "Take envoy.filters.http.buffer, and what else holds bodies, out of the route.",
        "compression": "Take text/event-stream out of content_type of envoy.filters.http.compressor.",
        "idle-timeout": f"stream_idle_timeout: 3600s\n{_RAISE}.",
        "total-timeout": "In the route:\ntimeout: 0s",
    },
    "Cloudflare": {
        "response-buffering": "Network > Response Buffering: off.",
        "compression": "Send Cache-Control: no-transform with the stream, and keep it on the way.",
        "idle-timeout": f"It cannot be changed in most plans: {_BELOW}.",
        "cache": "A cache rule for the path of the streams: Bypass cache.",
    },
    "CloudFront": {
        "compression": "In the behaviour of the path: Compress objects automatically: No.",
        "idle-timeout": f"Origin response timeout: 60 s or more\n{_RAISE}.",
        "cache": "In the behaviour of the path: the cache policy CachingDisabled.",
    },
    "AWS ALB": {"idle-timeout": f"The attribute idle_timeout.timeout_seconds=3600\n{_RAISE}."},
    "API Gateway": {
        "response-buffering": "The integration's response transfer mode: STREAM.",
        "total-timeout": "The integration's response transfer mode: STREAM,\n"
        "and LLMSTREAM_MAX_DURATION below its limit.",
    },
    "Heroku": {"idle-timeout": f"It is 55 s and cannot be changed: {_BELOW}."},
    APP: {
        "response-buffering": "Run: flask llmstream check\nIt finds hooks and extensions that hold the body.",
        "compression": "Run: flask llmstream check\nIt finds what compresses; take the type out of"
        " COMPRESS_MIMETYPES of Flask-Compress.",
        "http-1.0": "Serve it with gunicorn or another server that speaks HTTP/1.1.",
        "idle-timeout": f"Look at LLMSTREAM_IDLE_TIMEOUT and the server's own timeout, {_RAISE}.",
        "total-timeout": "Look at LLMSTREAM_MAX_DURATION, LLMSTREAM_MAX_AGE,"
        " and gunicorn's timeout with sync workers.",
        "departure-unseen": "Leave heartbeats on, and see docs/servers.md for what this server tells.",
        "heartbeats-lost": "Run: flask llmstream check\n"
        "Middleware around the app may keep the server's write() from it.",
        "cache": "Something in the app caches answers: leave streams out of it.",
    },
}

#: For products that are not known, and causes that need no line.
_GENERAL: Dict[str, str] = {
    "response-buffering": "Turn off buffering of answers there, for text/event-stream or for the path.",
    "store-and-forward": "Something reads the whole answer before it passes it on, as virus scanners do:"
    " exempt the path or text/event-stream from the scan.",
    "packet-delay": "Turn off Nagle's algorithm there (TCP_NODELAY).",
    "compression": "Turn off compression there for text/event-stream,"
    " or let it heed Cache-Control: no-transform.",
    "http-1.0": "Let it speak HTTP/1.1.",
    "content-length": "Whoever counts bytes has waited for all of them: let it pass on what comes.",
    "cache": "Keep streams out of the cache: heed Cache-Control: no-cache.",
    "idle-timeout": f"Raise its limit on silence, {_RAISE}.",
    "total-timeout": "Raise its limit on a whole request; or set LLMSTREAM_MAX_DURATION,"
    " or LLMSTREAM_MAX_AGE for resumable streams, a few seconds below it.",
    "departure-unseen": "Let it close its connection to the app when the client's is closed.",
    "heartbeats-lost": "Let it pass on lines that begin with a colon.",
    "cut": "Look into its log at that time.",
    "first-byte-late": "Look for what waits there before it passes on the beginning of an answer.",
    "close-delimited": "Let it speak HTTP/1.1 with Transfer-Encoding: chunked.",
    "header-lost": "Let it pass on Cache-Control: no-transform.",
}


def products_of(
    name: str, headers: Mapping[str, str], before: Optional[Mapping[str, str]] = None, via: str = ""
) -> List[str]:
    """Return what stands there: one product where the name of the hop says which, else all that show.

    :param name: of the hop.
    :param headers: of its answer, with names in lower case.
    :param before: those of the hop before.
    :param via: the header of the request that came out of it, where the app tells.
    """
    own = {key: value for key, value in headers.items() if before is None or before.get(key) != value}
    if via:
        own["via"] = f"{own.get('via', '')}, {via}"
    for pattern, product in _NAMES:
        if re.search(pattern, name, re.I):
            return [product]
    found = [
        product for header, pattern, product in _SIGNS
        if header in own and re.search(pattern, own[header], re.I)
    ]
    proxies = list(dict.fromkeys(product for product in found if product != APP))
    return proxies or found[:1]


def remedy(products: Sequence[str], cause: str, hidden: bool = False) -> str:
    """Return what to change, with the line of configuration where it is known.

    :param products: that may be the cause.
    :param hidden: somebody who adds no header may stand in front of what is known.
    """
    lines: List[str] = []
    same = "response-buffering" if cause in ("store-and-forward", "content-length") else cause
    for each in products:
        own = PRODUCTS.get(each, {})
        known = own.get(cause) or own.get(same)
        if known:
            lines.append(known if each == APP else f"{'Or, ' if lines else ''}{each}: {known}")
    if hidden and lines:
        lines.append(f"If a hop that adds no header stands in front of it: {_GENERAL[cause]}")
    elif not lines or cause == "store-and-forward":
        lines.append(_GENERAL[cause])
    return "\n".join(lines)
