"""What tests of event logs use: following a stream, many threads at once, another process.

As a program, ``python -m flask_llmstream.testing.logs URL write|read|stopped STREAM ...`` is the
other process of :class:`~flask_llmstream.testing.eventlog.EventLogContract`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from flask_llmstream.eventlog import EventLog, open_log
from flask_llmstream.testing.timing import wait_until

__all__ = ["LogTest", "follow", "main", "new_id", "together"]


def new_id() -> str:
    """Return an id for a stream or a worker."""
    return uuid.uuid4().hex


def follow(log: EventLog, stream: str, after: int = 0, timeout: float = 30.0) -> Tuple[List[bytes], str]:
    """Read *stream* to its end; return the entries and the state.

    :raises AssertionError: if it is unknown, if an entry is lost, or if it has not ended in time.
    """
    deadline = time.monotonic() + timeout
    found: List[bytes] = []
    while True:
        page = log.read(stream, after)
        assert page is not None, f"the log does not know {stream}"
        assert page.first == after + 1, f"lost what is between {after} and {page.first}"
        found += page.entries
        after += len(page.entries)
        if page.state != "open" and after >= page.last:
            return found, page.state
        if not page.entries:
            assert time.monotonic() < deadline, f"nothing after entry {after} of {stream}"
            log.wait(stream, after, 5.0)


def together(functions: Sequence[Callable[[], Any]], timeout: float = 60.0) -> List[Any]:
    """Call all *functions* at the same time, each in its own thread; return what they return."""
    results: List[Any] = [None] * len(functions)
    errors: List[BaseException] = []
    start = threading.Event()

    def run(number: int) -> None:
        start.wait()
        try:
            results[number] = functions[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    start.set()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        assert not thread.is_alive(), f"not done after {timeout:g} s"
    if errors:
        raise errors[0]
    return results


class LogTest:
    """A test class whose logs are closed and whose processes are ended after each test."""

    def make_log(self) -> EventLog:
        """Open the store of the running test, as another worker would: the same one each time."""
        raise NotImplementedError

    def other_process(self) -> Optional[str]:
        """Return the URL by which another process opens that store; ``None`` where it cannot."""
        return None

    def note(self, text: str) -> None:
        """Show a figure."""
        print(f"{type(self).__name__}: {text}")

    def setup_method(self) -> None:
        """Begin with no open log."""
        self._opened: List[EventLog] = []
        self._programs: List[Any] = []

    def teardown_method(self) -> None:
        """Close what the test has opened, and end its processes."""
        for program in self._programs:
            if program.poll() is None:
                program.kill()
            program.wait()
            program.stdout.close()
        for log in self._opened:
            log.close()

    def open(self) -> EventLog:
        """Return one more log on the same store; it is closed after the test."""
        log = self.make_log()
        self._opened.append(log)
        return log

    def begin(self, log: EventLog, **options: Any) -> str:
        """Create a stream with generous bounds and return its id."""
        stream = new_id()
        given: Dict[str, Any] = dict(worker=new_id(), keep=60.0, max_events=100000, max_bytes=1 << 30)
        given.update(options)
        log.create(stream, **given)
        return stream

    def start(self, *arguments: object) -> Any:
        """Start another process on the store."""
        url = self.other_process()
        assert url is not None
        command = [sys.executable, "-m", "flask_llmstream.testing.logs", url, *map(str, arguments)]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
        program = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        self._programs.append(program)
        return program

    def said(self, program: Any) -> List[str]:
        """Return the words that the process has printed, when it has ended well."""
        text = program.stdout.read().decode()
        assert program.wait() == 0, text
        return str(text).split()


def main(arguments: Sequence[str]) -> None:
    """Be the other process of a test: ``URL write|read|stopped STREAM ...``."""
    url, action, stream = arguments[:3]
    log = open_log(url)
    if action == "write":
        count, pause = int(arguments[3]), float(arguments[4])
        worker = new_id()
        log.renew(worker, float(arguments[5]) if arguments[5:] else 60.0)
        log.create(stream, worker, 60.0, 1000000, 1 << 30)
        for number in range(1, count + 1):
            log.append(stream, number, [b"%.6f" % time.monotonic()])
            time.sleep(pause)
            if arguments[5:] and number % 10 == 0:
                log.renew(worker, float(arguments[5]))
        log.seal(stream, "finished")
    elif action == "read":
        wait_until(lambda: log.read(stream, 0) is not None, 30, "the writer to begin")
        after = 0
        while True:
            page = log.read(stream, after)
            now = time.monotonic()
            assert page is not None and page.first == after + 1
            after += len(page.entries)
            for entry in page.entries:
                print(f"{now - float(entry):.6f}")
            if page.state != "open" and after >= page.last:
                break
            if not page.entries:
                log.wait(stream, after, 5.0)
    else:
        stopped = threading.Event()
        moments: List[float] = []

        def stop(_: str) -> None:
            moments.append(time.monotonic())
            stopped.set()

        log.on_stop(stop)
        log.create(stream, new_id(), 60.0, 1000, 1 << 20)
        assert stopped.wait(30)
        print(moments[0])
        log.seal(stream, "finished")
    log.close()


if __name__ == "__main__":
    main(sys.argv[1:])
