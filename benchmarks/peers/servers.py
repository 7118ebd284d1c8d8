"""Who is compared: how each is started, and how each is asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from benchmarks.apps.work import TOKENS
from benchmarks.peers.environments import ROOT, Missing, environment, versions_in

__all__ = ["PEERS", "Peer", "Place", "surroundings"]

_HERE = Path(__file__).resolve().parent


class Place(NamedTuple):
    """What a server is given to start."""

    port: int
    #: The OpenAI-compatible upstream, up to and with ``/v1``.
    upstream: str
    #: A folder of its own.
    folder: Path


class Peer(NamedTuple):
    """One server that is compared."""

    name: str
    title: str
    #: What it runs on and how, for the reader.
    configuration: str
    #: The command that starts it.
    #: It raises :class:`Missing` where that cannot be.
    command: Callable[[Place], List[str]]
    #: Its versions, by what people call the packages.
    versions: Callable[[], Dict[str, str]]
    #: Whether it has the paths of :mod:`benchmarks.apps.bare`: steady, hot, idle.
    serves: bool = True
    #: Where it passes on what a model says, with the query that the model is named by; ``POST`` before it
    #: if it speaks OpenAI's API itself. ``None``: it does not.
    relay: Optional[str] = None
    #: What it is asked for until it answers.
    ready: str = "/hot?count=1"
    #: Its environment, if it is not that of this process.
    packages: Optional[str] = None


def _bundled(*packages: str) -> Callable[[], Dict[str, str]]:
    def versions() -> Dict[str, str]:
        from importlib.metadata import version

        return {package: version(package) for package in packages}

    return versions


def _pinned(name: str, *packages: str) -> Callable[[], Dict[str, str]]:
    return lambda: {package: versions_in(name)[package] for package in packages}


def _printed(*command: str) -> Callable[[], Dict[str, str]]:
    def versions() -> Dict[str, str]:
        done = subprocess.run(
            [_program(command[0]), *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            universal_newlines=True,
        )
        return {command[0]: done.stdout.split("/")[-1].strip().lstrip("v")}

    return versions


def _program(name: str) -> str:
    # /usr/sbin is not on every user's PATH.
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        package = "nodejs" if name == "node" else name
        raise Missing(f"there is no {name} here (Debian: apt-get install {package})")
    return found


def _gunicorn(app: str, packages: Optional[str] = None) -> Callable[[Place], List[str]]:
    def command(place: Place) -> List[str]:
        python = sys.executable if packages is None else str(environment(packages) / "python")
        settings = place.folder / "settings.py"  # else the one of this checkout would be used
        settings.write_text("")
        return [
            python, "-m", "gunicorn", "-c", str(settings), "-k", "gevent", "-w", "1", "--backlog", "2048",
            "--worker-connections", "20000", "--log-level", "warning", "-b", f"127.0.0.1:{place.port}", app,
        ]

    return command


def _uvicorn(packages: str, app: str) -> Callable[[Place], List[str]]:
    return lambda place: [
        str(environment(packages) / "python"), "-m", "uvicorn", f"benchmarks.peers.apps.{app}:app",
        "--host", "127.0.0.1", "--port", str(place.port), "--loop", "uvloop", "--http", "httptools",
        "--no-access-log", "--log-level", "warning", "--backlog", "2048",
    ]


def _hypercorn(place: Place) -> List[str]:
    return [
        str(environment("quart") / "python"), "-m", "hypercorn", "--workers", "1", "-k", "uvloop",
        "--backlog", "2048", "--bind", f"127.0.0.1:{place.port}", "benchmarks.peers.apps.quart_app:app",
    ]


def _node(place: Place) -> List[str]:
    return [_program("node"), str(_HERE / "apps" / "node_app.mjs"), str(place.port)]


def _floor(place: Place) -> List[str]:
    return [sys.executable, "-m", "benchmarks.peers.apps.floor", str(place.port)]


_NGINX = """\
daemon off; {user} worker_processes 1; pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream model {{ server {upstream}; keepalive 32; }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location /ready {{ return 200; }}
        location /v1/ {{
            proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off; proxy_read_timeout 1h;
        }}
    }}
}}
"""


def _nginx(place: Place) -> List[str]:
    settings = place.folder / "nginx.conf"
    settings.write_text(_NGINX.format(
        folder=place.folder, port=place.port, upstream=place.upstream.split("/")[2],
        user="user root;" if os.getuid() == 0 else "",
    ))
    return [_program("nginx"), "-e", "stderr", "-p", str(place.folder), "-c", str(settings)]


_LITELLM = """\
model_list:
  - model_name: "*"
    litellm_params:
      model: "openai/*"
      api_base: {upstream}
      api_key: of-the-benchmarks
"""


def _litellm(place: Place) -> List[str]:
    settings = place.folder / "litellm.yaml"
    settings.write_text(_LITELLM.format(upstream=place.upstream))
    return [
        str(environment("litellm") / "litellm"), "--config", str(settings), "--host", "127.0.0.1",
        "--port", str(place.port), "--num_workers", "1", "--telemetry", "False",
    ]


_GEVENT = "gunicorn, one gevent worker"
_FLASK = _bundled("Flask", "gunicorn", "gevent")
_UVICORN = "uvicorn with uvloop and httptools, one process"

PEERS: Tuple[Peer, ...] = (
    Peer(
        "bare", "Flask, bare generator",
        f"{_GEVENT}; prepared events, no heartbeats; relay by requests and iter_lines()",
        _gunicorn("benchmarks.apps.bare:app"), _FLASK, relay="/relay?",
    ),
    Peer(
        "bare again", "Flask, bare generator, again", "the same once more, for the noise",
        _gunicorn("benchmarks.apps.bare:app"), _FLASK, relay="/relay?",
    ),
    Peer(
        "ours", "Flask with flask-llmstream",
        f"{_GEVENT}; everything switched on; relay by openai_chat()",
        _gunicorn("benchmarks.apps.ours:app"), _FLASK, relay="/relay?",
    ),
    Peer(
        "ours bytes", "Flask with flask-llmstream, relay()", f"{_GEVENT}; the upstream's bytes passed on",
        _gunicorn("benchmarks.apps.ours:app"), _FLASK, serves=False, relay="/bytes?",
    ),
    Peer(
        "starlette", "Starlette, sse-starlette", f"{_UVICORN}; pings every 15 s (default)",
        _uvicorn("starlette", "starlette_app"),
        _pinned("starlette", "starlette", "sse-starlette", "uvicorn", "uvloop", "httptools"),
        packages="starlette",
    ),
    Peer(
        "fastapi", "FastAPI, its own SSE",
        f"{_UVICORN}; items are a pydantic model; pings when idle for 15 s",
        _uvicorn("fastapi", "fastapi_app"),
        _pinned("fastapi", "fastapi", "starlette", "pydantic", "uvicorn", "uvloop", "httptools"),
        packages="fastapi",
    ),
    Peer(
        "fastapi + sse-starlette", "FastAPI, sse-starlette",
        f"{_UVICORN}; pings every 15 s (default); relay by OpenAI's SDK (AsyncOpenAI)",
        _uvicorn("fastapi", "fastapi_sse_starlette"),
        _pinned("fastapi", "fastapi", "sse-starlette", "openai", "uvicorn", "uvloop", "httptools"),
        relay="/relay?", packages="fastapi",
    ),
    Peer(
        "quart", "Quart", "hypercorn with uvloop, one worker; no heartbeats", _hypercorn,
        _pinned("quart", "quart", "hypercorn", "uvloop"), packages="quart",
    ),
    Peer(
        "django", "Django, StreamingHttpResponse", f"{_GEVENT}; no middleware, no heartbeats",
        _gunicorn("benchmarks.peers.apps.django_app:application", "django"),
        _pinned("django", "django", "gunicorn", "gevent"), packages="django",
    ),
    Peer(
        "node", "Node, http", "one process, no heartbeats", _node, _printed("node", "--version"),
    ),
    Peer(
        "floor", "gevent socket, no HTTP parser",
        "StreamServer; prepared bytes, no heartbeats; relay copies between two sockets",
        _floor, _bundled("gevent"), relay="/relay?",
    ),
    Peer(
        "litellm", "LiteLLM proxy", "its own command with one worker; no database, no keys", _litellm,
        _pinned("litellm", "litellm", "fastapi", "uvicorn", "uvloop"), serves=False,
        relay="POST /v1/chat/completions", ready="/health/liveliness", packages="litellm",
    ),
    Peer(
        "nginx", "nginx, proxy_pass", "one worker, proxy_buffering off, keepalive 32", _nginx,
        _printed("nginx", "-v"), serves=False, relay="POST /v1/chat/completions", ready="/ready",
    ),
)


def surroundings(place: Place) -> Dict[str, str]:
    """Return the environment variables that every server gets."""
    foreign = ("GUNICORN_", "WEB_CONCURRENCY", "PORT", "PYTHONDEVMODE", "PYTHONASYNCIODEBUG", "COVERAGE_")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
        "PYTHONPATH": str(ROOT),
        "BENCHMARK_UPSTREAM": place.upstream,
        "BENCHMARK_TOKENS": json.dumps(TOKENS),
        "NODE_ENV": "production",
        # Nothing is asked of the network, and each line of a log would be work.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        # Without keys it has less to do.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
