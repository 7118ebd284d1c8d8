"""What the kernel knows of a worker: its memory, and what its file descriptors are."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Dict, Tuple

__all__ = ["descriptors", "memory", "tasks"]


def memory(pid: int) -> int:
    """Return the KiB that are the process's own (PSS of anonymous memory).

    The files that it has mapped are left out: what of them counts as its own depends on how many other
    processes have mapped them, too.
    """
    found = {"Pss": 0, "Pss_Anon": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0])
    return found["Pss_Anon"] or found["Pss"]


def tasks(pid: int) -> int:
    """Return how many threads the process has, for the kernel."""
    return len(os.listdir(f"/proc/{pid}/task"))


def _connections() -> Dict[str, Tuple[int, int, bool]]:
    """Return the ports of both ends of all TCP connections, and whether they listen, by their inode."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        here, there = (int(field.rpartition(":")[2], 16) for field in fields[1:3])
        found[fields[9]] = here, there, fields[3] == "0A"
    return found


def descriptors(pid: int, ports: Dict[int, str]) -> Dict[str, int]:
    """Return how many file descriptors the process has, by what they are.

    :param ports: names of known ports.
    """
    connections = _connections()
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed just now
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    # Those, too, that were opened meanwhile.
    connections = {**_connections(), **connections}
    found: Counter[str] = Counter()
    for link in links:
        inode = re.match(r"socket:\[(\d+)\]", link)
        if inode is None:
            found[re.sub(r"^pipe.*", "pipe", re.sub(r"\d{3,}|(?<=wgunicorn-)\w+", "#", link))] += 1
        elif inode.group(1) in connections:
            here, there, listens = connections[inode.group(1)]
            if listens:
                found["TCP listener"] += 1
            else:
                kind = f"to {ports[there]}" if there in ports else f"from {ports.get(here, 'elsewhere')}"
                found[f"TCP {kind}"] += 1
        else:
            found["other socket"] += 1
    return dict(found)
