"""Starts the app of the tests of resumable streams, and asks it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional
from urllib.parse import quote

from asking import APPS, events_of
from coming_back import chat

from flask_llmstream.testing import LiveServer, ScriptedUpstream, gunicorn_server, wait_until

APP = APPS / "resumable.py"


@contextlib.contextmanager
def serving(
    upstream: ScriptedUpstream, log: str, workers: int = 4, settings: Optional[Dict[str, Any]] = None,
    env: Optional[Dict[str, str]] = None, **options: Any
) -> Iterator[LiveServer]:
    environment: Dict[str, Any] = {"EVENT_LOG": log, "UPSTREAM": upstream.url}
    environment.update(env or {}, SETTINGS=json.dumps(settings or {}))
    with gunicorn_server(APP, workers=workers, env=environment, **options) as server:
        yield server
        assert "Traceback" not in server.log(), server.log()[-5000:]


def begin(server: LiveServer, model: str, headers: Optional[Dict[str, str]] = None, **options: Any) -> Any:
    """Begin a stream and read its first words; return the reader and the path that names the stream."""
    reader = server.request(chat(model, **options), headers=headers)
    assert reader.status == 200
    data = b"".join(piece for _, piece in reader.read_until(b'{"text"'))
    return reader, reader.headers["content-location"], data


def running(upstream: ScriptedUpstream, model: str) -> Any:
    """Return the exchange of the upstream for *model*."""
    return [each for each in upstream.exchanges if each.json["model"] == model][-1]


def closed(exchange: Any) -> Any:
    return exchange.peer.closed_at


def read_all(server: LiveServer, path: str, **request: Any) -> bytes:
    with server.request(path, **request) as reader:
        assert reader.status == 200, (reader.status, reader.read())
        return reader.read()


def last_id(data: bytes) -> str:
    return [event.id for event in events_of(data) if event.id][-1]


def cookies(server: LiveServer, user: str) -> Dict[str, str]:
    """Log in as *user*; return the headers that say so."""
    with server.request(f"/login/{quote(user)}") as answer:
        answer.read()
        return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


_TWO_SERVERS = """
    upstream app {{ server 127.0.0.1:{ports[0]} max_fails=0; server 127.0.0.1:{ports[1]} max_fails=0; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            # Only what never reached a server is asked of the other: a GET too may begin an answer.
            proxy_next_upstream error timeout;
            proxy_connect_timeout 2s;
        }}
    }}
"""


@contextlib.contextmanager
def nginx_before(folder: Path, ports: List[int]) -> Iterator[str]:
    """Run nginx in front of two servers; yield its URL."""
    port = free_port()
    config = folder / "nginx.conf"
    paths = "".join(
        f"{each}_temp_path {folder}/{each};\n"
        for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr warn;\n"
        "events { worker_connections 2048; }\nhttp { access_log off;\n"
        + paths + _TWO_SERVERS.format(ports=ports, port=port) + "}\n"
    )
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    assert program, "nginx is not installed; scripts/bootstrap test installs it"
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-p", str(folder), "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        def is_up() -> bool:
            assert process.poll() is None, (folder / "nginx.log").read_text()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True
            return False

        wait_until(is_up, 10.0, "nginx")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
