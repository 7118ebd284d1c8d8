"""Several answers in one stream: each item behind the name of its channel.

Nobody yields these values by hand: :func:`flask_llmstream.multiplex` does. The classes of
:mod:`~flask_llmstream.sansio.events` say what a channel carries, and each channel ends in exactly
one :class:`ChannelDone` or :class:`ChannelFailed`.
"""

from __future__ import annotations

from typing import Any, Iterable, Optional, Tuple

from flask_llmstream.sansio.events import Usage, Value

__all__ = ["ChannelDone", "ChannelFailed", "ChannelFlush", "Channels", "Tagged", "check_names"]

#: Most channels of one stream: the ``frames`` format has a byte for them, and 0 is the stream itself.
MAX_CHANNELS = 255
#: Longest name, in characters: every event carries it.
MAX_NAME = 64


class Channels(Value):
    """Which channels there will be; comes before anything of theirs.

    :param names: in the order in which formats count them, from 1.
    """

    __slots__ = ("names",)

    def __init__(self, names: Iterable[str]) -> None:
        self.names: Tuple[str, ...] = tuple(names)


class Tagged(Value):
    """An item of one channel.

    :param channel: its name.
    :param item: whatever a source may yield, :class:`ChannelDone`, :class:`ChannelFailed` or
        :class:`ChannelFlush`.
    """

    __slots__ = ("channel", "item")

    def __init__(self, channel: str, item: Any) -> None:
        self.channel = channel
        self.item = item


class ChannelDone(Value):
    """The end of a channel whose source has said all.

    :param reason: why the model stopped, see :class:`~flask_llmstream.Finish`; or ``cancelled``.
    :param usage: what the answer has cost, where known.
    """

    __slots__ = ("reason", "usage")

    def __init__(self, reason: str = "stop", usage: Optional[Usage] = None) -> None:
        self.reason = reason
        self.usage = usage


class ChannelFailed(Value):
    """The end of a channel whose source has failed.

    :param message: for people; what clients may know.
    :param code: for programs.
    :param retryable: whether the same request may succeed later.
    :param error: the exception behind it. It is not sent.
    """

    __slots__ = ("message", "code", "retryable", "error")

    def __init__(
        self, message: str, code: str, retryable: bool, error: Optional[BaseException] = None
    ) -> None:
        self.message = message
        self.code = code
        self.retryable = retryable
        self.error = error


class ChannelFlush(Value):
    """Asks for what a chunker holds of a channel; nothing of its own is sent."""

    __slots__ = ()


def check_names(names: Iterable[Any]) -> Tuple[str, ...]:
    """Return *names* as they are, or say what is wrong with them.

    :raises ValueError: for no name, more than 255, an empty or long one, one with control characters,
        or half of a surrogate pair.
    :raises TypeError: for one that is no ``str``.
    """
    checked = tuple(names)
    if not 1 <= len(checked) <= MAX_CHANNELS:
        raise ValueError(f"a stream has 1 to {MAX_CHANNELS} channels, got {len(checked)}")
    for name in checked:
        if not isinstance(name, str):
            raise TypeError(f"a channel's name is a str, got {type(name).__name__}")
        # A name goes into JSON, into ids, and to terminals.
        if not name or len(name) > MAX_NAME or not all(map(_is_plain, name)):
            raise ValueError(
                f"a channel's name has 1 to {MAX_NAME} characters and no control characters, got {name!r}"
            )
    return checked


def _is_plain(character: str) -> bool:
    return not (
        character < " " or "\x7f" <= character <= "\x9f" or "\ud800" <= character <= "\udfff"
        or character in "\u2028\u2029"
    )
