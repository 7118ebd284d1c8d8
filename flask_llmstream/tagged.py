"""What a stream does with the items of its channels: each has a text, a chunker and a bill of its own."""

from __future__ import annotations

import copy
from typing import Any, Dict, List, Optional

from flask_llmstream.ending import ChannelEnd
from flask_llmstream.failures import Failure
from flask_llmstream.outlet import NEVER, Outlet
from flask_llmstream.producing import sum_usage, total_usage
from flask_llmstream.sansio.channels import ChannelDone, ChannelFailed, Channels, Tagged
from flask_llmstream.sansio.events import Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from flask_llmstream.settings import Settings

__all__ = ["TaggedOutlet"]


#: Of streams without any, which is nearly all: an idle stream should be small.
_NO_CHANNELS: Dict[str, Any] = {}


class _Channel:
    """What is kept of one channel."""

    __slots__ = ("name", "texts", "unspoken", "usage", "cut", "done", "error", "chunker", "held_since")

    def __init__(self, name: str, chunker: Optional[Any]) -> None:
        self.name = name
        self.texts: List[str] = []
        self.unspoken = 0
        self.usage: Optional[Usage] = None
        self.cut: Optional[Usage] = None
        self.done: Optional[str] = None
        self.error: Optional[BaseException] = None
        # It has not seen any text: who tags items tags them all.
        self.chunker = copy.deepcopy(chunker)
        self.held_since = NEVER

    def end(self, reason: str) -> ChannelEnd:
        if self.error is not None:
            reason = "error"
        elif self.done is not None and self.done != "cancelled":
            reason = "finish"
        usage, estimated = total_usage(self.usage, self.cut, len(self.texts) + self.unspoken)
        value = getattr(self.chunker, "value", None)
        return ChannelEnd(reason, "".join(self.texts), usage, estimated, self.error, value)


class TaggedOutlet(Outlet):
    """An outlet that knows channels.

    Parameters as for :class:`~flask_llmstream.outlet.Outlet`.
    """

    __slots__ = ("waits", "_channels")

    def __init__(self, format: Any, settings: Settings, chunker: Optional[Any] = None) -> None:
        super().__init__(format, settings, chunker)
        self.waits: Optional[Any] = None
        self._channels: Dict[str, _Channel] = _NO_CHANNELS

    def describe(self, error: BaseException, channel: Optional[str] = None) -> Failure:
        """Return what clients are told about *error*, and log it.

        :param channel: the one that has failed, ``None`` for the stream.
        """
        raise NotImplementedError

    def add_cut(self, usage: Optional[Usage], channel: str) -> None:
        """Take note of what calls of *channel* have cost that were cut."""
        if usage is not None:
            self._channel(channel).cut = usage

    def _channel(self, name: str) -> _Channel:
        found = self._channels.get(name)
        if found is None:
            if self._channels is _NO_CHANNELS:
                self._channels = {}
            found = self._channels[name] = _Channel(name, self._chunker)
        return found

    def _take_other(self, item: Any) -> bytes:
        if item.__class__ is Tagged:
            return self._take_tagged(item)
        if item.__class__ is Channels:
            frame: bytes = self._format.encode(item)  # before all: not every format has channels
            for name in item.names:
                self._channel(name)
            return frame
        return super()._take_other(item)

    def _take_tagged(self, tagged: Tagged) -> bytes:
        channel = self._channel(tagged.channel)
        if isinstance(tagged.item, (ChannelDone, ChannelFailed)):
            return self._end_channel(channel, tagged)
        if channel.error is not None:
            return b""
        try:
            return self._take_part(channel, tagged)
        except Exception as error:
            # It cannot be sent, and that is no fault of the other channels.
            if self.waits is None or not self.waits.fail(channel.name, error):
                raise
            channel.error = error
            return b""

    def _take_part(self, channel: _Channel, tagged: Tagged) -> bytes:
        item = tagged.item
        text = item.text if item.__class__ is TextDelta else item
        if isinstance(text, bytes):
            text = self._format.encoder_of(channel.name).decode_text(text)
        if isinstance(text, str):
            if not text:
                return b""
            channel.texts.append(text)
            if channel.chunker is None:
                return self._say(channel, text)
            return self._segment_of(channel, text)
        if isinstance(item, Finish):
            return b""  # it is said at the end of the channel
        if isinstance(item, Usage):
            channel.usage = item
            self._usage = None
            for each in self._channels.values():
                self._usage = sum_usage(self._usage, each.usage)
        elif isinstance(item, (ReasoningDelta, ToolCallDelta)):
            channel.unspoken += 1
        return self._flush_channel(channel) + self._say(channel, item)

    def _say(self, channel: _Channel, item: Any) -> bytes:
        frame: bytes = self._format.encode(Tagged(channel.name, item))
        return frame

    def _segment_of(self, channel: _Channel, text: str) -> bytes:
        chunker: Any = channel.chunker
        segments = chunker.feed(text)
        held = getattr(chunker, "characters_held", 1)
        if segments and held <= len(text):
            channel.held_since = NEVER
        if held and channel.held_since == NEVER:
            channel.held_since = self._runtime.now()
        self._note_held()
        return b"".join([self._say(channel, segment) for segment in segments])

    def _note_held(self) -> None:
        self._held_since = min(channel.held_since for channel in self._channels.values())
        if self._held_since < NEVER:
            self._look_at(self._held_since + self._settings.max_delay)

    def _flush_channel(self, channel: _Channel, finish: str = "flush") -> bytes:
        if channel.chunker is None:
            return b""
        channel.held_since = NEVER
        self._note_held()
        flush = getattr(channel.chunker, finish, channel.chunker.flush)
        return b"".join([self._say(channel, segment) for segment in flush()])

    def _flush_chunker(self) -> bytes:
        if not self._channels:
            return super()._flush_chunker()
        return b"".join([self._flush_channel(channel) for channel in self._channels.values()])

    def _finish_chunker(self) -> bytes:
        # Where each channel has a chunker of its own the stream's has seen no text to finish.
        return self._flush_chunker() if self._channels else super()._finish_chunker()

    def _end_channel(self, channel: _Channel, tagged: Tagged) -> bytes:
        end = tagged.item
        rest = b""
        if isinstance(end, ChannelDone):
            channel.done = end.reason
            try:
                rest = self._flush_channel(channel, "finish")
            except Exception as error:  # a chunker of the user's own, or what has not the right form
                failure = self.describe(error, channel.name)
                end = ChannelFailed(failure.message, failure.code, failure.retryable, error)
        if isinstance(end, ChannelFailed):
            channel.error = end.error
            try:
                rest = self._flush_channel(channel)
            except Exception:
                rest = b""
        return rest + self._say(channel, end)

    def _pieces(self) -> int:
        """How many pieces of text there were."""
        # As a list: on threads the live page asks while the channels are being named.
        return len(self._texts) + sum(len(channel.texts) for channel in list(self._channels.values()))

    def _channel_ends(self, reason: str) -> Dict[str, ChannelEnd]:
        """Return how each channel has ended.

        :param reason: why the stream has ended, which is why those have that were not finished.
        """
        return {name: channel.end(reason) for name, channel in self._channels.items()}
