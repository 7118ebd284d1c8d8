"""The listener of an event log in Redis, without Redis: when it ends, and goes on."""

from __future__ import annotations

import threading
from typing import Any, Callable, List, Set, Tuple

from flask_llmstream.eventlog.redis_listener import Listener, ListenerHost


class Runtime:
    """Runs nothing by itself; its clock is moved by whoever reads."""

    def __init__(self) -> None:
        self.time = 0.0
        self.spawned: List[Callable[[], None]] = []
        self.lock = threading.Lock
        self.flag = threading.Event

    def now(self) -> float:
        return self.time

    def spawn(self, run: Callable[[], None], name: str) -> None:
        self.spawned.append(run)


class Connection:
    """One on which nothing is said."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._sock = self

    def can_read(self, timeout: float) -> bool:
        self._runtime.time += 1.0
        return False

    def send_command(self, *command: Any) -> None:
        pass

    def disconnect(self) -> None:
        pass

    def close(self) -> None:
        pass


class Clients:
    """Counts connections."""

    errors = (OSError,)

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.connections = 0

    def listen(self) -> Tuple[Any, Any]:
        self.connections += 1
        return None, Connection(self._runtime)

    def drop(self, client: Any) -> None:
        pass


class Host(ListenerHost):
    """Needs a listener again in the moment in which that ends."""

    def __init__(self) -> None:
        self.listener: Any = None
        self.looks = 0
        self.losses = 0

    def needed(self) -> bool:
        if self.losses == 1:
            self.looks += 1
        return self.losses == 1 and self.looks < 5

    def channels(self) -> Set[bytes]:
        return set()

    def lost(self) -> None:
        self.losses += 1
        if self.losses == 1:
            self.listener.want(b"news")

    def left(self, channel: bytes) -> None:
        pass

    def tick(self) -> None:
        pass


def test_listener_that_is_wanted_while_it_ends_goes_on_and_has_no_second_one_beside_it() -> None:
    runtime, host = Runtime(), Host()
    clients = Clients(runtime)
    host.listener = Listener(host, clients, runtime, 5.0)  # type: ignore[arg-type]
    host.listener.want(b"first")
    runtime.spawned[0]()
    # A second one would have its connection forgotten by the first, which tidies up behind it.
    assert len(runtime.spawned) == 1
    assert (clients.connections, host.losses) == (2, 2)
    host.listener.want(b"another")  # it has ended for good
    assert len(runtime.spawned) == 2
