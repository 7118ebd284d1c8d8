"""What the kernel says of processes: the CPU that they have used, the memory that they occupy."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Dict, Iterable, Iterator, List

__all__ = ["CORES", "cpu_seconds", "family", "machine", "memory_bytes", "on_core"]

#: The processors that this process may use, from the start.
CORES = sorted(os.sched_getaffinity(0))


def family(pid: int) -> List[int]:
    """Return *pid* and the processes that descend from it."""
    found = [pid]
    for each in found:
        for thread in _threads(each):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the seconds of CPU, user and system, that all threads of *pids* have used so far."""
    nanoseconds = 0
    for pid in pids:
        for thread in _threads(pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def memory_bytes(pids: Iterable[int]) -> int:
    """Return the bytes of memory that *pids* occupy (PSS: what they share with others counts in part)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
                break
        else:
            raise RuntimeError(f"the kernel does not say what process {pid} occupies")
    return total


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keep what is started in the block, processes and threads, on *core* for good."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def machine() -> Dict[str, str]:
    """Return what this machine is."""
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    system = os.uname()
    return {
        "processor": models[0] if models else system.machine,
        "cores": str(len(CORES)),
        "memory": f"{memory} MiB",
        "kernel": f"{system.sysname} {system.release}",
    }


def _threads(pid: int) -> List[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []
