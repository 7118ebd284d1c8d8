"""A network of our own, in which packets can vanish.

What is started inside the block (servers, threads, sockets) sees a loopback interface that nobody else
has. A rule there drops packets without a word to either side: no FIN, no RST, as when a cable is cut, a
machine dies or a firewall forgets a connection. The network ends with the last who uses it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from typing import Any

import pytest

_CLONE_NEWNET = 0x40000000


class PrivateNetwork:
    """As a context manager, moves the calling thread into a network namespace of its own."""

    def __enter__(self) -> PrivateNetwork:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        if self._libc.unshare(_CLONE_NEWNET):
            error = os.strerror(ctypes.get_errno())
            pytest.fail(f"no network namespace of our own: {error}; make faults needs root", pytrace=False)
        try:
            _run("ip", "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert not self._libc.setns(self._outside, _CLONE_NEWNET), os.strerror(ctypes.get_errno())
        os.close(self._outside)

    def black_hole(self, port: int) -> None:
        """Drop whatever goes to *port* or comes from it."""
        for end in ("--dport", "--sport"):
            _run("iptables", "-w", "-A", "INPUT", "-p", "tcp", end, str(port), "-j", "DROP")

    def heal(self) -> None:
        """Let everything through again."""
        _run("iptables", "-w", "-F")


def _run(program: str, *arguments: str) -> None:
    path: Any = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"{program} is not installed; scripts/bootstrap test installs it", pytrace=False)
    done = subprocess.run([path, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()
