"""The one connection of a process on which Redis tells of news; it runs only while it is needed.

Decisions
    1. Nobody else touches the connection: to have it look at its list of channels again, a message
       is sent to it, through Redis. So it can be one of TLS, and needs no pipe to wake it.
    2. A connection on which nothing was said for a while is asked whether it is alive.
"""

from __future__ import annotations

import logging
from typing import Any, List, Set

from flask_llmstream.eventlog.redis_client import RedisClients
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.runtime import Runtime, shut_down

__all__ = ["Listener", "ListenerHost"]

_log = logging.getLogger(__name__)

#: Seconds between two looks at what nobody tells of.
TICK = 1.0
#: Seconds of silence after which the connection is asked for a sign of life.
SILENCE = 5.0
#: Seconds that it stays without being needed.
IDLE = 5.0
#: Seconds before the first and, at most, before later attempts to connect again.
FIRST_BACKOFF, LAST_BACKOFF = 0.05, 2.0
#: Channels in one command.
_AT_ONCE = 500


class ListenerHost:
    """What a listener works for."""

    #: The channel that it always listens to.
    home = b""

    def needed(self) -> bool:
        """Whether anybody wants to hear anything."""
        raise NotImplementedError

    def channels(self) -> Set[bytes]:
        """Return the other channels that it shall listen to."""
        raise NotImplementedError

    def confirmed(self, channel: bytes) -> None:
        """From now on nothing is missed on *channel*."""
        raise NotImplementedError

    def left(self, channel: bytes) -> None:
        """*channel* is not listened to any more."""
        raise NotImplementedError

    def heard(self, channel: bytes, message: bytes) -> None:
        """A message has come."""
        raise NotImplementedError

    def lost(self) -> None:
        """From now on everything may be missed."""
        raise NotImplementedError

    def tick(self) -> None:
        """Another second has passed."""
        raise NotImplementedError


class Listener:
    """Tells its host what Redis tells."""

    def __init__(self, host: ListenerHost, clients: RedisClients, runtime: Runtime, timeout: float) -> None:
        self._host = host
        self._clients = clients
        self._runtime = runtime
        self._timeout = timeout
        self._lock = runtime.lock()
        self._closed = runtime.flag()
        self._running = False
        self._connection: Any = None
        self._asked: Set[bytes] = set()

    def want(self, channel: bytes) -> bool:
        """Begin to listen; return whether the listener must be told to look at *channel*."""
        with self._lock:
            if self._closed.is_set():
                return False
            if not self._running:
                self._running = True
                self._runtime.spawn(self._run, "llmstream-redis")
                return False
            return self._connection is not None and channel not in self._asked

    def close(self) -> None:
        """End soon."""
        self._closed.set()
        with self._lock:
            sock = getattr(self._connection, "_sock", None)  # none after redis-py has closed it
        if sock is not None:
            shut_down(sock)

    def _run(self) -> None:
        backoff = FIRST_BACKOFF
        said = False
        while True:
            began = self._runtime.now()
            try:
                # Not before it has tidied up: whoever wants one then has this one go on.
                if self._listen() and self._done():
                    return
            except (LogUnavailable, *self._clients.errors) as error:
                if self._closed.is_set():
                    self._running = False
                    return
                if not said:
                    known = error if isinstance(error, LogUnavailable) else self._clients.failure(error)
                    _log.warning("%s; trying to listen again", known)
                said = True
            except BaseException:
                self._running = False
                raise
            if self._runtime.now() - began > 2 * LAST_BACKOFF:
                backoff, said = FIRST_BACKOFF, False
            self._closed.wait(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF)
            if self._done():
                return

    def _done(self) -> bool:
        with self._lock:
            if self._closed.is_set() or not self._host.needed():
                self._running = False
            return not self._running

    def _listen(self) -> bool:
        """Listen until nobody wants to; return true then."""
        client, connection = self._clients.listen()
        sock = connection._sock
        try:
            self._asked = set()
            with self._lock:
                self._connection = connection
            connection.send_command("SUBSCRIBE", self._host.home)
            return self._follow(connection)
        finally:
            with self._lock:
                self._connection = None
            self._host.lost()
            # Its pool does not know it as idle, so that nothing is given to anybody else.
            connection.disconnect()
            self._clients.drop(client)
            # redis-py 3 does not close a socket that is shut down already.
            sock.close()

    def _follow(self, connection: Any) -> bool:
        now = self._runtime.now
        heard = needed = ticked = now()
        asked_at = 0.0
        look = True
        while True:
            # Not for each message: there may be thousands of channels.
            if look:
                self._ask(connection)
            look = False
            if connection.can_read(timeout=max(0.01, ticked + TICK - now())):
                heard, asked_at = now(), 0.0
                look = self._take(connection.read_response())
            time = now()
            if asked_at and time - asked_at > self._timeout:
                raise TimeoutError("no sign of life")
            if not asked_at and time - heard > SILENCE:
                connection.send_command("PING")
                asked_at = time
            if time - ticked >= TICK:
                ticked, look = time, True
                self._host.tick()
            if self._host.needed():
                needed = time
            elif time - needed > IDLE:
                return True
            if self._closed.is_set():
                return True

    def _ask(self, connection: Any) -> None:
        """Subscribe to what is wanted now, and to nothing else."""
        wanted = self._host.channels()
        new: List[bytes] = list(wanted - self._asked)
        old: List[bytes] = list(self._asked - wanted)
        for channels, command in ((new, "SUBSCRIBE"), (old, "UNSUBSCRIBE")):
            for start in range(0, len(channels), _AT_ONCE):
                connection.send_command(command, *channels[start : start + _AT_ONCE])
        for channel in old:
            self._host.left(channel)
        self._asked = wanted

    def _take(self, reply: Any) -> bool:
        """Pass on what has come; return whether the channels have to be looked at."""
        kind, channel, content = (list(reply) + [b"", b"", b""])[:3]
        if kind == b"message":
            self._host.heard(channel, content)
        elif kind == b"subscribe" and (channel == self._host.home or channel in self._asked):
            self._host.confirmed(channel)
        return bool(channel == self._host.home)
