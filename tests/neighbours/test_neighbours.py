"""Among other extensions, middleware and hooks a stream still streams, or a warning says who stops it."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

import pytest

from flask_llmstream.testing import LiveServer, StreamReader, gunicorn_server, read_stream, send_request

pytestmark = pytest.mark.live

APPS = Path(__file__).with_name("apps")
ORDERS = ["before", "after"]
ROUTES = ["stream", "legacy"]
GZIP = {"Accept-Encoding": "gzip, br, zstd"}

both = pytest.mark.parametrize("order", ORDERS)
each_route = pytest.mark.parametrize("route", ROUTES)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with gunicorn_server(APPS / "many.py", config_lines="accesslog = None") as server:
        yield server


def ask(server: LiveServer, path: str, **request: Any) -> StreamReader:
    """Return the answer, read to its end."""
    reader = server.request(path, **request)
    with contextlib.closing(reader.sock):
        reader.said = reader.read()  # type: ignore[attr-defined]
    return reader


@pytest.fixture(scope="module")
def missing(server: LiveServer) -> Dict[str, str]:
    import json

    return json.loads(ask(server, "/missing").said.decode())  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def streams(server: LiveServer, missing: Dict[str, str], request: Any) -> Any:
    """Return a function that asks a neighbour's app and holds that its items come one by one."""
    numbers = iter(range(100))

    def check(
        name: str, order: str, route: str, *, query: str = "",
        headers: Optional[Mapping[str, str]] = None, **arguments: Any,
    ) -> StreamReader:
        if name in missing:
            pytest.skip(f"this stack has none: {missing[name]}")
        key = f"{request.node.name}-{next(numbers)}".replace("[", "-").replace("]", "")
        reader = server.request(
            f"/{name}/{order}/{route}?key={key}&{query}", headers={**GZIP, **(headers or {})},
            timeout=5.0, **arguments,
        )
        with contextlib.closing(reader.sock):
            assert reader.status == 200, reader.read()
            reader.items = reader.read_until(b"\n")  # type: ignore[attr-defined]
            # The second item is not made before this.
            ask(server, f"/open/{key}")
            reader.items += list(reader)  # type: ignore[attr-defined]
        assert reader.complete
        assert b"one" in body_of(reader).lower() and b"two" in body_of(reader)
        assert not {"content-length", "etag", "content-encoding"} & set(reader.headers)
        return reader

    return check


def body_of(reader: Any) -> bytes:
    return b"".join(data for _, data in reader.items)


# -- extensions ----------------------------------------------------------------------------------


@both
@each_route
def test_nothing_between_is_the_control(streams: Any, order: str, route: str) -> None:
    assert len(streams("nothing", order, route).items) >= 2


@both
@each_route
@pytest.mark.parametrize("name", ["compress", "compress_events"])
def test_flask_compress_leaves_streams_alone(
    server: LiveServer, streams: Any, name: str, order: str, route: str
) -> None:
    streams(name, order, route)
    plain = ask(server, f"/{name}/{order}/plain", headers=GZIP)
    assert "content-encoding" in plain.headers, "it does compress what does not stream"
    assert not any("flask_compress" in line for line in warnings_of(server)), "nobody is to blame"


@both
@pytest.mark.parametrize("name", ["compress", "compress_events"])
def test_flask_compress_leaves_plain_text_alone_that_was_opted_in(
    streams: Any, name: str, order: str
) -> None:
    streams(name, order, "text")


@both
@each_route
def test_flask_cors_sets_its_headers_on_streams(streams: Any, order: str, route: str) -> None:
    reader = streams("cors", order, route, headers={"Origin": "http://elsewhere.test"})
    assert reader.headers["access-control-allow-origin"] in ("*", "http://elsewhere.test")


@both
@each_route
def test_flask_session_is_read_in_streams_and_kept(streams: Any, order: str, route: str) -> None:
    first = streams("server_session", order, route, query="name=Ada")
    assert b"one Ada" in body_of(first)
    cookie = first.headers["set-cookie"].partition(";")[0]
    assert b"one Ada" in body_of(streams("server_session", order, route, headers={"Cookie": cookie}))


@both
@each_route
def test_flask_login_knows_its_user_in_streams(streams: Any, order: str, route: str) -> None:
    assert b"one ada" in body_of(streams("login", order, route, query="user=ada"))


@both
@each_route
def test_flask_limiter_counts_streams(
    server: LiveServer, streams: Any, order: str, route: str
) -> None:
    reader = streams("limiter", order, route)
    assert reader.headers["x-ratelimit-limit"] == "3"
    for _ in range(2):
        streams("limiter", order, route)
    assert ask(server, f"/limiter/{order}/{route}?key=refused").status == 429


@both
@each_route
def test_flask_talisman_sets_its_headers_on_streams(streams: Any, order: str, route: str) -> None:
    reader = streams("talisman", order, route)
    assert "default-src" in reader.headers["content-security-policy"]


@both
@each_route
def test_flask_sqlalchemy_can_be_asked_in_streams(streams: Any, order: str, route: str) -> None:
    assert b"one noted" in body_of(streams("sqlalchemy", order, route))


@both
@each_route
def test_flask_wtf_protects_streams_and_lets_a_token_pass(
    server: LiveServer, streams: Any, order: str, route: str
) -> None:
    streams("csrf", order, route)
    assert ask(server, f"/csrf/{order}/{route}?key=refused", json={}).status == 400
    token: Any = ask(server, f"/csrf/{order}/token")
    headers = {
        "X-CSRFToken": token.said.decode(), "Cookie": token.headers["set-cookie"].partition(";")[0],
    }
    streams("csrf", order, route, headers=headers, json={})


@both
@each_route
def test_prometheus_flask_exporter_counts_streams(
    server: LiveServer, streams: Any, order: str, route: str
) -> None:
    streams("prometheus", order, route)
    metrics: Any = ask(server, f"/prometheus/{order}/metrics")
    assert f'_count{{method="GET",path="/{route}",status="200"}} 1.0' in metrics.said.decode()


# -- WSGI middleware -----------------------------------------------------------------------------


@both
@each_route
def test_whitenoise_passes_streams_on(
    server: LiveServer, streams: Any, order: str, route: str
) -> None:
    streams("whitenoise", order, route)
    file: Any = ask(server, f"/whitenoise/{order}/hello.txt")
    assert file.said == b"hello"


@both
@each_route
def test_proxy_fix_passes_streams_on(streams: Any, order: str, route: str) -> None:
    reader = streams("proxy_fix", order, route, headers={"X-Forwarded-For": "192.0.2.7"})
    assert b"one 192.0.2.7" in body_of(reader)


@both
@each_route
@pytest.mark.parametrize("name", ["profiler", "joining"])
def test_middleware_that_collects_a_body_is_named(
    server: LiveServer, name: str, order: str, route: str
) -> None:
    key = f"{name}-{order}-{route}"
    with contextlib.closing(server.connect()) as sock:
        send_request(sock, f"/{name}/{order}/{route}?key={key}")
        with pytest.raises(socket.timeout):
            read_stream(sock, timeout=0.3)
        ask(server, f"/open/{key}")
        assert b"two" in read_stream(sock, timeout=5.0).read()
    place = f".joining_{order} (" if name == "joining" else "werkzeug.middleware.profiler.Pro"
    # Under the retrofit it has collected what nobody has looked at yet.
    what = "returns as a list" if (order, route) == ("after", "legacy") else "takes its items"
    named = [line for line in warnings_of(server) if what in line]
    assert any(place in line and "let it pass streams on" in line for line in named), named


def warnings_of(server: LiveServer) -> List[str]:
    return [line for line in server.log().splitlines() if line.startswith("WARNING flask_llmstream")]


# -- after_request hooks -------------------------------------------------------------------------

HOOKS = [
    "hook_data", "hook_get_data", "hook_set_length", "hook_content_length", "hook_add_etag",
    "hook_make_conditional", "hook_only_conditional", "hook_join_encoded", "hook_join_body",
    "hook_make_sequence", "hook_freeze", "hook_replace_data",
    "hook_of_this_request", "hook_before_the_view",
]


@both
@each_route
@pytest.mark.parametrize("hook", HOOKS)
def test_hook_that_reads_the_body_is_kept_from_it(
    server: LiveServer, streams: Any, hook: str, order: str, route: str
) -> None:
    reader = streams(hook, order, route)
    assert b"one" in body_of(reader), "what it made of an empty body is not sent"


def test_hooks_that_read_the_body_are_named(server: LiveServer, streams: Any) -> None:
    for hook in HOOKS:
        streams(hook, "after", "legacy")
        named = [line for line in warnings_of(server) if f".{hook} (" in line or f".{hook}_data (" in line]
        assert len(named) == 1 and "if response.is_streamed: return response" in named[0], hook


@both
@pytest.mark.parametrize("name", ["wrap", "wrap_iterator"])
def test_hook_that_wraps_the_body_of_a_route_still_does(
    server: LiveServer, streams: Any, name: str, order: str
) -> None:
    reader = streams(name, order, "legacy")
    assert b"ONE" in body_of(reader)
    assert (b"data: wrapped" in body_of(reader)) == (name == "wrap")
    assert not any(f".{name} (" in line and "reads" in line for line in warnings_of(server))


@both
@pytest.mark.parametrize("name", ["wrap", "wrap_iterator"])
def test_hook_that_wraps_the_body_of_a_stream_is_told_that_it_cannot(
    server: LiveServer, streams: Any, name: str, order: str
) -> None:
    assert b"one" in body_of(streams(name, order, "stream"))
    assert any(f".{name} (" in line for line in warnings_of(server))
