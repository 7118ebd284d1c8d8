"""Greenlets or threads: the only module that knows which of the two the process runs on.

Decisions
    1. The choice is made at the first request of a process, never at import: under
       ``gunicorn --preload`` the app is imported before gevent patches anything.
    2. It is made again after a fork (the process id is part of the key): an epoll object, a hub
       or a lock must never be shared with a parent.
    3. Nothing is patched here. ``select.epoll`` and ``select.poll``, which gevent removes from
       ``select``, are taken from its own store of originals.
"""

from __future__ import annotations

import _socket
import _thread
import ctypes
import gc
import os
import select
import socket
import sys
import threading
import time
from typing import Any, Callable, Dict, Optional, Tuple, Type, TypeVar

from flask_llmstream.exceptions import StreamCancelled

__all__ = ["Runtime", "Turns", "current_runtime", "frame_of_thread", "per_process", "shut_down"]

#: Whether frames of other threads are made into objects while the interpreter's list of threads is locked.
#: If that starts the garbage collector, whose finalizers let others run, and one of those begins or ends a
#: thread, the process stands still for ever (python/cpython#106883).
_FRAMES_ARE_MADE = sys.version_info[:2] == (3, 11)


class _NoLoop:
    """Of threads: nobody sees whether others have had a turn."""

    iteration = 0


class _UncountedLoop:
    """Of a loop that does not count (libuv): whoever took so long has blocked."""

    @property
    def iteration(self) -> int:
        return int(time.monotonic() * 20000)


class Runtime:
    """What the stream needs of its surroundings; one object per process.

    This base runs on threads; :class:`GreenletRuntime` replaces what is different on gevent.
    """

    #: How it is called in logs and reports.
    name = "threads"
    #: Whether something can be run the moment a producer blocks.
    sees_blocking = False

    def __init__(self) -> None:
        self._poll: Callable[[], Any] = select.poll
        #: Is held while something is decided that happens once; nobody waits for anything inside.
        self.once: Any = threading.RLock()

    #: Seconds on a clock that never goes back.
    now = staticmethod(time.monotonic)

    #: Has ``iteration``, a number that changes when others have had a turn; always 0 on threads.
    loop: Any = _NoLoop

    def ident(self) -> int:
        """Return a number for the running thread or greenlet."""
        return threading.get_ident()

    def task(self) -> Any:
        """Return a handle on the running thread or greenlet, for :meth:`frame`."""
        return threading.get_ident()

    def lock(self) -> Any:
        """Return a lock with ``acquire(blocking)`` and ``release()``."""
        return threading.Lock()

    def flag(self) -> Any:
        """Return an event flag with ``set``, ``clear`` and ``wait(timeout)``."""
        return threading.Event()

    def epoll(self) -> Optional[Any]:
        """Return a new epoll object, or ``None`` where the system has none."""
        make = getattr(select, "epoll", None)
        return None if make is None else make()

    def spawn(self, run: Callable[[], None], name: str) -> Any:
        """Run *run* in the background until the process ends."""
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def watch(self, epoll: Any, ready: Callable[[float], None]) -> Any:
        """Call ``ready(timeout)`` again and again; it polls *epoll* and may wait that long.

        On gevent it is called in the hub, with a timeout of 0, when there is something to see.
        """

        def loop() -> None:
            while True:
                ready(-1)

        return self.spawn(loop, "llmstream-watcher")

    def in_turn(self) -> Turns:
        """Return what calls functions one at a time, though they block."""
        return Turns()

    def call_soon(self, function: Callable[[], Any]) -> None:
        """Run *function* where cancelling is possible: here, or on gevent in the hub."""
        function()

    def pass_turn(self) -> None:
        """Let others run; threads are switched by the interpreter."""

    def when_blocked(
        self, function: Callable[[], Any], wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Run *function* as soon as the running greenlet blocks, if *wanted* says so then."""
        raise NotImplementedError("threads cannot be seen blocking")  # pragma: no cover

    def writable(self, fd: int) -> bool:
        """Whether a small write to *fd* will not block."""
        poll = self._poll()
        try:
            poll.register(fd, select.POLLOUT)
            events = poll.poll(0)
        except (OSError, ValueError):
            return True  # let the write itself say what is wrong
        return bool(events)

    def readable(self, sock: Any) -> bool:
        """Whether a read from *sock* would return at once, be it with an error."""
        poll = self._poll()
        try:
            poll.register(sock, select.POLLIN)
            events = poll.poll(0)
        except (OSError, ValueError):
            return True
        return bool(events)

    def frame(self, task: Any) -> Any:
        """Return the innermost frame of *task* while it is blocked."""
        with self.once:
            return frame_of_thread(task)

    def throw(
        self, task: Any, exception: Type[StreamCancelled], sock: Any = None
    ) -> bool:
        """Raise *exception* in *task*, breaking *sock*; return whether that is possible here.

        On threads *sock* is what the thread reads, and is shut down to wake it: the exception is
        raised when the interpreter next runs there. Only CPython can do it.
        """
        if not hasattr(getattr(ctypes, "pythonapi", None), "PyThreadState_SetAsyncExc"):
            return False  # pragma: no cover - PyPy
        set_exception, shutdown = ctypes.pythonapi.PyThreadState_SetAsyncExc, _socket.socket.shutdown
        ident, thrown = ctypes.c_ulong(task), ctypes.py_object(exception)
        # No call of a Python function may come between these two: under a tracer CPython 3.11
        # waits in it, holding the interpreter, until the exception has been raised.
        found = set_exception(ident, thrown)
        try:
            shutdown(sock, socket.SHUT_RDWR)
        except (OSError, TypeError, ValueError):
            pass  # gone already, or nothing to be woken from
        return bool(found)

    def unthrow(self) -> None:
        """Take back what was to be raised in this thread and has not been raised yet."""
        # Not by setting NULL: CPython 3.11 then keeps its flag for pending exceptions, and spins
        # for ever as soon as something traces. Another exception takes the place of the one that
        # may be waiting, and comes at once.
        try:
            while self.throw(threading.get_ident(), _Drained):
                time.sleep(0)
        except _Drained:
            pass


class Turns:
    """Calls functions one at a time, each in the thread of its caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, function: Callable[[], Any]) -> Any:
        """Return what *function* returns."""
        with self._lock:
            return function()

    def close(self) -> None:
        """Let go of what calls them."""


class _Drained(StreamCancelled):
    """Takes the place of an exception that must not be raised any more."""


def frame_of_thread(ident: int) -> Any:
    """Return the innermost frame of the thread *ident*; to be called by one thread at a time."""
    if not (_FRAMES_ARE_MADE and gc.isenabled()):
        return sys._current_frames().get(ident)
    gc.disable()
    try:
        return sys._current_frames().get(ident)
    finally:
        gc.enable()


def shut_down(sock: Any) -> None:
    """Break the connection of *sock* under its reader, without waiting and without raising.

    Not ``SSLSocket.shutdown``, which drops the TLS state that the reader is using.
    """
    try:
        raw = getattr(sock, "_sock", sock)  # gevent keeps the real one inside
        _socket.socket.shutdown(raw, socket.SHUT_RDWR)
    except (OSError, TypeError, ValueError):
        pass  # gone already, which is what was wanted


class GreenletRuntime(Runtime):
    """The same on gevent's hub."""

    name = "gevent"
    sees_blocking = True

    def __init__(self) -> None:
        super().__init__()
        import gevent
        import gevent.event
        import gevent.lock
        import gevent.monkey
        import greenlet

        self._gevent = gevent
        self._hub = gevent.get_hub()
        self._greenlet = greenlet.greenlet
        self.task = greenlet.getcurrent  # type: ignore[method-assign]
        self.lock = gevent.lock.Semaphore  # type: ignore[method-assign]
        self.flag = _make_flag_class(gevent.event.Event)  # type: ignore[method-assign]
        self._poll = _original("select", "poll") or select.poll
        loop = self._loop = self._hub.loop
        self.loop = loop if hasattr(loop, "iteration") else _UncountedLoop()
        self._call_soon = getattr(loop, "run_callback_threadsafe", loop.run_callback)

    def ident(self) -> int:
        return id(self.task())

    def epoll(self) -> Optional[Any]:
        make = _original("select", "epoll")
        return None if make is None else make()

    def spawn(self, run: Callable[[], None], name: str) -> Any:
        return self._gevent.spawn(run)

    def watch(self, epoll: Any, ready: Callable[[float], None]) -> Any:
        # An epoll descriptor is itself readable when it has something to tell, so the hub
        # watches one descriptor for all clients, and RDHUP, which neither libev nor libuv
        # know, comes with it.
        watcher = self._hub.loop.io(epoll.fileno(), 1)
        watcher.start(ready, 0)
        return watcher

    def every(self, seconds: float, function: Callable[[], Any]) -> Any:
        """Call *function* in the hub every so many seconds; return what has ``stop()`` and ``close()``."""
        timer = self._loop.timer(seconds, seconds, ref=False)
        timer.start(function)
        return timer

    def spawn_native(self, function: Callable[[], Any]) -> None:
        """Run *function* in a thread that gevent knows nothing of; it must wait with :meth:`native_sleep`."""
        (_original("_thread", "start_new_thread") or _thread.start_new_thread)(function, ())

    def native_sleep(self, seconds: float) -> None:
        """Have this thread, not this greenlet, wait."""
        (_original("time", "sleep") or time.sleep)(seconds)

    def native_ident(self) -> int:
        """Return the number of the running thread."""
        ident: int = (_original("_thread", "get_ident") or _thread.get_ident)()
        return ident

    def in_turn(self) -> Turns:
        return _NativeTurns()

    def call_soon(self, function: Callable[[], Any]) -> None:
        if self.task() is self._hub:
            function()
        else:
            self._call_soon(function)

    def pass_turn(self) -> None:
        # Not sleep(0): gevent runs fifty of those before it looks at a socket again. Nor a timer:
        # older ones wait a millisecond for it. This comes back when every socket had its turn.
        turn = self._loop.idle(priority=getattr(self._loop, "MAXPRI", None))
        try:
            self._hub.wait(turn)
        finally:
            turn.close()

    def when_blocked(
        self, function: Callable[[], Any], wanted: Callable[[], bool] = lambda: True
    ) -> None:
        self._hub.loop.run_callback(self._run_wanted, function, wanted)

    def _run_wanted(self, function: Callable[[], Any], wanted: Callable[[], bool]) -> None:
        # A callback of the hub itself must not block, and the write that this is made for may, if
        # only on a TLS connection. But a greenlet costs as much as fifty items: not in vain.
        if wanted():
            self._greenlet(function, self._hub).switch()

    def frame(self, task: Any) -> Any:
        return task.gr_frame

    def throw(
        self, task: Any, exception: Type[StreamCancelled], sock: Any = None
    ) -> bool:
        if sock is not None:
            shut_down(sock)
        # Synchronous, from the hub, as gevent.Timeout does. gevent.kill(block=False) would be
        # late: it might hit the next request on the same connection.
        task.throw(exception())
        return True

    def unthrow(self) -> None:
        """Nothing is ever pending: :meth:`throw` has raised when it returns."""


def _make_flag_class(event: Any) -> Any:
    """Return gevent's Event, minus one way to wait for ever.

    Whoever waits for a flag that is set, while those who waited before are being woken, is put
    behind them without a timeout, and has been seen to stay there.
    """

    class Flag(event):  # type: ignore[misc]
        def wait(self, timeout: Optional[float] = None) -> bool:
            return self.is_set() or bool(super().wait(timeout))

    return Flag


class _NativeTurns(Turns):
    """Calls functions in a native thread: what blocks there holds up nobody but its caller."""

    def __init__(self) -> None:
        from gevent.threadpool import ThreadPool

        self._pool = ThreadPool(1)
        # For callers in other native threads, whom the pool lets do it themselves.
        self._lock = (_original("_thread", "allocate_lock") or _thread.allocate_lock)()

    def __call__(self, function: Callable[[], Any]) -> Any:
        result, error = self._pool.apply(self._run, (function,))
        if error is None:
            return result
        try:
            raise error
        finally:
            del error  # which holds this frame

    def _run(self, function: Callable[[], Any]) -> Tuple[Any, Optional[BaseException]]:
        # Nothing may be raised in the pool: the hub would print it.
        try:
            with self._lock:
                return function(), None
        except BaseException as error:
            return None, error

    def close(self) -> None:
        self._pool.kill()


def _original(module: str, name: str) -> Optional[Any]:
    """Return what gevent has taken away or replaced."""
    import gevent.monkey

    try:
        return gevent.monkey.get_original(module, name)
    except AttributeError:
        return None


def _on_gevent() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


_Made = TypeVar("_Made")


def per_process(make: Callable[[], _Made]) -> Callable[[], _Made]:
    """Return a function that gives each process its own object, made at the first call.

    What *make* returns must start nothing by itself: two threads may come at the same time, and
    all but one object are thrown away.
    """
    made: Dict[int, _Made] = {}

    def get() -> _Made:
        try:
            return made[os.getpid()]
        except KeyError:
            pass
        pid = os.getpid()
        for parent in [key for key in made if key != pid]:
            made.pop(parent, None)
        return made.setdefault(pid, make())

    return get


#: Return the :class:`Runtime` of this process.
current_runtime = per_process(lambda: GreenletRuntime() if _on_gevent() else Runtime())
