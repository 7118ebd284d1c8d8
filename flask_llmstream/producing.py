"""What runs a source and may be interrupted in it: a stream, or one channel of a stream."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Iterator, List, Optional, Tuple

from flask_llmstream.cancellation import Cancellation
from flask_llmstream.exceptions import StreamCancelled
from flask_llmstream.runtime import Runtime
from flask_llmstream.sansio.events import Usage
from flask_llmstream.settings import Settings

__all__ = ["Producing", "sum_usage", "total_usage"]

#: Held for an assignment: whoever cancels a stream may meet another who does. A signal may come inside.
_deciding = threading.RLock()


class Producing:
    """The part of ``current_stream`` that all that runs a source has.

    A mixin without slots of its own; whoever takes it declares them.
    """

    if not TYPE_CHECKING:  # mypy would have it that nothing can be assigned here
        __slots__ = ()

    #: Name of the stream in logs and events.
    id: str
    #: Lock that is held whenever the source does not run; see :mod:`flask_llmstream.stream`.
    wire: Any
    #: Handle on the thread or greenlet that runs the source.
    task: Any
    #: What is closed at the end.
    bound: List[Any]
    #: How many ``shield()`` blocks are open.
    shields: int
    #: What the source waits in where no socket can be broken to wake it: has ``wake()``.
    waits: Optional[Any]
    #: What calls that were cut have cost, by their own count.
    cut: Optional[Usage]
    _runtime: Runtime
    _settings: Settings
    _cancellation: Optional[Cancellation]
    _in_source: bool
    _sending: bool
    _state: str

    @property
    def settings(self) -> Settings:
        """The settings in force for it."""
        return self._settings

    @property
    def cancelled(self) -> Optional[str]:
        """Why nobody wants it any more, or ``None``."""
        return None if self._cancellation is None else self._cancellation.reason

    def exposed(self) -> bool:
        """Whether the source is running, not shielded, and not writing."""
        return self._in_source and not self.shields and not self._sending

    def bind(self, closable: Any) -> Any:
        """Close *closable* when the stream ends or its client leaves; return it.

        :raises TypeError: where it has no ``close``.
        """
        if not hasattr(closable, "close"):
            raise TypeError(f"bind() needs something with close(), got {type(closable).__name__}")
        if self._state == "over":
            closable.close()
        else:
            self.bound.append(closable)
        return closable

    def release(self, closable: Any) -> None:
        """Take back :meth:`bind`; unknown objects are passed over."""
        if getattr(closable, "estimated", None) is True:
            self.cut = sum_usage(self.cut, closable.usage)
        for index, each in enumerate(self.bound):
            if each is closable:
                del self.bound[index]
                return

    def add_cut(self, usage: Optional[Usage], channel: str) -> None:
        """Take note of what calls of *channel* have cost that were cut."""
        self.cut = sum_usage(self.cut, usage)

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """A block inside which no cancellation is raised; it comes at its end."""
        self.shields += 1
        try:
            yield
        finally:
            self.shields -= 1
        self.raise_cancellation()

    def raise_cancellation(self) -> None:
        """Raise what has not been raised yet: once, so that clean-up may send and be shielded."""
        cancellation = self._cancellation
        if cancellation is not None and not self.shields and not cancellation.thrown:
            cancellation.told()
            raise StreamCancelled(cancellation.reason)

    def _begin_cancellation(self, reason: str, code: Optional[str] = None) -> Cancellation:
        """Have the source interrupted as soon as that is possible; only once.

        :returns: what does so; that of another, where they were faster.
        """
        settings = self._settings
        cancellation = Cancellation(
            reason, self, self._runtime, settings.cancel_grace, settings.shielded_modules, code
        )
        with _deciding:
            if self._cancellation is not None:
                return self._cancellation
            self._cancellation = cancellation
        if self.waits is not None:
            self.waits.wake()
        return cancellation

    def _unthrow(self) -> None:
        """Out of the source: what was set to be raised there must not be raised here."""
        if self._cancellation is not None and self._cancellation.thrown:
            self._runtime.unthrow()


def sum_usage(one: Optional[Usage], other: Optional[Usage]) -> Optional[Usage]:
    """Return what two calls have cost together."""
    if one is None or other is None:
        return one or other
    pairs = ((getattr(one, name), getattr(other, name)) for name in Usage.__slots__)
    return Usage(*(a if b is None else b if a is None else a + b for a, b in pairs))


def total_usage(
    said: Optional[Usage], cut: Optional[Usage], pieces: int
) -> Tuple[Optional[Usage], bool]:
    """Return what calls have cost together, and whether that was counted rather than said.

    :param said: by providers.
    :param cut: by calls that were cut, by their own count.
    :param pieces: of output that have come.
    """
    usage = sum_usage(said, cut)
    if usage is None and pieces:
        # One delta is one token with nearly all providers.
        return Usage(output_tokens=pieces), True
    return usage, cut is not None
