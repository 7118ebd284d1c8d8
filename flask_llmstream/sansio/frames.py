"""The wire format ``frames``: binary, each item behind its length, nothing to escape or to search.

A body is a sequence of frames, and a frame is six bytes and a payload::

    offset  bytes
    0       4      length of the payload: unsigned, big-endian
    4       1      kind
    5       1      channel: which of several streams in one; 0 where there is one only
    6       length payload

    kind           payload
    0   comment    text, to be passed over. A heartbeat is one of length 0: 00 00 00 00 00 00
    1   text       UTF-8: the next piece of the answer
    2   reasoning  UTF-8
    3   tool       JSON {"index":0,"id":"…","name":"…","arguments":"…"}
    4   json       JSON {"path":"/a","op":"add","value":…}
    5   usage      JSON {"input_tokens":1,"output_tokens":2}
    6   custom     JSON {"name":"…","data":…}
    7   event      JSON {"data":…,"event":"…","id":"…","retry":1000}
    8   done       JSON {"reason":"stop","usage":{…} or null}
    9   failed     JSON {"message":"…","code":"…","retryable":false}
    10  cursor     ASCII: whoever has the frame behind it, whole, comes back with this for the rest

JSON is in UTF-8, with the fields of the native format (:mod:`flask_llmstream.sansio.native`).
Where there are channels, a ``custom`` frame of channel 0 comes before anything of theirs, and says what
they are called: ``{"name":"channels","data":["a","b"]}``, in the order of their numbers, from 1. More
may be announced later, with a list that begins with those so far.
``done`` and ``failed`` with a number end that channel; those of channel 0 end the stream.

``TextDelta("Hi")`` is ``00 00 00 02 01 00 48 69``. No frame ends inside a character. Every stream
ends in exactly one ``done`` or ``failed``. Readers pass over kinds that they do not know.

Decision: the cursor stands in front of what it is the cursor of, in a frame of its own. Who does not
resume passes over it; who does believes it only with the next frame, so no cut can come between them.
"""

from __future__ import annotations

import json
from struct import Struct
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

from flask_llmstream.exceptions import BufferLimitExceeded, DecodeError, WireError
from flask_llmstream.sansio.events import Event, Value
from flask_llmstream.sansio.jsontext import dump_bytes
from flask_llmstream.sansio.utf8 import HalvesJoined, plain_utf8
from flask_llmstream.sansio.wire import WireFormat, event_fields

__all__ = ["KINDS", "Frame", "FrameDecoder", "FramesFormat", "with_cursor"]

#: Names of the kinds, in the order of their numbers.
KINDS = ("comment", "text", "reasoning", "tool", "json", "usage", "custom", "event", "done", "failed")

_HEAD = Struct(">IBB")
_NUMBERS = {name: number for number, name in enumerate(KINDS)}
_COMMENT, _TEXT, _REASONING = range(3)
_CURSOR = len(KINDS)


class FramesFormat(WireFormat):
    """Encodes the items of one stream. Make one per stream: characters may come in pieces."""

    __slots__ = ("channel", "_utf8", "_reasoning_utf8")

    name = "frames"
    content_type = "application/vnd.llmstream.frames"
    heartbeat: Optional[bytes] = _HEAD.pack(0, _COMMENT, 0)

    def __init__(self) -> None:
        super().__init__()
        #: What is written into the channel byte, 0 to 255. May be assigned.
        self.channel = 0
        self._utf8 = HalvesJoined()
        self._reasoning_utf8 = HalvesJoined()

    def opening(self, padding: int) -> bytes:
        """Write the comment that opens a stream, at least *padding* bytes of it."""
        return self._frame(_COMMENT, b" " * (padding - _HEAD.size))

    def _frame(self, kind: int, payload: bytes) -> bytes:
        return _HEAD.pack(len(payload), kind, self.channel) + payload

    def _text(self, text: str) -> bytes:
        payload = self._utf8.feed(text)
        return self._frame(_TEXT, payload) if payload else b""

    def _reasoning(self, text: str) -> bytes:
        payload = self._reasoning_utf8.feed(text)
        return self._frame(_REASONING, payload) if payload else b""

    def _named(self, name: str, fields: Dict[str, Any]) -> bytes:
        return self._frame(_NUMBERS[name], dump_bytes(fields))

    def _event(self, event: Event) -> bytes:
        return self._named("event", event_fields(event))

    def _comment(self, text: str) -> bytes:
        return self._frame(_COMMENT, plain_utf8(text))

    def _make_channel(self, name: str, number: int) -> WireFormat:
        encoder = FramesFormat()
        encoder.channel = number
        return encoder

    def _announce(self, names: Tuple[str, ...]) -> bytes:
        super()._announce(names)
        return self._named("custom", {"name": "channels", "data": list(self._channels or ())})

    def _rest(self) -> bytes:
        said = super()._rest()
        for kind, utf8 in ((_REASONING, self._reasoning_utf8), (_TEXT, self._utf8)):
            payload = utf8.flush()
            if payload:
                said += self._frame(kind, payload)
        return said


def with_cursor(frames: bytes, cursor: str) -> bytes:
    """Return *frames* with the cursor of the last of them in front of it.

    :param frames: one or more, whole.
    """
    at = 0
    while True:
        end = at + _HEAD.size + _HEAD.unpack_from(frames, at)[0]
        if end >= len(frames):
            break
        at = end
    head = _HEAD.pack(len(cursor), _CURSOR, 0)
    return b"%b%b%b%b" % (frames[:at], head, cursor.encode("ascii"), frames[at:])


class Frame(Value):
    """One frame as it was read.

    :param kind: one of :data:`KINDS`, never ``comment``.
    :param data: ``str`` for ``text`` and ``reasoning``, else the JSON value.
    :param channel: 0 to 255.
    :param cursor: with which to come back for what follows; ``None`` where that is not said.
    """

    __slots__ = ("kind", "data", "channel", "cursor")

    def __init__(self, kind: str, data: Any, channel: int = 0, cursor: Optional[str] = None) -> None:
        self.kind = kind
        self.data = data
        self.channel = channel
        self.cursor = cursor


class FrameDecoder:
    """Decodes frames that arrive in pieces of any size, in linear time.

    Comments and kinds that it does not know are passed over.

    :param max_frame: most bytes that the payload of one frame may have. Defaults to 1 Mi.
    :param on_comment: called with the text of each comment, ``""`` for a heartbeat, before
        :meth:`feed` returns; it must not raise. Defaults to none.
    """

    def __init__(
        self, max_frame: int = 1 << 20, on_comment: Optional[Callable[[str], None]] = None
    ) -> None:
        self._max_frame = max_frame
        self._on_comment = on_comment
        self.reset()

    def reset(self) -> None:
        """Get ready for a new stream."""
        self._held = bytearray()  # a frame that is still arriving; never longer than one may be
        self._cursor: Optional[str] = None  # of the next frame
        self._error: Optional[WireError] = None
        self._flushed = False

    def feed(self, data: Union[bytes, bytearray, memoryview]) -> List[Frame]:
        """Return the frames that *data* completes.

        Frames that were complete before a fault are returned first, and the next call raises.

        :raises BufferLimitExceeded: a frame says that it is longer than ``max_frame``.
        :raises DecodeError: a payload is not the UTF-8 or JSON that its kind asks for.
        :raises RuntimeError: after :meth:`flush`.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)  # or it would grow each time
        if self._flushed:
            raise RuntimeError("feed() after flush(): call reset() before reading a new stream")
        held = self._held
        held += data
        frames: List[Frame] = []
        at = 0
        try:
            while len(held) - at >= _HEAD.size:
                length, kind, channel = _HEAD.unpack_from(held, at)
                if length > self._max_frame:
                    raise BufferLimitExceeded(self._max_frame, _too_long(length, self._max_frame))
                begin = at + _HEAD.size
                if len(held) - begin < length:
                    break
                at = begin + length
                if kind == _COMMENT:
                    if self._on_comment is not None:
                        self._on_comment(held[begin:at].decode("utf-8", "replace"))
                elif kind == _CURSOR:
                    self._cursor = _read(kind, bytes(held[begin:at]))
                elif kind < _CURSOR:
                    value = _read(kind, bytes(held[begin:at]))
                    frames.append(Frame(KINDS[kind], value, channel, self._cursor))
                    self._cursor = None
        except WireError as error:
            # Lets go of the memory, which a traceback would hold on to.
            held = self._held = bytearray()
            self._error = error.with_traceback(None)
            if not frames:
                raise self._error
            return frames
        del held[:at]
        return frames

    def flush(self) -> List[Frame]:
        """Say that the input has ended.

        :returns: always an empty list, so that all decoders can be driven alike.
        :raises DecodeError: where it has ended inside a frame, or the last :meth:`feed` could not yet
            say so.
        :raises BufferLimitExceeded: where the last :meth:`feed` could not yet say so.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)  # or it would grow each time
        rest = len(self._held)
        self.reset()
        self._flushed = True
        if rest:
            raise DecodeError(f"the input has ended inside a frame, {rest} bytes after it began")
        return []


def _read(kind: int, payload: bytes) -> Any:
    is_text = kind <= _REASONING or kind == _CURSOR
    try:
        text = payload.decode()
        return text if is_text else _decode_json(text)
    except (ValueError, RecursionError):
        # Also what is nested deeper than Python's stack, or a number of thousands of digits.
        wanted = "UTF-8" if is_text else "JSON in UTF-8"
    # Without what was seen, and without the error that holds it: it may be somebody's answer.
    name = "cursor" if kind == _CURSOR else KINDS[kind]
    raise DecodeError(f"the payload of a {name} frame is not {wanted}")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decode_json = json.JSONDecoder(parse_constant=_no_constant).decode


def _too_long(length: int, limit: int) -> str:
    return (
        f"a frame says that it has {length} bytes, more than max_frame={limit}; raise max_frame, or"
        " check that the peer really sends frames"
    )
