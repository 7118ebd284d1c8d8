"""What a ``gunicorn.conf.py`` needs for streams: hooks, and a refusal of what cannot work.

::

    from flask_llmstream.gunicorn import check_streaming, on_starting, worker_exit, worker_int

    worker_class = "gevent"
    ...
    check_streaming(globals())  # the last line

Decisions
    1. Importing this loads neither gevent nor anything that gevent has to patch: a configuration
       is read in the master, before that.
    2. What is missing is looked for while the configuration is read. gunicorn would find it too,
       and say "class uri 'gevent' invalid or not found".
    3. SIGTERM, SIGHUP and ``max_requests`` need no hook, see :mod:`flask_llmstream.draining`.
"""

from __future__ import annotations

import argparse
import glob
import os
import shlex
import sys
from importlib.util import find_spec
from typing import Any, Mapping, Optional, Sequence, Tuple

__all__ = ["check_streaming", "child_exit", "on_starting", "worker_exit", "worker_int"]

#: Worker classes that cannot stream a WSGI response, and why.
_UNABLE = {
    "tornado": "it collects the whole response before it sends any of it",
    "asgi": "it serves ASGI apps, and a Flask app is none",
    "eventlet": "it is not supported here, and gunicorn 26 has removed it",
}
#: Seconds that streams get where the worker goes at once: at SIGINT and SIGQUIT, and when its master is gone.
_QUICK = 1.0


def check_streaming(
    config: Mapping[str, Any],
    arguments: Optional[Sequence[str]] = None,
    environ: Optional[Mapping[str, str]] = None,
) -> None:
    """End gunicorn with an explanation where the configuration cannot stream.

    :param config: the names of the configuration file, ``globals()``.
    :param arguments: the command line, which wins over it. Defaults to ``sys.argv[1:]``.
    :param environ: where ``GUNICORN_CMD_ARGS`` is looked for. Defaults to ``os.environ``.
    :raises SystemExit: with what is wrong and what to do.
    """
    given = shlex.split((os.environ if environ is None else environ).get("GUNICORN_CMD_ARGS", ""))
    given += sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-k", "--worker-class", default=config.get("worker_class", "sync"))
    parser.add_argument("--preload", action="store_true", default=config.get("preload_app", False))
    chosen, _ = parser.parse_known_args(given)
    _check(chosen.worker_class, chosen.preload)


def on_starting(server: Any) -> None:
    """Hook of gunicorn: look at the configuration once more, as it is in the end."""
    _check(server.cfg.worker_class_str, server.cfg.preload_app)
    protocols = getattr(server.cfg, "http_protocols", None) or ()
    if "h2" in protocols and not _can_stream_http2():
        _refuse(
            "this gunicorn collects HTTP/2 responses before it sends any of them: upgrade to 26.2"
            " or newer, or let a proxy speak HTTP/2"
        )


def worker_int(worker: Any) -> None:
    """Hook of gunicorn, at SIGINT and SIGQUIT: end the open streams with a word, in a second."""
    from flask_llmstream.draining import drain

    drain(_QUICK)


def worker_exit(server: Any, worker: Any) -> None:
    """Hook of gunicorn, as a worker ends: end what is still open with a word, in a second.

    Nothing is, but for a worker that leaves at once because its master was killed.
    """
    draining = sys.modules.get("flask_llmstream.draining")
    if draining is not None:  # else it had no streams, and its app may never have been loaded
        draining.drain(_QUICK)


def child_exit(server: Any, worker: Any) -> None:
    """Hook of gunicorn: take a dead worker's gauges away, in ``prometheus_client``'s multiprocess mode."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder:
        # What its mark_process_dead() does. To import it here would load ssl before gevent patches it in
        # the workers that this process forks from now on.
        for path in glob.glob(os.path.join(glob.escape(folder), f"gauge_live*_{worker.pid}.db")):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass  # a worker that is asked for the metrics was faster; raised here it would end gunicorn


def _check(worker_class: Any, preload: bool) -> None:
    name = worker_class if isinstance(worker_class, str) else worker_class.__name__
    for unable, reason in _UNABLE.items():
        if unable in name.lower():
            _refuse(f"worker_class {name!r} cannot stream: {reason}. Use 'gevent' (or 'gthread')")
    if "gevent" not in name.lower():
        return
    for module in ("gevent", "packaging"):
        if not _is_there(module):
            _refuse(
                f"worker_class {name!r} needs the package {module!r}, which is not installed."
                " Run: pip install 'flask-llmstream[gunicorn]'"
            )
    if preload and not _is_patched():
        _refuse(
            f"preload_app with worker_class {name!r} imports your app before gevent has patched the"
            " standard library: TLS fails with RecursionError, and what was imported by name blocks"
            " all streams. Leave preload_app off, or let this be the first line of your"
            " gunicorn.conf.py: from gevent import monkey; monkey.patch_all()"
        )


def _refuse(message: str) -> None:
    sys.exit(f"flask-llmstream: {message}.")


def _is_there(module: str) -> bool:
    if module == "packaging" and _gunicorn_version() < (24, 0):
        return True  # pip has installed it with gunicorn, or gunicorn does without
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _is_patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def _can_stream_http2() -> bool:
    version = _gunicorn_version()
    return version < (25, 0) or version >= (26, 2)


def _gunicorn_version() -> Tuple[int, ...]:
    import gunicorn

    return tuple(gunicorn.version_info[:2])
