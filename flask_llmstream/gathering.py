"""Several sources as one: what the branches have is taken in turn, in the task that drives the stream.

Decisions
    1. One item of each channel that has some, in turn: a source that never waits neither starves
       the others, nor fills the memory, since its queue is bounded.
    2. A failure that comes before anything else waits for the first item, for as long as the status
       line waits for it: if all fail, the answer is a real 4xx or 5xx.
    3. The driver waits on a flag of our own. A cancellation of the stream sets it, so no exception
       has to be thrown into a lock.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, Deque, List, Mapping, Optional

from flask_llmstream import current
from flask_llmstream.branches import Branch
from flask_llmstream.exceptions import StreamCancelled
from flask_llmstream.failures import describe_failure, failure_of_code
from flask_llmstream.runtime import Runtime, current_runtime
from flask_llmstream.sansio.channels import ChannelDone, ChannelFailed, Channels, Tagged
from flask_llmstream.settings import Settings
from flask_llmstream.streamlog import stream_logger

__all__ = ["Gathering"]

_log = stream_logger()

#: Returns what runs a function with all that belongs to the request; it is asked once per branch.
Carry = Callable[[Callable[[], None]], Callable[[], None]]

#: Seconds for which the sources get to end beyond the second attempt to interrupt them.
_PATIENCE = 1.0


class Gathering:
    """Iterator over what several sources yield, each item as a :class:`Tagged`.

    Nothing starts before the first ``next()``. All is over, and every source's ``finally`` has run,
    when ``next()`` has raised or :meth:`close` has returned; but a source that does not heed its
    cancellation is waited for only ``cancel_grace`` and a second longer.

    :param sources: channel's name to iterable of items.
    :param max_pending: how many items of one channel may wait.
    :param carry: makes what runs a branch with the request's context; asked when the branches start.
    """

    def __init__(self, sources: Mapping[str, Any], max_pending: int, carry: Optional[Carry] = None) -> None:
        self._sources = dict(sources)
        self._max_pending = max_pending
        self._carry = carry
        self._branches: List[Branch] = []
        self._open: List[Branch] = []
        self._next = 0
        self._state = "new"  # running, over
        self._parent: Any = None
        self._idle = False
        self._begun = False
        self._pending: Deque[Any] = deque()
        #: Branches that have failed before anything else came.
        self._held: List[Branch] = []
        self._held_until = 0.0
        self._errors: List[BaseException] = []
        self._runtime: Runtime
        self._settings: Settings
        self._flag: Any

    def __iter__(self) -> Gathering:
        return self

    def __enter__(self) -> Gathering:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def ready(self) -> int:
        """How many items there are at this moment."""
        return len(self._pending) + sum(len(branch.queue) for branch in self._open)

    @property
    def calls(self) -> int:
        """How many upstream calls its channels have open."""
        return sum(len(branch.bound) for branch in self._branches)

    def __next__(self) -> Any:
        if self._pending:
            return self._pending.popleft()
        if self._state == "over":
            raise StopIteration
        try:
            if self._state == "new":
                self._start()
            while True:
                item = self._take()
                if item is not None:
                    return item
                if not self._open:
                    break
                self._wait()
            error = self._last_error()
        except BaseException as raised:
            self._stop(_reason_of(raised))
            raise
        self._over()
        try:
            if error is not None:
                raise error
            raise StopIteration
        finally:
            # Its traceback holds this frame, and with it what the source has open.
            del error

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """End all sources and raise the exception, as a generator does that does not catch it."""
        error = value if value is not None else kind() if isinstance(kind, type) else kind
        self._stop(_reason_of(error))
        raise error.with_traceback(traceback)

    def close(self) -> None:
        """End all sources and wait for them."""
        if self._state == "new":
            self._state = "over"
            for source in self._sources.values():
                close = getattr(source, "close", None)
                if close is not None:
                    close()
        elif self._state == "running":
            parent = self._parent
            self._stop(parent.cancelled if parent is not None and parent.cancelled else "stop")

    def wake(self) -> None:
        """Have the driver look up from its waiting; from any greenlet or thread."""
        self._flag.set()

    def fail(self, channel: str, error: BaseException) -> bool:
        """End *channel*, whose last item cannot be sent; return whether it is one of these."""
        for branch in self._open:
            if branch.name == channel:
                branch.fail(error)
                return True
        return False

    # -- taking turns ------------------------------------------------------------------------

    def _start(self) -> None:
        runtime = self._runtime = current_runtime()
        parent = self._parent = current.running()
        self._settings = Settings() if parent is None else parent.settings  # type: ignore[attr-defined]
        self._flag = runtime.flag()
        self._state = "running"
        self._held_until = runtime.now() + self._settings.status_hold
        if parent is not None:
            parent.bind(self)
            parent.waits = self  # type: ignore[attr-defined]
        sources, self._sources = self._sources, {}
        for name, source in sources.items():
            branch = Branch(
                name, source, runtime=runtime, settings=self._settings, parent=parent,
                max_pending=self._max_pending, notify=self._notify,
            )
            self._branches.append(branch)
        self._open = list(self._branches)
        for number, branch in enumerate(self._branches):
            run = branch.run if self._carry is None else self._carry(branch.run)
            try:
                runtime.spawn(run, f"llmstream-channel-{branch.name}")
            except BaseException:  # no more threads to be had
                for other in self._branches[number:]:
                    other.cancel()
                    other.run()  # that is, close its source
                raise

    def _notify(self) -> None:
        if self._idle:
            self._flag.set()

    def _take(self) -> Any:
        """Return the next item, ``None`` where there is none yet."""
        branches = self._open
        for _ in range(len(branches)):
            if self._next >= len(branches):
                self._next = 0
            branch = branches[self._next]
            ended = branch.ended  # before the queue: it may get its last items just now
            if branch.queue:
                self._next += 1
                return self._first(Tagged(branch.name, branch.take()))
            if not ended:
                self._next += 1
                continue
            del branches[self._next]
            if branch.error is not None:
                self._errors.append(branch.error)
                if not self._begun and self._runtime.now() < self._held_until:
                    self._held.append(branch)
                    return self._take()
            return self._first(self._end_of(branch))
        return None

    def _first(self, item: Tagged) -> Any:
        """Return *item*, behind what must come before the first one."""
        if self._begun:
            return item
        self._begun = True
        self._pending.extend(self._end_of(branch) for branch in self._held)
        del self._held[:]
        self._pending.append(item)
        return Channels(branch.name for branch in self._branches)

    def _end_of(self, branch: Branch) -> Tagged:
        error = branch.error
        if error is None:
            return Tagged(branch.name, ChannelDone(branch.reason, branch.usage))
        describe = getattr(self._parent, "describe", None)
        if not isinstance(error, Exception):  # GreenletExit, SystemExit
            failure = failure_of_code("shutdown", True)
        elif describe is not None:
            failure = describe(error, branch.name)
        else:
            failure = describe_failure(error)
        failed = ChannelFailed(failure.message, failure.code, failure.retryable, error)
        return Tagged(branch.name, failed)

    def _last_error(self) -> Optional[BaseException]:
        """Return what the whole has failed with: the first error, where there is nothing but errors."""
        errors = self._errors
        return errors[0] if len(errors) == len(self._branches) else None

    def _wait(self) -> None:
        """Wait until there is something to take, or the stream is cancelled."""
        parent, flag = self._parent, self._flag
        self._idle = True
        flag.clear()
        if parent is not None:
            parent.raise_cancellation()
        if not any(branch.queue or branch.ended for branch in self._open):
            now = self._runtime.now()
            # Those whose items cannot be sent may have to be interrupted more than once.
            due = [branch.tick(now) for branch in self._open if branch.cancelled]
            if self._held:
                due.append(self._held_until)
            flag.wait(max(0.001, min(due) - now) if due else None)
            if self._held and self._runtime.now() >= self._held_until:
                self._release_held()
        self._idle = False
        if parent is not None:
            parent.raise_cancellation()

    def _release_held(self) -> None:
        """Put those that have failed back among those that have something to say."""
        for branch in self._held:
            self._errors.remove(branch.error)  # type: ignore[arg-type]
        self._open[self._next:self._next] = self._held
        del self._held[:]

    # -- the end -----------------------------------------------------------------------------

    def _stop(self, reason: str) -> None:
        """End all sources and wait for them, but not for ever."""
        if self._state != "running":
            return
        self._state = "over"
        self._pending.clear()
        runtime, flag = self._runtime, self._flag
        self._idle = True
        try:
            for branch in self._branches:
                if not branch.ended:
                    branch.cancel(reason)
            deadline = runtime.now() + self._settings.cancel_grace + _PATIENCE
            while True:
                flag.clear()
                now = runtime.now()
                alive = [branch for branch in self._branches if not branch.ended]
                if not alive:
                    break
                if now >= deadline:
                    _log.warning(
                        "stream %s ends, but the sources of its channels %s go on; let StreamCancelled"
                        " pass", alive[0].id, ", ".join(repr(branch.name) for branch in alive),
                    )
                    break
                due = min(branch.tick(now) for branch in alive)
                flag.wait(max(0.001, min(due, deadline) - now))
        finally:
            self._over()

    def _over(self) -> None:
        self._state = "over"
        del self._open[:], self._errors[:], self._held[:]
        parent = self._parent
        if parent is not None:
            for branch in self._branches:
                parent.add_cut(branch.cut, branch.name)
            if parent.waits is self:
                parent.waits = None
            parent.release(self)
        self._parent = None
        del self._branches[:]


def _reason_of(error: BaseException) -> str:
    if isinstance(error, StreamCancelled):
        return error.reason
    return "stop" if isinstance(error, (Exception, GeneratorExit)) else "shutdown"
