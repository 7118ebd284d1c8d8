"""uWSGI, waitress and the development server: what they do to streams."""

from __future__ import annotations

import re
from typing import Dict, Iterator

from flask_llmstream.doctor.facts import AppFacts, Deployment
from flask_llmstream.doctor.findings import Finding

__all__ = ["check"]

#: As of gunicorn: fewer are used up by a handful of readers.
_FEW_THREADS, _FEW_GREENLETS = 16, 100
#: Seconds for which uWSGI waits for a reader that is slow, and what is enough for most.
_SOCKET_TIMEOUT, _PATIENT = 4, 30


def check(facts: AppFacts) -> Iterator[Finding]:
    """Look at a server other than gunicorn, if one is known."""
    known = facts.deployment
    if known is None or known.server == "gunicorn":
        return
    if known.server == "uWSGI":
        yield from _uwsgi(facts, known)
    elif known.server == "waitress":
        yield from _waitress(known)
    else:
        yield _finding(
            known, "development-server", "warning", known.server, f"the app is served by {known.server}",
            "it is for development: when it stops, streams are cut, and no `finally` runs",
            'gunicorn with worker_class = "gevent" (pip install "flask-llmstream[gunicorn]")',
        )


def _finding(
    known: Deployment, code: str, severity: str, subject: str, seen: str, why: str, change: str
) -> Finding:
    return Finding(code, severity, subject, seen, why, change, known.source)


def _few_threads(known: Deployment, change: str) -> Iterator[Finding]:
    if known.threads < _FEW_THREADS:
        yield _finding(
            known, "few-threads", "warning", f"threads of {known.server}", f"threads = {known.threads}",
            f"each stream holds a thread to its end: reader {known.threads + 1} of a process waits, and so"
            " does every other request",
            change,
        )


def _waitress(known: Deployment) -> Iterator[Finding]:
    yield from _few_threads(known, "--threads=64, or gunicorn with gevent workers")
    held = dict(known.options).get("send-bytes", "1")
    if re.fullmatch("[0-9]{1,9}", held) and int(held) > 1:
        yield _finding(
            known, "server-gathers", "problem", "send_bytes", f"send_bytes = {held}",
            f"waitress sends nothing before it has {held} bytes: tokens wait for the end", "leave it at 1",
        )


def _uwsgi(facts: AppFacts, known: Deployment) -> Iterator[Finding]:
    options: Dict[str, str] = dict(known.options)
    if known.is_gevent:
        if known.worker_connections < _FEW_GREENLETS:
            yield _finding(
                known, "few-connections", "warning", "gevent", f"gevent = {known.worker_connections}",
                "a stream is a greenlet for as long as it lasts: further clients wait", "gevent = 1000",
            )
        if not (known.patched or facts.patched):
            yield _finding(
                known, "gevent-unpatched", "problem", "gevent", "gevent without gevent-monkey-patch",
                "whoever waits for an upstream holds up all streams of the process",
                "gevent-monkey-patch = true",
            )
    elif known.threads < 2:
        yield _finding(
            known, "worker-sync", "problem", "processes of uWSGI",
            f"{known.workers} processes, without threads and without gevent",
            f"each process serves one stream at a time: {known.workers + 1} readers and the site is down",
            "gevent = 1000 and gevent-monkey-patch = true; or threads = 64",
        )
    else:
        yield from _few_threads(known, "threads = 64, or gevent = 1000 and gevent-monkey-patch = true")
    yield from _uwsgi_limits(known, options)
    yield from _uwsgi_ways(known, options)


def _uwsgi_limits(known: Deployment, options: Dict[str, str]) -> Iterator[Finding]:
    if options.get("harakiri"):
        yield _finding(
            known, "timeout-cuts-streams", "problem", "harakiri", f"harakiri = {options['harakiri']}",
            "a stream that takes longer than that is killed together with its process and all other streams"
            " there",
            "no harakiri where streams are; LLMSTREAM_MAX_DURATION limits each by itself",
        )
    if "disable-write-exception" in options:
        yield _finding(
            known, "departures-ignored", "problem", "disable-write-exception", "disable-write-exception",
            "the app is never told by a write that a client has left: the model goes on, and is paid for",
            "take it out",
        )
    patience = options.get("socket-timeout", str(_SOCKET_TIMEOUT))
    if patience.isdigit() and int(patience) < _PATIENT:
        yield _finding(
            known, "slow-readers-cut", "note", "socket-timeout",
            f"socket-timeout = {patience}{' (what uWSGI takes)' * ('socket-timeout' not in options)}",
            f"a reader that takes nothing for {patience} s, on a train for one, loses its stream",
            f"socket-timeout = {_PATIENT}",
        )


def _uwsgi_ways(known: Deployment, options: Dict[str, str]) -> Iterator[Finding]:
    for name in ("http", "https"):
        if name in options:
            yield _finding(
                known, "router-cuts-streams", "warning", f"{name} of uWSGI", f"{name} = {options[name]}",
                "the router ends all streams at once when uWSGI is stopped",
                "http-socket, or socket with a proxy that speaks uwsgi",
            )
    if not known.is_gevent and "https-socket" in options:
        yield _finding(
            known, "no-heartbeats-possible", "warning", "https-socket", "https-socket with threads",
            "there are no heartbeats: proxies cut a model that thinks, and departures are seen late",
            "gevent, or TLS in a proxy",
        )
    for name, value in known.options:
        changes = re.search(r"\b(chunked|gzip):", value) if "route" in name else None
        if changes and not known.is_gevent:
            yield _finding(
                known, "body-transformed", "problem", name, f"{name} = {value[:100]}",
                f"heartbeats go past {changes.group(1)}, into the middle of what it writes",
                "leave the routes of the streams out; a proxy compresses and writes chunks",
            )
