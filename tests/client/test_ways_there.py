"""What lies between a script and the stream: redirects, a proxy, and the person who presses Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
import requests
from scripted import PATIENCE, Exchange, ScriptedServer, Serve, wait_for

from flask_llmstream.client import StreamClient
from flask_llmstream.exceptions import StreamInterrupted, StreamRefused

TEXT = b'data: {"text":"a"}\n\n'
DONE = b'event: done\ndata: {"reason":"stop"}\n\n'

#: nginx as a forward proxy: it connects to whom the request line names.
FORWARD = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} reuseport;
    location / {{
      if ($http_proxy_authorization != "Basic dTpw") {{ return 407; }}
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Via "1.1 forward";
      proxy_pass http://$host:$request_port$request_uri;
    }}
  }}
  map $request $request_port {{ ~^[A-Z]+\\ http://[^/:]+:(?<found>[0-9]+)/ $found; default 80; }}
}}
"""


def redirecting(status: str, *, host: str = "") -> Any:
    """Return a script that sends the first request elsewhere, and streams to the second."""

    def script(exchange: Exchange) -> None:
        if exchange.request.target == "/stream":
            exchange.head(status, Location=f"{host}/moved", Content_Length="0")
        else:
            exchange.answer(TEXT + DONE)

    return script


@pytest.mark.parametrize(
    "status, method",
    [("301 M", "GET"), ("302 F", "GET"), ("303 S", "GET"), ("307 T", "POST"), ("308 P", "POST")],
)
def test_redirects_keep_a_post_where_they_say_so(serve: Serve, status: str, method: str) -> None:
    server = serve(redirecting(status))
    with StreamClient(server.url, json={"q": 1}) as stream:
        assert list(stream.text()) == ["a"]
    asked = [(each.method, each.target, each.body) for each in server.requests]
    body = b'{"q":1}'
    assert asked == [("POST", "/stream", body), (method, "/moved", body if method == "POST" else b"")]


def test_credentials_do_not_follow_to_another_host(serve: Serve) -> None:
    other = serve(redirecting(""))
    server = serve(redirecting("307 T", host=other.url.replace("127.0.0.1", "localhost").rpartition("/")[0]))
    with StreamClient(server.url, headers={"Authorization": "Bearer x"}) as stream:
        assert list(stream.text()) == ["a"]
    assert server.requests[0].headers["authorization"] == "Bearer x"
    assert "authorization" not in other.requests[0].headers


class ForwardProxy:
    """A real nginx that forwards what it is asked for."""

    def __init__(self, folder: Path) -> None:
        nginx = shutil.which("nginx")
        if nginx is None:
            pytest.fail("nginx is not installed (Debian: apt-get install nginx-light)", pytrace=False)
        # It stays bound, and does not listen: nobody else gets the port before nginx has it, too.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._port.bind(("127.0.0.1", 0))
        self.port = self._port.getsockname()[1]
        config = folder / "nginx.conf"
        config.write_text(FORWARD.format(folder=folder, port=self.port))
        self.url = f"http://u:p@127.0.0.1:{self.port}"
        self.log = folder / "access.log"
        self.process = subprocess.Popen(
            [nginx, "-c", str(config), "-p", str(folder), "-e", str(folder / "error.log")]
        )

    def ready(self) -> bool:
        assert self.process.poll() is None, "nginx has ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        self._port.close()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: Any) -> Iterator[ForwardProxy]:
    started = ForwardProxy(tmp_path_factory.mktemp("forward"))
    wait_for(started.ready)
    yield started
    started.stop()


@pytest.mark.checkout
def test_the_proxy_of_a_session_is_used(serve: Serve, proxy: ForwardProxy) -> None:
    """Each piece comes through at once, and leaving is seen behind the proxy, too."""
    seen = threading.Semaphore(0)
    left = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.head(X_Accel_Buffering="no")
        for _ in range(3):
            exchange.body(TEXT)
            assert seen.acquire(timeout=PATIENCE), "a piece was held back"
        if exchange.wait_closed():
            left.set()

    server = serve(script)
    with requests.Session() as session:
        session.trust_env = False
        session.proxies = {"http": proxy.url}
        with StreamClient(server.url, session=session, json={}) as stream:
            for _ in range(3):
                assert next(stream).data == '{"text":"a"}'
                seen.release()
        assert left.wait(PATIENCE)
    (request,) = server.requests
    assert (request.method, request.headers["via"]) == ("POST", "1.1 forward")
    # It writes that behind the end of a request, which the server may have seen before.
    wait_for(lambda: "POST http://127.0.0.1" in proxy.log.read_text())


@pytest.mark.checkout
def test_a_proxy_that_refuses_is_a_refusal(serve: Serve, proxy: ForwardProxy) -> None:
    server = serve(lambda exchange: exchange.answer(DONE))
    with requests.Session() as session:
        session.trust_env = False
        session.proxies = {"http": proxy.url.replace("u:p@", "")}
        with pytest.raises(StreamRefused, match="407"):
            StreamClient(server.url, session=session).open()
    assert not server.requests


def test_a_proxy_that_is_not_there_is_an_interruption(serve: Serve) -> None:
    with socket.socket() as free, requests.Session() as session:
        free.bind(("127.0.0.1", 0))
        session.proxies = {"http": "http://u:secret@127.0.0.1:%d" % free.getsockname()[1]}
        session.trust_env = False
        with pytest.raises(StreamInterrupted, match="refused") as caught:
            StreamClient("http://127.0.0.1:9/", session=session).open()
    assert "secret" not in str(caught.value)


SCRIPT = """
import sys
from flask_llmstream.client import StreamClient

with StreamClient(sys.argv[1], json={}) as stream:
    for piece in stream.text():
        print(piece, flush=True)
"""


def left_after_ctrl_c(server: ScriptedServer, left: "list[float]") -> None:
    command = [sys.executable, "-c", SCRIPT, server.url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"a\n"
        time.sleep(0.1)
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        wait_for(lambda: left)
        print(f"the server knew {(left[0] - pressed) * 1000:.0f} ms after Ctrl-C")
        assert left[0] - pressed < 5.0
        assert b"KeyboardInterrupt" in process.stderr.read()


def test_ctrl_c_in_a_script_closes_the_connection_at_once(serve: Serve) -> None:
    left: Any = []

    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(TEXT)
        if exchange.wait_closed():
            left.append(time.monotonic())

    left_after_ctrl_c(serve(script), left)
