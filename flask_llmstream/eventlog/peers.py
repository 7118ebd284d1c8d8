"""Wake-ups between the processes of one machine: a datagram to whoever listens.

A process that waits binds a socket in a directory that all of them know; a process that has
changed something sends a word to every socket there. Nothing depends on the arrival of a word:
whoever waits also looks by itself, now and then.

Decisions
    1. The directory is readable for its owner only, and used only if it is his: anybody could make
       one of that name in a directory for temporary files.
    2. A socket that refuses is one whose process has gone, and is removed by whoever finds it.
"""

from __future__ import annotations

import _socket
import hashlib
import os
import socket
import stat
import tempfile
import uuid
from typing import Any, List, Optional

from flask_llmstream.runtime import Runtime

__all__ = ["Ears", "directory_for", "tell"]

#: Bytes of a socket's path that every system takes; Linux allows 107, macOS 103.
_LONGEST_PATH = 100

#: Bytes of a message that :meth:`Ears.receive` takes.
_LONGEST_MESSAGE = 65536

_SUFFIX = ".sock"


def directory_for(path: str) -> str:
    """Return the directory of the sockets for the file at *path*, which need not exist."""
    beside = os.path.realpath(path) + "-peers"
    if len(os.fsencode(beside)) + 34 <= _LONGEST_PATH:
        return beside
    digest = hashlib.sha256(os.fsencode(beside)).hexdigest()[:24]
    return os.path.join(tempfile.gettempdir(), f"llmstream-{digest}")


def _is_ours(directory: str) -> bool:
    found = os.lstat(directory)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def tell(directory: str, message: bytes, own: Optional[str] = None) -> None:
    """Send *message* to everybody who listens in *directory* but the socket at *own*; never blocks."""
    try:
        names = os.listdir(directory)
    except OSError:
        return  # nobody has ever listened
    paths = [os.path.join(directory, name) for name in names if name.endswith(_SUFFIX)]
    paths = [path for path in paths if path != own]
    if not paths or not _is_ours(directory):
        return
    # Not gevent's: this never waits.
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        for path in paths:
            try:
                sock.sendto(message, path)
            except ConnectionRefusedError:
                _remove(path)
            except OSError:
                pass  # gone, or so busy that it will look by itself
    finally:
        sock.close()


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # somebody else was faster


class Ears:
    """One listener: a socket where that is possible, and otherwise a flag that :meth:`kick` sets."""

    def __init__(self, directory: str, runtime: Runtime) -> None:
        self._runtime = runtime
        self._flag = runtime.flag()
        self._directory = directory
        #: Where the socket is; ``None`` where none could be bound.
        self.path: Optional[str] = None
        self._sock: Any = None
        #: What is sent by this comes though the socket's file may have been removed.
        self._kicking: Any = None
        try:
            self._bind(directory)
        except (OSError, AttributeError):
            pass  # a directory that may not be written, no such sockets: the slow way must do

    def _bind(self, directory: str) -> None:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        if not _is_ours(directory):
            return
        path = os.path.join(directory, uuid.uuid4().hex[:16] + _SUFFIX)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        kicking = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        try:
            sock.bind(path)
            kicking.setblocking(False)
            kicking.connect(path)
        except BaseException:
            sock.close()
            kicking.close()
            raise
        self._sock, self._kicking, self.path = sock, kicking, path

    def receive(self, timeout: float) -> List[bytes]:
        """Return what comes within *timeout* seconds; returns early, with nothing, after a kick."""
        if self._sock is None:
            self._flag.wait(timeout)
            self._flag.clear()
            return []
        self._sock.settimeout(timeout)
        try:
            return [self._sock.recv(_LONGEST_MESSAGE)]
        except socket.timeout:
            return []

    def kick(self) -> None:
        """Have :meth:`receive` return now."""
        if self._kicking is None:
            self._flag.set()
        else:
            try:
                self._kicking.send(b"")
            except OSError:
                pass  # so much has come that it will return anyway

    def is_bound(self) -> bool:
        """Whether others can send something here: nobody has removed the socket's file."""
        return self.path is not None and os.path.exists(self.path)

    def hide(self) -> None:
        """Remove the socket's file, and the directory if nobody else listens there."""
        if self.path is None:
            return
        _remove(self.path)
        try:
            os.rmdir(self._directory)
        except OSError:
            pass

    def close(self) -> None:
        """Listen no more; by the one who receives."""
        if self._sock is not None:
            self._sock.close()
            self._kicking.close()
        self.hide()
