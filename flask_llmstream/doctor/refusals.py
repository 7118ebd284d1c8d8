"""What to do next where a hop gave nothing to look at. Pure."""

from __future__ import annotations

import re
import socket
import ssl
from typing import Dict

__all__ = ["is_stream", "step_after", "step_for", "step_without_events"]

#: Types that nobody streams tokens in; everything else may be one.
_NO_STREAM = re.compile(
    r"text/(html|css|javascript)|application/(json|javascript|pdf|xhtml\+xml|xml|zip|problem\+json)"
    r"|(image|audio|video|font|multipart)/.*"
)
_LOGIN = "send what it asks for: -H 'Authorization: ...' or -H 'Cookie: ...'"
_BEHIND = "what stands behind it gives no answer: look into the log there, and read it by --hop app=URL"
_TOKEN = "flask llmstream probe-token prints a token for --token; or give the URL of a stream"
_STEPS: Dict[int, str] = {
    204: "give the URL of a stream",
    400: "look at --body and at the path; the log of the app says more",
    401: _LOGIN,
    403: _LOGIN,
    404: "look at the path; a URL without one means the probe of an app with flask-llmstream",
    405: "--body '{...}' asks with POST; without it, it is GET",
    407: "it is a proxy that wants a login; read from a place that needs none",
    415: "--body sends JSON; -H 'Content-Type: ...' says otherwise",
    422: "look at --body; the log of the app says more",
    429: "wait, and try again",
    500: "look into the log of the app",
    502: _BEHIND,
    503: _BEHIND,
    504: _BEHIND,
}


def is_stream(content_type: str) -> bool:
    """Whether tokens may come in that type, which has no parameters."""
    return not _NO_STREAM.fullmatch(content_type)


def step_without_events(end: str) -> str:
    """Return what to do after a stream without a single event, which has ended like that."""
    if end == "silent":
        return "wait for longer with --timeout"
    return "look into the log of the app; events, or lines of NDJSON or text, were expected"


def step_for(status: int, path: str) -> str:
    """Return what to do after an answer that is no stream.

    :param status: of the answer.
    :param path: of the URL that was asked.
    """
    if 300 <= status < 400:
        return "give the URL that it leads to; nothing is followed"
    if status == 404 and path.endswith("/probe"):
        return _TOKEN
    if status == 200:
        return "give the URL of a stream; a page in its place may be that of a login: -H 'Cookie: ...'"
    return _STEPS.get(status, _STEPS[500] if status >= 500 else "expected was 200, with a stream")


def step_after(error: BaseException) -> str:
    """Return what to do after the connection, or what came on it, was no use."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "give the name that its certificate is for; -k does not check certificates"
    if isinstance(error, ssl.SSLError):
        return "it may not speak TLS at this port: try http://"
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "look at the name of the host"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there: look at the port, and whether the server runs"
    if isinstance(error, socket.timeout):
        return "wait for longer with --timeout, or look whether a firewall is in the way"
    return "look at the port, and whether it is http:// or https://" if isinstance(error, OSError) else ""
