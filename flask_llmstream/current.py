"""Which stream is running here? Known per thread or greenlet, as ``flask.g`` is."""

from __future__ import annotations

from typing import Any, Callable, ContextManager, Dict, List, Optional

from flask_llmstream.runtime import current_runtime

try:
    from typing import Protocol
except ImportError:  # Python 3.7
    Protocol = object  # type: ignore[assignment]

__all__ = ["RunningStream", "current_stream", "running", "streams"]


class RunningStream(Protocol):
    """What a generator may ask of the stream that it feeds."""

    @property
    def id(self) -> str:
        """Name of this stream in logs and events."""

    @property
    def cancelled(self) -> Optional[str]:
        """Why nobody wants it any more: ``disconnect``, ``stop``, ``timeout`` or ``shutdown``."""

    def bind(self, closable: Any) -> Any:
        """Have *closable* closed when the stream ends or its client leaves; return it."""

    def release(self, closable: Any) -> None:
        """Take back :meth:`bind`."""

    def send(self, item: Any) -> None:
        """Send *item* now, before whatever the generator yields next."""

    def flush(self) -> None:
        """Send now what is still held back, the text inside a chunker included."""

    def on_end(self, callback: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Call ``callback(StreamEnd)`` once, after the last byte; return *callback*."""

    def shield(self) -> ContextManager[None]:
        """A block inside which no cancellation is raised; it comes at its end."""


#: Streams by the thread or greenlet that runs them. Not a contextvar: below greenlet 0.4.17
#: those are shared by all greenlets of a thread.
_running: Dict[int, Any] = {}
#: The same for tasks that run one channel of a stream.
_channels: Dict[int, Any] = {}


def running() -> Optional[RunningStream]:
    """Return the stream whose generator runs in this thread or greenlet, or ``None``."""
    if not _running and not _channels:
        return None
    ident = current_runtime().ident()
    found: Optional[RunningStream] = _running.get(ident)
    return _channels.get(ident) if found is None else found


def streams() -> List[Any]:
    """Return all streams that are running in this process."""
    return list(_running.values())


def enter(ident: int, stream: Any) -> None:
    """Say that *stream* runs in the thread or greenlet *ident*."""
    _running[ident] = stream


def leave(ident: int, stream: Any) -> None:
    """Take back :func:`enter`, unless another stream has taken the place."""
    if _running.get(ident) is stream:
        del _running[ident]


def enter_channel(ident: int, channel: Any) -> None:
    """Say that *channel* of some stream runs in the thread or greenlet *ident*."""
    _channels[ident] = channel


def leave_channel(ident: int) -> None:
    """Take back :func:`enter_channel`."""
    _channels.pop(ident, None)


class _CurrentStream:
    """Passes everything on to the running stream."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        stream = running()
        if stream is None:
            raise RuntimeError(
                f"current_stream.{name} was used where no stream is running; use it inside the"
                " generator, and in the same thread or greenlet"
            )
        return getattr(stream, name)

    def __bool__(self) -> bool:
        return running() is not None

    def __repr__(self) -> str:
        return f"<current_stream {running()!r}>"


#: The running stream, as ``flask.g`` is the running request's storage; false outside of one.
current_stream: Any = _CurrentStream()
