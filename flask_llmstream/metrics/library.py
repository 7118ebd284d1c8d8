"""What is taken of ``prometheus_client``, which is optional; and its multiprocess mode, where it is on.

Decisions
    1. Where the deployment has set ``PROMETHEUS_MULTIPROC_DIR`` our values are the library's own, in
       its files: an exporter that is there already shows them, too.
"""

from __future__ import annotations

import contextlib
import glob
import os
from typing import Any, Iterable, List

__all__ = ["LibraryValues", "multiprocess_folder", "need_library"]

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def need_library() -> None:
    """Make sure that the library can be imported.

    :raises RuntimeError: it is not installed.
    """
    try:
        import prometheus_client  # noqa: F401
    except ImportError as exc:
        raise RuntimeError(
            "LLMSTREAM_METRICS needs prometheus-client, which is not installed. Run:"
            " pip install 'flask-llmstream[metrics]'"
        ) from exc


def multiprocess_folder() -> str:
    """Return the folder of the library's multiprocess mode; empty where that is off."""
    return os.environ.get(_VARIABLE) or os.environ.get(_VARIABLE.lower()) or ""


class LibraryValues:
    """Values in the files of the library's multiprocess mode.

    :param folder: where those are.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def make(
        self, type: str, family: str, sample: str, names: List[str], labels: List[str], help: str
    ) -> Any:
        """Return the value of one sample, which has ``inc(amount)`` and ``set(value)``."""
        from prometheus_client import values

        mode = "livesum" if type == "gauge" else ""
        return values.ValueClass(type, family, sample, names, labels, help, multiprocess_mode=mode)

    def collect(self) -> Iterable[Any]:
        """Return the metrics of all workers, ours and others'."""
        from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

        for path in glob.glob(os.path.join(self._folder, "gauge_live*_*.db")):
            pid = os.path.basename(path)[:-3].rpartition("_")[2]
            if pid.isdigit() and not _is_alive(int(pid)):
                with contextlib.suppress(FileNotFoundError):  # another worker was faster
                    mark_process_dead(int(pid), self._folder)  # its master has no hook that does it
        return list(MultiProcessCollector(None, self._folder).collect())

    def close(self) -> None:
        """The library keeps its files open."""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True
