"""Crowds of threads, while it is measured what the tests cover."""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Iterator


@contextlib.contextmanager
def untraced_threads() -> Iterator[None]:
    """Let no tracer into the threads that are begun inside.

    coverage remembers each thread's greenlet for as long as that lives, and forgets it by a function in
    Python. A traced CPython 3.11 never comes out of that if another thread ends in the same moment: it has
    something pending, does not do it there, and looks again. With a thousand threads it happens.
    """
    hook: Any = getattr(threading, "_trace_hook")
    threading.settrace(None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        threading.settrace(hook)
