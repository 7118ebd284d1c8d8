"""What all sources of deltas share: a buffer, one owner, and an end that anybody may ask for.

Decisions
    1. Objects, not generators: ``close()`` of a generator that is blocked in its ``next()`` raises
       ``ValueError`` and leaves the connection open.
    2. Nothing is opened before the first ``next()``: a HEAD request, or a client that has left
       already, must not start an LLM call.
    3. Whoever reads also cleans up. Another thread's or greenlet's ``close()`` only shuts the
       socket down; closing an object under its reader is a race in every HTTP library.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Iterator, List, Mapping, Optional

from flask_llmstream.current import RunningStream, running
from flask_llmstream.exceptions import UpstreamError, cancelled_because
from flask_llmstream.sansio.events import Delta, Usage
from flask_llmstream.tracing import CallSpan, begin_call
from flask_llmstream.upstream.sockets import sever

__all__ = ["DeltaSource"]


class DeltaSource:
    """An iterator over the deltas of one LLM call.

    It binds itself to the running stream at its first ``next()``, so that a client that leaves
    ends the call. Outside of a stream it is an ordinary iterator and context manager.
    """

    #: Whether its deltas are what a model writes, each about a token.
    _is_counted = False

    def __init__(self) -> None:
        #: What the call has cost, as the provider has last said.
        self.usage: Optional[Usage] = None
        #: Whether ``usage`` was counted here, because the call was cut before the provider said it.
        self.estimated = False
        #: Why the model stopped: ``stop``, ``length``, … ; ``None`` until it has.
        self.finish_reason: Optional[str] = None
        self._pending: Deque[Delta] = deque()
        self._received = 0
        self._failure: Optional[UpstreamError] = None
        self._stream: Optional[RunningStream] = None
        self._span: Optional[CallSpan] = None
        self._started = self._busy = self._ended = self._closed = self._released = False

    @property
    def ready(self) -> int:
        """How many deltas can be had without waiting."""
        return len(self._pending)

    @property
    def closed(self) -> bool:
        """Whether it has ended, by itself or by :meth:`close`."""
        return self._closed

    @property
    def model(self) -> Optional[str]:
        """Which model has answered, once the provider has said so; ``None`` where it does not."""
        return None

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        try:
            return self._pending.popleft()
        except IndexError:
            return self._wait()

    def __enter__(self) -> DeltaSource:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Dropped half read, outside of a stream: as with a file, the connection goes at once.
        # What was adapted and never read still belongs to whoever opened it.
        if not getattr(self, "_released", True) and self._started:
            self._release()

    def close(self) -> None:
        """End the call now; a ``next()`` that waits in another thread or greenlet stops.

        May be called from anywhere and more than once. Returns at once.
        """
        self._closed = True
        self._pending.clear()
        if self._busy:
            sever(self)
        else:
            self._release()

    def traced(self) -> Mapping[str, str]:
        """Return what a trace says of the call, as far as it is known: ``provider``, ``model``, ``url``."""
        return {}

    def _pull(self) -> None:
        """Wait for more and :meth:`_add` it, set ``_ended``, or raise."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Close what is open; called once."""
        raise NotImplementedError

    def _add(self, deltas: List[Delta]) -> None:
        self._received += len(deltas)
        self._pending.extend(deltas)

    def _wait(self) -> Delta:
        self._busy = True
        if not self._started:
            try:
                self._start()
            except BaseException:
                self._busy = False
                raise
        # Busy first, closed afterwards; and the other way round in close(). So one of two threads sees
        # the other, and who closes does not take away what is just being opened or read.
        while not (self._closed or self._ended or self._failure):
            try:
                self._pull()
            except UpstreamError as exc:
                self._failure = exc
                if self._span is not None:
                    self._span.fail(exc)
            except BaseException as exc:
                # A cancellation, or a fault of ours: the state of the connection is unknown.
                self._busy = False
                if self._span is not None:
                    self._span.fail(exc)
                self.close()
                raise
            self._busy = False
            if self._pending and not self._closed:
                try:
                    return self._pending.popleft()
                except IndexError:
                    pass  # closed just now, by another thread
            self._busy = True
        self._busy = False
        if self._failure is not None:
            self._failure.deltas_sent = self._received
        failure, self._failure = self._failure, None
        complete = self._ended and failure is None
        closed = self._closed
        reason = self._stream.cancelled if self._stream is not None else None
        self.close()
        try:
            if not complete and reason is not None:
                # On threads a cancellation arrives as a connection that breaks. It must not look
                # like the provider's failure, which the application may answer with words of its
                # own, and still less like the end of a complete answer.
                raise cancelled_because(reason)() from failure
            if failure is None or closed:
                raise StopIteration
            raise failure
        finally:
            # Its traceback holds this frame: a cycle would keep the connection's pool.
            del failure

    def _start(self) -> None:
        self._started = True
        stream = running()
        if stream is not None and not self._closed:
            self._stream = stream
            stream.bind(self)
        if not self._closed:
            self._span = begin_call(self, stream)

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        if self._is_counted and self.finish_reason is None:
            self._estimate()
        try:
            self._let_go()
        finally:
            if self._span is not None:
                self._span.end()
            if self._stream is not None:
                self._stream.release(self)

    def _estimate(self) -> None:
        """Say what an answer that was cut has cost at least: it is paid for all the same.

        What the provider reports before it has finished is true of the input only: Anthropic begins
        with one token of output.
        """
        known = self.usage or Usage()
        counted = max(self._received, known.output_tokens or 0)
        if counted or known.input_tokens:
            self.usage = Usage(known.input_tokens, counted, None, known.cached_tokens)
            self.estimated = True
