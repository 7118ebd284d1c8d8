"""What a worker knows of itself, told over a socket of its own: a request would land on any of them.

``serve(folder)``, called when the app is imported, listens at ``<folder>/<pid>.sock``. Each connection asks
with one line: ``counts``, or ``let go``, which closes idle connections to the upstream first.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import socket
import sys
import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List

from flask_llmstream import current
from flask_llmstream.disconnect import current_watcher
from flask_llmstream.journal import current_journals
from flask_llmstream.stream import Stream
from flask_llmstream.ticker import current_ticker
from flask_llmstream.upstream.base import DeltaSource

__all__ = ["ask", "serve"]

#: Kinds of objects that are told, the most frequent ones.
_KINDS = 300


def ask(folder: Path, pid: int, question: str = "counts") -> Dict[str, Any]:
    """Return what the worker *pid* answers.

    :raises OSError: if there is none.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(folder / f"{pid}.sock"))
        sock.sendall(question.encode() + b"\n")
        with sock.makefile("rb") as reader:
            answer: Dict[str, Any] = json.loads(reader.read().decode())
            return answer


def serve(folder: str, let_go: Callable[[], None]) -> None:
    """Answer in a thread or greenlet of its own, as long as the process lives.

    :param let_go: closes what the app keeps to use it again.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.join(folder, f"{os.getpid()}.sock"))
    listener.listen(16)

    def answer() -> None:
        while True:
            sock, _ = listener.accept()
            with sock, sock.makefile("rb") as reader:
                if reader.readline() == b"let go\n":
                    let_go()
                try:
                    sock.sendall(json.dumps(counts()).encode())
                except OSError:
                    pass  # the asker has lost patience

    threading.Thread(target=answer, name="soak-state", daemon=True).start()


def counts() -> Dict[str, Any]:
    """Return what is alive in this process."""
    for _ in range(3):
        gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        # What was freed, and is kept back for later, is not grown.
        ctypes.CDLL(None).malloc_trim(0)
    blocks = sys.getallocatedblocks()
    objects = gc.get_objects()
    kinds = Counter(f"{type(each).__module__}.{type(each).__name__}" for each in objects)
    streams = [each for each in objects if isinstance(each, Stream)]
    threads = Counter(re.sub(r"\d+", "#", thread.name) for thread in threading.enumerate())
    return {
        "alive": {
            "streams": len(streams),
            "streams running": len(current.streams()),
            "channels": len(current._channels),
            "calls of the upstream": sum(isinstance(each, DeltaSource) for each in objects),
            "clients watched": len(current_watcher()),
            "ticker's entries": len(current_ticker()),
            "journal's writers": sum(len(each._writers) for each in current_journals().values()),
        },
        "streams": [repr(each) for each in streams[:5]],
        "greenlets": _greenlets(objects),
        "threads": dict(threads),
        "blocks": blocks,
        "kinds": dict(kinds.most_common(_KINDS)),
        "gc": len(objects),
    }


def _greenlets(objects: List[Any]) -> Dict[str, int]:
    module = sys.modules.get("greenlet")
    if module is None:
        return {}
    found: Counter[str] = Counter()
    for each in objects:
        if isinstance(each, weakref.ProxyTypes) or not isinstance(each, module.greenlet) or each.dead:
            continue
        found[_name_of(each, module)] += 1
    return dict(found)


def _name_of(greenlet: Any, module: Any) -> str:
    """Return where *greenlet* has begun."""
    if greenlet is module.getcurrent():
        return "who counts"
    frame = greenlet.gr_frame
    if frame is None:
        return f"{type(greenlet).__name__}, not begun"
    while frame.f_back is not None:
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}: {frame.f_code.co_name}"
