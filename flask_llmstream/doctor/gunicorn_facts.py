"""Asks gunicorn what its configuration comes to, in a process of its own, without serving.

A configuration is a program: it may patch the standard library, or refuse to go on. So it does not
run in this process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any, Dict, FrozenSet, Optional, Sequence

from flask_llmstream.doctor.facts import Deployment
from flask_llmstream.doctor.sources import shorten

__all__ = ["look_at_gunicorn", "look_at_gunicorn_command"]

#: What gunicorn takes without being told.
_DEFAULT = "gunicorn.conf.py"
_TIMEOUT = 60.0
_MARK = "flask-llmstream: "
#: Words of a configuration, and the libraries for which they stand.
_REMEDIES = {"patch_psycopg": "psycopg2", "init_gevent": "grpc"}

_PROGRAM = r"""
import json, sys
from gunicorn.app.wsgiapp import WSGIApplication
cfg = WSGIApplication().cfg
import gunicorn
monkey = sys.modules.get("gevent.monkey")
patched = monkey is not None and bool(monkey.is_module_patched("socket"))
tls = sys.modules.get("urllib3.util.ssl_")
context = getattr(tls, "SSLContext", None)
early = context is not None and not context.__module__.startswith("gevent")
version = tuple(gunicorn.version_info[:2])
from gunicorn.workers import SUPPORTED_WORKERS
worker = cfg.settings["worker_class"].get()
short = isinstance(worker, str) and not any(sign in worker for sign in ".:#")
error = ""
if short and worker not in SUPPORTED_WORKERS:
    error = "there is no worker_class %r, but %s" % (worker, ", ".join(sorted(SUPPORTED_WORKERS)))
print("flask-llmstream: " + json.dumps({
    "worker": cfg.worker_class_str, "workers": cfg.workers, "threads": cfg.threads,
    "worker_connections": cfg.worker_connections, "timeout": cfg.timeout,
    "graceful_timeout": cfg.graceful_timeout, "max_requests": cfg.max_requests,
    "max_requests_jitter": cfg.max_requests_jitter, "preload": cfg.preload_app, "patched": patched,
    "early": ["urllib3"] if early else [],
    "http2": "h2" in (getattr(cfg, "http_protocols", None) or ()),
    "http2_streams": version < (25, 0) or version >= (26, 2),
    "error": error,
}))
"""


def look_at_gunicorn(
    config: Optional[str] = None, worker_class: Optional[str] = None
) -> Optional[Deployment]:
    """Return the deployment; ``None`` where nothing says that gunicorn is used, or how.

    :param config: its configuration. Defaults to ``gunicorn.conf.py`` in the current folder, if it
        is there.
    :param worker_class: wins over the configuration.
    :raises FileNotFoundError: there is no *config*.
    """
    if config is not None and not os.path.isfile(config):
        raise FileNotFoundError(f"there is no file {config!r}")
    if config is None and os.path.isfile(_DEFAULT):
        config = _DEFAULT
    variable = bool(os.environ.get("GUNICORN_CMD_ARGS"))
    if config is None and not variable and worker_class is None:
        return None
    words = [shorten(os.path.abspath(config))] if config is not None else []
    words += ["GUNICORN_CMD_ARGS"] * variable + ["--worker-class"] * (worker_class is not None)
    arguments = (["-c", config] if config else []) + (["-k", worker_class] if worker_class else [])
    found = _ask([*arguments, "app:app"])
    found.setdefault("worker", worker_class or "")
    return Deployment(" and ".join(words), remedies=_remedies(config), **found)


def look_at_gunicorn_command(arguments: Sequence[str], source: str) -> Deployment:
    """Return what a command line of gunicorn comes to.

    :param arguments: those of gunicorn.
    :param source: where they come from.
    """
    found = _ask(arguments)
    found.setdefault("worker", "")
    named = [
        word.partition("=")[2] or after for word, after in zip(arguments, [*arguments[1:], ""])
        if re.match(r"(-c|--config(=.*)?)$", word)
    ]
    config = named[-1] if named else _DEFAULT
    return Deployment(source, remedies=_remedies(config if os.path.isfile(config) else None), **found)


def _ask(arguments: Sequence[str]) -> Dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it was not read to its end in {_TIMEOUT:.0f} s"}
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        if line.startswith(_MARK):
            answer = json.loads(line[len(_MARK):])
            return dict(answer, early=tuple(answer["early"]))
    said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return {"error": said[-1].strip() if said else f"gunicorn ended with status {done.returncode}"}


def _remedies(config: Optional[str]) -> FrozenSet[str]:
    if config is None:
        return frozenset()
    with open(config, encoding="utf-8", errors="replace") as file:
        text = file.read()
    return frozenset(library for word, library in _REMEDIES.items() if word in text)
