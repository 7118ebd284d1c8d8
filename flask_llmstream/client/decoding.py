"""Which answers can be read, and what decodes them."""

from __future__ import annotations

from typing import Callable, Dict, Optional, Type, Union

from flask_llmstream.sansio.frame_events import FrameEvents
from flask_llmstream.sansio.frames import FramesFormat
from flask_llmstream.sansio.ndjson import NDJSONFormat
from flask_llmstream.sansio.ndjson_events import NDJSONEvents
from flask_llmstream.sansio.sse import SSEDecoder

__all__ = ["MEDIA_TYPES", "READABLE", "Decoder", "decoder_of"]

Decoder = Union[SSEDecoder, NDJSONEvents, FrameEvents]

_DECODERS: Dict[str, Type[Decoder]] = {
    "text/event-stream": SSEDecoder,
    NDJSONFormat.content_type: NDJSONEvents,
    "application/ndjson": NDJSONEvents,
    FramesFormat.content_type: FrameEvents,
}
#: Media types of the answers that can be read.
READABLE = tuple(_DECODERS)
#: What to accept to get each wire format.
MEDIA_TYPES = {
    "sse": "text/event-stream", "ndjson": NDJSONFormat.content_type, "frames": FramesFormat.content_type,
}


def decoder_of(
    media_type: str,
    before: Optional[Decoder],
    max_buffer: int,
    on_comment: Optional[Callable[[str], None]],
) -> Decoder:
    """Return what decodes an answer; what was learned of the stream stays.

    :param media_type: one of :data:`READABLE`.
    :param before: what has decoded the answer before; it is taken where it can.
    :param max_buffer: see the decoders.
    :param on_comment: see the decoders.
    """
    kind = _DECODERS[media_type]
    if before is not None and isinstance(before, kind):
        return before
    decoder = kind(max_buffer, on_comment)
    if before is not None:
        decoder.last_event_id, decoder.retry = before.last_event_id, before.retry
    return decoder
