"""What the kernel knows of a worker's memory."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["peak_growth", "peak_memory", "reset_peak"]


def _field(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found, name
    return int(found.group(1)) * 1024


def reset_peak(pid: int) -> int:
    """Forget the highest memory use of *pid* so far; return its present use in bytes."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _field(pid, "VmRSS")


def peak_memory(pid: int) -> int:
    """Return the highest memory use of *pid* since :func:`reset_peak`, in bytes."""
    return _field(pid, "VmHWM")


def peak_growth(pid: int, before: int) -> int:
    """Return by how many bytes the peak of *pid* lies above *before*."""
    return peak_memory(pid) - before
