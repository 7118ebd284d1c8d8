"""gunicorn: workers, time limits, preloading."""

from __future__ import annotations

from typing import Iterator, Optional

from flask_llmstream.doctor.facts import AppFacts, Deployment
from flask_llmstream.doctor.findings import Finding

__all__ = ["check"]

#: Fewer streams than these at the same time are used up by a handful of readers.
_FEW_THREADS = 16
_FEW_CONNECTIONS = 100
#: Seconds. Streams need some of it to be told, and some to end.
_SHORT_STOP = 5.0
_UNABLE = {
    "tornado": "it collects the whole response before it sends any of it",
    "asgi": "it serves ASGI apps, and a Flask app is none",
    "eventlet": "it is not supported, and gunicorn 26 has removed it",
}


def check(facts: AppFacts) -> Iterator[Finding]:
    """Look at the deployment, if one is known."""
    known = facts.deployment
    if known is None or known.server != "gunicorn":
        return
    if known.error:
        yield Finding(
            "gunicorn-refuses", "problem", known.source, known.error,
            "gunicorn does not start with this, or not as it was meant", "do what the message says",
        )
    if not known.worker:
        return
    yield from _worker(known)
    if not known.error:
        yield from _limits(facts, known)
        yield from _patching(known)
        yield from _http2(known)


def _finding(
    known: Deployment, code: str, severity: str, subject: str, seen: str, why: str, change: str
) -> Finding:
    return Finding(code, severity, subject, seen, why, change, known.source)


def _unable(worker: str) -> Optional[str]:
    return next((reason for name, reason in _UNABLE.items() if name in worker.lower()), None)


def _worker(known: Deployment) -> Iterator[Finding]:
    reason = _unable(known.worker)
    if reason is not None:
        yield _finding(
            known, "worker-cannot-stream", "problem", f"worker_class {known.worker}",
            f"worker_class = {known.worker!r}", reason, 'worker_class = "gevent"',
        )
    elif known.is_gevent:
        if known.worker_connections < _FEW_CONNECTIONS:
            yield _finding(
                known, "few-connections", "warning", "worker_connections",
                f"worker_connections = {known.worker_connections}",
                "a stream is a connection for as long as it lasts: further clients are not accepted",
                "worker_connections = 2000",
            )
    elif "gthread" in known.worker.lower():
        if known.threads < _FEW_THREADS:
            yield _finding(
                known, "few-threads", "warning", "worker_class gthread", f"threads = {known.threads}",
                f"each stream holds a thread to its end: reader {known.threads + 1} of a worker waits, and so"
                " does every other request",
                'worker_class = "gevent", or more threads',
            )
    elif known.worker.lower().rpartition(".")[2] in ("sync", "syncworker"):
        yield _finding(
            known, "worker-sync", "problem", "worker_class sync",
            f"worker_class sync, {known.workers} of them",
            f"each worker serves one stream at a time: {known.workers + 1} readers and the site is down",
            'worker_class = "gevent" (pip install "flask-llmstream[gunicorn]")',
        )
        if known.timeout:
            yield _finding(
                known, "timeout-cuts-streams", "problem", "timeout",
                f"timeout = {known.timeout:g} with sync workers",
                f"a stream that takes longer than {known.timeout:g} s is killed together with its worker",
                'worker_class = "gevent", where timeout is no limit for streams',
            )


def _limits(facts: AppFacts, known: Deployment) -> Iterator[Finding]:
    if not known.timeout:
        yield _finding(
            known, "timeout-off", "warning", "timeout", "timeout = 0",
            "a worker that hangs, with all its streams, is never replaced", "timeout = 60",
        )
    if known.graceful_timeout < _SHORT_STOP:
        yield _finding(
            known, "stop-too-short", "warning", "graceful_timeout",
            f"graceful_timeout = {known.graceful_timeout:g}",
            "gunicorn kills what is open then, without a `finally`: streams are cut with each deployment",
            "graceful_timeout = 30, and let the supervisor wait longer than that",
        )
    settings = facts.settings
    resumable = any(route.resumable for route in facts.routes)
    if settings is not None and resumable and settings.grace > known.graceful_timeout >= _SHORT_STOP:
        yield _finding(
            known, "grace-beyond-stop", "warning", "LLMSTREAM_GRACE",
            f"grace is {settings.grace:g} s, graceful_timeout {known.graceful_timeout:g} s",
            "a stream whose reader has left is promised more time than a worker that stops has",
            "graceful_timeout longer than LLMSTREAM_GRACE, or a shorter grace",
        )
    if known.max_requests and known.workers > 1 and not known.max_requests_jitter:
        yield _finding(
            known, "recycled-together", "warning", "max_requests",
            f"max_requests = {known.max_requests} without max_requests_jitter",
            "all workers are recycled at about the same time, and their long streams end with them",
            f"max_requests_jitter = {max(1, known.max_requests // 5)}, or no max_requests",
        )


def _patching(known: Deployment) -> Iterator[Finding]:
    if not known.is_gevent:
        return
    if known.preload and not known.patched:
        yield _finding(
            known, "preload-unpatched", "problem", "preload_app", "preload_app with a gevent worker",
            "the app is imported before gevent has patched the standard library: TLS fails with"
            " RecursionError, and what was imported by name blocks all streams",
            "preload_app = False, or as the first line of the configuration:\n"
            "from gevent import monkey; monkey.patch_all()",
        )
    if known.early:
        yield _finding(
            known, "config-imports-early", "problem", "the configuration",
            f"it has imported {', '.join(known.early)} before gevent has patched ssl",
            "TLS fails with RecursionError in the workers",
            "import nothing there that opens sockets, or patch in its first line:\n"
            "from gevent import monkey; monkey.patch_all()",
        )


def _http2(known: Deployment) -> Iterator[Finding]:
    if known.http2:
        yield _finding(
            known, "http2-in-gunicorn", "note" if known.http2_streams else "problem", "http_protocols",
            "gunicorn speaks HTTP/2 itself",
            "the streams of one connection are served one after the other" if known.http2_streams
            else "this gunicorn collects HTTP/2 responses before it sends any of them",
            "let a proxy speak HTTP/2, and HTTP/1.1 with gunicorn",
        )
