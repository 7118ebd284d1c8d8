"""Greenlets or threads: what is decided when, and what both can do."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any, Callable, Iterator, List, Tuple

import gevent
import gevent.event
import pytest

from flask_llmstream.exceptions import StreamCancelled, cancelled_because
from flask_llmstream.runtime import GreenletRuntime, Runtime, current_runtime, per_process, shut_down
from flask_llmstream.testing import wait_until

Pair = Tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.fixture(params=[Runtime, GreenletRuntime])
def runtime(request: pytest.FixtureRequest) -> Any:
    return request.param()


def run(program: str, *arguments: str) -> str:
    """Run *program* in a fresh interpreter and return what it prints."""
    command = [sys.executable, *arguments, "-c", textwrap.dedent(program)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    return subprocess.run(
        command, stdout=subprocess.PIPE, check=True, timeout=60, env=environment
    ).stdout.decode().strip()


# -- the decision --------------------------------------------------------------------------


def test_choice_is_made_at_the_first_use_and_not_at_import() -> None:
    said = run(
        """
        from flask_llmstream.runtime import current_runtime
        from gevent import monkey
        monkey.patch_all()
        print(current_runtime().name)
        """
    )
    assert said == "gevent"


def test_gevent_that_was_only_imported_is_not_used() -> None:
    said = run(
        """
        import sys
        from flask_llmstream.runtime import current_runtime
        print("gevent" in sys.modules)
        import gevent.monkey
        print(current_runtime().name)
        """
    )
    assert said.split() == ["False", "threads"]


def test_forked_process_makes_its_own() -> None:
    said = run(
        """
        import os
        from flask_llmstream.runtime import per_process
        made = []
        get = per_process(lambda: made.append(os.getpid()) or object())
        first = get()
        assert get() is first
        reader, writer = os.pipe()
        if os.fork() == 0:
            assert get() is not first and get() is get() and made[-1] == os.getpid()
            os.write(writer, b"own")
            os._exit(0)
        os.wait()
        print(os.read(reader, 9).decode(), len(made))
        """
    )
    assert said == "own 1"


def test_object_of_a_process_is_made_once() -> None:
    made: List[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    get = per_process(make)
    assert made == [] and get() is get() and len(made) == 1
    assert current_runtime() is current_runtime() and current_runtime().name == "threads"


def test_patched_process_still_finds_epoll_and_poll() -> None:
    said = run(
        """
        from gevent import monkey
        monkey.patch_all()
        import select, socket
        from flask_llmstream.runtime import current_runtime
        runtime = current_runtime()
        print(hasattr(select, "epoll"), runtime.epoll() is not None)
        left, right = socket.socketpair()
        print(runtime.writable(left.fileno()))
        """
    )
    assert said.split() == ["False", "True", "True"]


# -- what both can do ----------------------------------------------------------------------


def test_buffer_that_is_full_is_not_writable(runtime: Runtime, pair: Pair) -> None:
    left, _ = pair
    assert runtime.writable(left.fileno())
    left.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            left.send(b"x" * 65536)
    assert not runtime.writable(left.fileno())


def test_file_that_is_closed_is_writable_so_that_the_write_says_what_is_wrong(runtime: Runtime) -> None:
    sock = socket.socket()
    number = sock.fileno()
    sock.close()
    assert runtime.writable(number)
    assert runtime.writable(-1)


def test_lock_is_taken_once(runtime: Runtime) -> None:
    lock = runtime.lock()
    assert lock.acquire(False)
    assert not lock.acquire(False)
    lock.release()
    with lock:
        assert not lock.acquire(False)


def test_identities_tell_tasks_apart(runtime: Runtime) -> None:
    found: List[Any] = []
    task = runtime.spawn(lambda: found.append((runtime.ident(), runtime.task())), "test")
    task.join()
    assert found[0][0] != runtime.ident() == runtime.ident()
    assert found[0][1] != runtime.task()


def test_flag_is_waited_for(runtime: Runtime) -> None:
    flag = runtime.flag()
    assert not flag.wait(0.01)
    task = runtime.spawn(flag.set, "test")
    assert flag.wait(5)
    flag.clear()
    assert not flag.wait(0)
    task.join()


def test_clock_never_goes_back(runtime: Runtime) -> None:
    assert runtime.now() <= runtime.now() and abs(runtime.now() - time.monotonic()) < 1


def test_what_is_watched_is_told(runtime: Runtime, pair: Pair) -> None:
    left, right = pair
    epoll = runtime.epoll()
    assert epoll is not None
    told: List[Any] = []
    flag = runtime.flag()

    def ready(timeout: float) -> None:
        told.extend(epoll.poll(timeout, 10))
        flag.set()

    epoll.register(left.fileno(), select.EPOLLRDHUP | select.EPOLLONESHOT)
    watch = runtime.watch(epoll, ready)
    right.close()
    assert flag.wait(5)
    assert told[0][0] == left.fileno() and told[0][1] & select.EPOLLRDHUP
    if runtime.sees_blocking:
        watch.stop()
        watch.close()


# -- threads -------------------------------------------------------------------------------


class Blocked:
    """A thread that reads from a socket until it is interrupted."""

    def __init__(self, sock: socket.socket) -> None:
        self.error: List[BaseException] = []
        self._file = sock.makefile("rb", buffering=0)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        wait_until(lambda: self.function() == "readinto")

    def _run(self) -> None:
        try:
            self._file.read(1)
            for _ in range(1000):  # the interpreter raises it at its next occasion
                pass
        except BaseException as error:
            self.error.append(error)

    def function(self) -> Any:
        frame = Runtime().frame(self.thread.ident)
        return frame and frame.f_code.co_name

    def join(self) -> None:
        self.thread.join(10)
        assert not self.thread.is_alive()
        self._file.close()


def test_thread_that_reads_is_interrupted(pair: Pair) -> None:
    left, _ = pair
    runtime = Runtime()
    blocked = Blocked(left)
    assert runtime.throw(blocked.thread.ident, cancelled_because("stop"), left)
    blocked.join()
    (error,) = blocked.error
    assert isinstance(error, StreamCancelled) and error.reason == "stop"


def test_exception_that_was_not_raised_yet_can_be_taken_back() -> None:
    """In a thread that is busy in C, so that what is thrown has to wait."""
    runtime = Runtime()
    ready, thrown = threading.Event(), threading.Lock()
    thrown.acquire()
    raised: List[str] = []

    def run() -> None:
        try:
            ready.set()
            try:
                thrown.acquire()
            finally:
                runtime.unthrow()
        except StreamCancelled:
            raised.append("in time")
        try:
            for _ in range(10_000):
                str()
        except BaseException:
            raised.append("afterwards")

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(10)
    runtime.throw(thread.ident, cancelled_because("stop"))
    thrown.release()
    thread.join(10)
    assert not thread.is_alive()
    assert "afterwards" not in raised


def test_thread_that_is_no_more_cannot_be_interrupted() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert not Runtime().throw(thread.ident, StreamCancelled)
    assert Runtime().frame(thread.ident) is None


def test_threads_run_at_once_what_greenlets_do_in_the_hub() -> None:
    runtime = Runtime()
    called: List[int] = []
    runtime.call_soon(lambda: called.append(1))
    runtime.pass_turn()
    assert called == [1] and runtime.loop.iteration == 0 and not runtime.sees_blocking


@pytest.mark.parametrize("wrap", [lambda sock: sock, lambda sock: _Holder(sock)], ids=["plain", "gevent"])
def test_shutting_down_wakes_the_reader(pair: Pair, wrap: Callable[[Any], Any]) -> None:
    left, right = pair
    blocked = Blocked(left)
    shut_down(wrap(left))
    blocked.join()
    assert blocked.error == [] and right.recv(1) == b""


class _Holder:
    """Holds the real socket as gevent's do."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock


def test_shutting_down_never_raises() -> None:
    closed = socket.socket()
    closed.close()
    for each in (closed, socket.socket(), None, "text"):
        shut_down(each)
        if isinstance(each, socket.socket):
            each.close()


# -- greenlets -----------------------------------------------------------------------------


def test_blocking_is_seen(pair: Pair) -> None:
    from gevent.socket import wait_read

    left, right = pair
    runtime = GreenletRuntime()
    order: List[str] = []

    def source() -> None:
        runtime.when_blocked(lambda: order.append("flushed"))
        order.append("still running")
        wait_read(left.fileno())
        order.append("goes on")

    greenlet = gevent.spawn(source)
    wait_until(lambda: gevent.sleep(0.01) or "flushed" in order)
    assert order == ["still running", "flushed"]
    turns = runtime.loop.iteration
    right.send(b"x")
    greenlet.join()
    assert order[-1] == "goes on" and runtime.loop.iteration > turns


def test_function_that_runs_when_blocked_may_block_itself() -> None:
    runtime = GreenletRuntime()
    order: List[str] = []
    flushed = gevent.event.Event()

    def flush() -> None:
        gevent.sleep(0.01)
        order.append("flushed")
        flushed.set()

    def source() -> None:
        runtime.when_blocked(flush)
        flushed.wait(5)
        order.append("goes on")

    gevent.spawn(source).join()
    assert order == ["flushed", "goes on"]


def test_passing_the_turn_serves_sockets_that_are_ready(pair: Pair) -> None:
    from gevent.socket import wait_read

    left, right = pair
    runtime = GreenletRuntime()
    served: List[int] = []

    def serve() -> None:
        for _ in range(20):
            wait_read(left.fileno())
            served.append(len(served))

    def hog() -> None:
        before = runtime.loop.iteration
        for number in range(20):
            runtime.pass_turn()
            assert len(served) >= number
        assert runtime.loop.iteration >= before + 20

    server = gevent.spawn(serve)
    gevent.sleep(0)
    right.send(b"x")
    hog_greenlet = gevent.spawn(hog)
    hog_greenlet.get(timeout=10)
    server.kill()


def test_greenlet_that_blocks_is_interrupted_from_the_hub() -> None:
    runtime = GreenletRuntime()
    raised: List[BaseException] = []
    tasks: List[Any] = []

    def source() -> None:
        tasks.append(runtime.task())
        try:
            gevent.sleep(60)
        except BaseException as error:
            raised.append(error)

    greenlet = gevent.spawn(source)
    gevent.sleep(0)
    (task,) = tasks
    names = []
    frame = runtime.frame(task)
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    assert "source" in names
    in_hub: List[bool] = []

    def throw() -> None:
        in_hub.append(runtime.task() is gevent.get_hub())
        runtime.call_soon(lambda: in_hub.append(True))  # at once, from the hub itself
        assert runtime.throw(task, cancelled_because("timeout"))
        assert raised, "it has been raised when throw() returns"

    runtime.call_soon(throw)
    greenlet.join(timeout=10)
    (error,) = raised
    assert isinstance(error, StreamCancelled) and error.reason == "timeout"
    assert in_hub == [True, True]
    runtime.unthrow()


def test_flag_that_is_set_is_not_waited_for_behind_others_on_gevent() -> None:
    """gevent would put the caller behind those who are just being woken, for whom no timeout counts."""
    flag = GreenletRuntime().flag()
    waiter = gevent.spawn(flag.wait)
    gevent.sleep(0)
    flag.set()  # the waiter is told with the hub's next turn
    assert flag.wait(0)
    assert not waiter.dead, "nobody else has run"
    waiter.join(5)
    assert waiter.value is True
