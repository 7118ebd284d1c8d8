"""Values that the workers of one machine share through a folder of ours.

The files are those of ``prometheus_client``'s multiprocess mode, written and read by its own code:
that can be pointed at a folder, and the other metrics of the app stay what they are.

Decisions
    1. A process has a name of its own, made by chance, and not its pid, which comes back and which two
       containers may both have. It lives as long as it holds the lock on ``<name>.alive``: the system
       takes that away however it ends, so no hook of the server is needed.
    2. What the dead have counted is added up in one file, so that counters never fall and a folder
       does not grow with each restart. A journal makes that happen wholly or not at all.
    3. Whoever adds up or reads holds the folder's lock; whoever counts does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import struct
import threading
import time
from typing import Any, Dict, Iterable, Iterator, List, Optional

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderValues", "layout_name"]

#: What is added up when a process has gone; its gauges vanish.
_LASTING = ("counter", "histogram")
#: Where that is.
_GONE = "gone"
_ALIVE = ".alive"
_JOURNAL = "journal.json"
#: Seconds for which the folder's lock is waited for, and between two attempts.
_PATIENCE, _PAUSE = 5.0, 0.005


def layout_name(table: Iterable[Any]) -> str:
    """Return a name for what the files hold: versions that count differently do not mix."""
    from prometheus_client import mmap_dict

    has_timestamps = hasattr(mmap_dict, "_pack_two_doubles")
    return hashlib.sha256(repr((has_timestamps, tuple(table))).encode()).hexdigest()[:8]


class _Value:
    """One number in a file."""

    __slots__ = ("_file", "_key", "_value")

    def __init__(self, file: _File, key: str) -> None:
        self._file = file
        self._key = key
        self._value = file.read(key)

    def inc(self, amount: float) -> None:
        """Add *amount*."""
        value = self._value = self._value + amount
        self._file.write(self._key, value)

    def set(self, value: float) -> None:
        """Have it be *value*."""
        self._value = value
        self._file.write(self._key, value)


class _File:
    """The library's dict of numbers, whose methods have changed over time."""

    def __init__(self, path: str) -> None:
        from prometheus_client.mmap_dict import MmapedDict

        self._dict: Any = MmapedDict(path)
        self._lock = threading.Lock()
        self._rest: Any = None

    def read(self, key: str) -> float:
        with self._lock:
            found = self._dict.read_value(key)
            # Since 0.18 there is a time beside each number.
            self._rest = (0.0,) if isinstance(found, tuple) else ()
        return float(found[0] if self._rest else found)

    def write(self, key: str, value: float) -> None:
        with self._lock:
            if self._dict is not None:
                self._dict.write_value(key, value, *self._rest)

    def close(self) -> None:
        with self._lock:
            self._dict.close()
            self._dict = None


class FolderValues:
    """Values of this process in *folder*, and the sum of all.

    :param folder: a private one that all workers know.
    """

    def __init__(self, folder: str) -> None:
        if fcntl is None:  # pragma: no cover - Windows
            raise RuntimeError("LLMSTREAM_METRICS needs flock(), which this system does not have")
        self._folder = folder
        self._name = secrets.token_hex(8)
        with self._locked():
            self._sweep()
            self._alive: Optional[int] = self._open_locked(self._name + _ALIVE, create=True)
            # All at once, and holding the lock: a reader could not read a file without a head.
            self._files = {
                type: _File(self._path(f"{prefix}_{self._name}.db"))
                for type, prefix in (("counter",) * 2, ("histogram",) * 2, ("gauge", "gauge_livesum"))
            }

    def make(
        self, type: str, family: str, sample: str, names: List[str], labels: List[str], help: str
    ) -> Any:
        """Return the value of one sample, which has ``inc(amount)`` and ``set(value)``."""
        from prometheus_client.mmap_dict import mmap_key

        return _Value(self._files[type], mmap_key(family, sample, names, labels, help))

    def collect(self) -> Iterable[Any]:
        """Return the metrics of all workers.

        :raises TimeoutError: somebody else has been reading the folder for seconds.
        """
        from prometheus_client.multiprocess import MultiProcessCollector

        with self._locked():
            self._sweep()
            return list(MultiProcessCollector(None, self._folder).collect())

    def close(self) -> None:
        """Count no more: this process is as good as gone."""
        for file in self._files.values():
            file.close()
        if self._alive is not None:
            os.close(self._alive)
            self._alive = None

    def __del__(self) -> None:
        if getattr(self, "_alive", None) is not None:
            self.close()

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _open_locked(self, name: str, create: bool = False) -> Optional[int]:
        """Return the file called *name*, locked; ``None`` where somebody else has locked it."""
        try:
            file = os.open(self._path(name), os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
        except FileNotFoundError:
            if create:
                raise  # the folder has gone
            return None
        try:
            # Not lockf(): that is one lock for all that a process opens, and lost with the first close.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return None
        return file

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock; waiting for it in turns, so that a greenlet lets others run."""
        until = time.monotonic() + _PATIENCE
        file = self._open_locked("lock", create=True)
        while file is None:
            if time.monotonic() > until:
                raise TimeoutError(f"{self._folder} has been locked by another process for {_PATIENCE:.0f} s")
            time.sleep(_PAUSE)
            file = self._open_locked("lock", create=True)
        try:
            self._finish_sweep()
            yield
        finally:
            os.close(file)

    # -- those who have gone ----------------------------------------------------------------

    def _sweep(self) -> None:
        """Add up what processes have left behind."""
        dead, held = [], []
        for entry in os.listdir(self._folder):
            if entry.endswith(_ALIVE) and entry != self._name + _ALIVE:
                file = self._open_locked(entry)
                if file is not None:
                    held.append(file)
                    dead.append(entry[: -len(_ALIVE)])
        try:
            if dead:
                for type in _LASTING:
                    self._add_up(type, dead)
                self._note(dead)
                self._finish_sweep()
        finally:
            for file in held:
                os.close(file)

    def _add_up(self, type: str, dead: List[str]) -> None:
        from prometheus_client.mmap_dict import MmapedDict

        total: Dict[str, float] = {}
        for name in [_GONE, *dead]:
            try:
                rows = list(MmapedDict.read_all_values_from_file(self._path(f"{type}_{name}.db")))
            except (FileNotFoundError, struct.error):
                continue  # its process was killed before the file was there, or had anything in it
            for row in rows:
                total[row[0]] = total.get(row[0], 0.0) + row[1]
        path = self._path(f"{type}_{_GONE}.new")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of somebody who was interrupted before the journal was there
        if total:
            file = _File(path)
            for key, value in total.items():
                file.read(key)
                file.write(key, value)
            file.close()

    def _note(self, dead: List[str]) -> None:
        draft = self._path(_JOURNAL + ".new")
        with open(draft, "w", encoding="ascii") as stream:
            json.dump(dead, stream)
        os.replace(draft, self._path(_JOURNAL))

    def _finish_sweep(self) -> None:
        """Do what the journal says; harmless where part of it was done already."""
        try:
            with open(self._path(_JOURNAL), encoding="ascii") as stream:
                dead = json.load(stream)
        except FileNotFoundError:
            return
        for type in _LASTING:
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._path(f"{type}_{_GONE}.new"), self._path(f"{type}_{_GONE}.db"))
        for name in dead:
            for file in (f"counter_{name}.db", f"histogram_{name}.db", f"gauge_livesum_{name}.db"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path(file))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(name + _ALIVE))
        os.unlink(self._path(_JOURNAL))
