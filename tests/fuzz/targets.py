"""What is fuzzed: one function per decoder. Whatever the bytes are, only what is documented comes out.

Each takes bytes, and fails where the decoder

- raises something that its documentation does not name,
- answers differently when the same bytes come in other pieces,
- holds on to more than its limit allows, or
- breaks a promise of its own, such as losing text.

``python tests/fuzz/run.py`` lets libFuzzer look for such bytes; ``tests/test_fuzz_targets.py`` tries a
few with every test run.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, Iterator, List, Tuple

from flask_llmstream.exceptions import LLMStreamError, UpstreamError, WireError
from flask_llmstream.sansio.adopted import AdoptedSSE
from flask_llmstream.sansio.chunked import ChunkedDecoder
from flask_llmstream.sansio.chunkers import make_chunker
from flask_llmstream.sansio.events import Event, TextDelta
from flask_llmstream.sansio.formats import format_names, make_format, negotiate
from flask_llmstream.sansio.frames import FrameDecoder
from flask_llmstream.sansio.gate import make_gate
from flask_llmstream.sansio.headers import parse_retry_after
from flask_llmstream.sansio.jsondelta import JsonDocument, JsonOptions, JsonReader
from flask_llmstream.sansio.metering import Meter
from flask_llmstream.sansio.ndjson_decoder import NDJSONDecoder
from flask_llmstream.sansio.providers.recognise import make_decoder
from flask_llmstream.sansio.sse import SSEDecoder, encode_event

__all__ = ["SEEDS", "TARGETS"]

#: A small limit, so that inputs of a few KB go past it.
_LIMIT = 500
#: Characters or bytes that a decoder may hold in addition: of its last input, and of its own.
_SLACK = 4096
_CHUNKERS = ("token", "word", "sentence", "line", "paragraph", "markdown", "json")

Run = Tuple[List[Any], str]


def pieces_of(data: bytes) -> Tuple[bytes, List[bytes]]:
    """Return the payload in *data*, whole and in pieces; its first byte says how long those are."""
    size, payload = (data[0] % 17 + 1, data[1:]) if data else (1, b"")
    return payload, [payload[start : start + size] for start in range(0, len(payload), size)]


def run(decoder: Any, pieces: List[bytes], documented: Any) -> Run:
    """Feed *pieces*; return what comes out, and the name of the error that ends it."""
    found: List[Any] = []
    try:
        for piece in pieces:
            found += decoder.feed(piece)
            held = size_of(vars(decoder) if hasattr(decoder, "__dict__") else decoder)
            assert held <= _LIMIT * 4 + _SLACK, f"{type(decoder).__name__} holds {held}"
        found += decoder.flush()
    except documented as error:
        return found, type(error).__name__
    return found, ""


def size_of(value: Any, depth: int = 4) -> int:
    """Return the characters and bytes in *value*, an object or a container."""
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    if depth and isinstance(value, dict):
        return sum(size_of(each, depth - 1) for each in value.values())
    if depth and isinstance(value, (list, tuple, set)):
        return sum(size_of(each, depth - 1) for each in value)
    return 1


def same_in_pieces(make: Callable[[], Any], data: bytes, documented: Any) -> List[Any]:
    """Check that the pieces make no difference; return what comes out."""
    payload, pieces = pieces_of(data)
    large = [payload[at : at + _LIMIT] for at in range(0, len(payload), _LIMIT)]
    whole, error = run(make(), large, documented)
    parts, same = run(make(), pieces, documented)
    assert (whole, error) == (parts, same), (whole, error, parts, same)
    return whole


def fuzz_sse(data: bytes) -> None:
    events = same_in_pieces(lambda: SSEDecoder(max_buffer=_LIMIT), data, WireError)
    for event in events:
        try:
            encoded = encode_event(event)
        except ValueError:
            continue  # a name or id that we never send
        if event.data:
            again = SSEDecoder().feed(encoded)
            assert [(each.event, each.data) for each in again] == [(event.event, event.data)]


def fuzz_ndjson(data: bytes) -> None:
    same_in_pieces(lambda: NDJSONDecoder(max_line=_LIMIT), data, WireError)


def fuzz_frames(data: bytes) -> None:
    same_in_pieces(lambda: FrameDecoder(max_frame=_LIMIT), data, WireError)


def fuzz_chunked(data: bytes) -> None:
    payload, pieces = pieces_of(data)
    results = []
    for each in ([payload], pieces):
        decoder = ChunkedDecoder()
        out = b""
        for piece in each:
            if decoder.done or decoder.broken:
                break
            out += decoder.feed(piece)
        results.append((out, bool(decoder.broken), decoder.done))
    assert results[0] == results[1], results


def _read_json(text: str, pieces: List[str], options: JsonOptions) -> Run:
    reader = JsonReader(options)
    found: List[Any] = []
    for piece in pieces:
        deltas, failure = reader.feed(piece)
        found += deltas
        if failure is not None:
            return found, type(failure).__name__
    deltas, failure = reader.flush()
    return found + deltas, "" if failure is None else type(failure).__name__


def fuzz_json(data: bytes) -> None:
    payload, _ = pieces_of(data)
    text = payload.decode("utf-8", "surrogateescape")
    size = data[0] % 17 + 1 if data else 1
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    for options in (JsonOptions(), JsonOptions(strict=True), JsonOptions(cut="close", max_depth=5)):
        deltas, error = _read_json(text, pieces, options)
        document = JsonDocument()
        for delta in deltas:
            document.apply(delta)
        json.dumps(document.value)
        if options.cut == "error" and not error:
            assert document.value == json.loads(text)
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return
    deltas, error = _read_json(text, pieces, JsonOptions(strict=True))
    if not error:
        document = JsonDocument()
        for delta in deltas:
            document.apply(delta)
        assert document.value == value


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _provider(name: str) -> Callable[[bytes], None]:
    def fuzz(data: bytes) -> None:
        payload, _ = pieces_of(data)
        decoder = make_decoder(name)
        for line in payload.split(b"\n"):
            text = line.decode("utf-8", "surrogateescape")
            try:
                if name == "ollama":
                    decoder.feed_chunk(json.loads(text))
                else:
                    kind = "error" if line[:1] == b"!" else None
                    decoder.feed_event(Event(text[1:] if kind else text, kind))
            except (UpstreamError, WireError):
                pass
            except (ValueError, RecursionError):
                if name != "ollama":
                    raise
        try:
            make_decoder(name).feed_whole(json.loads(payload.decode("utf-8", "surrogateescape")))
        except (ValueError, RecursionError, LLMStreamError):
            pass

    return fuzz


def fuzz_meter(data: bytes) -> None:
    payload, pieces = pieces_of(data)
    for framing in ("sse", "ndjson", "json"):
        meter = Meter(framing)
        assert [meter.feed(piece) for piece in pieces] == pieces
        meter.flush()
    hiding = Meter(hide=True)
    assert hiding.feed(payload) == payload or b'"choices"' in payload


def fuzz_gate(data: bytes) -> None:
    payload, pieces = pieces_of(data)
    for framing, ends in (("sse", (b"\n\n", b"\n\r\n")), ("ndjson", b"\n")):
        gate = make_gate(framing)
        assert gate is not None
        passed = b""
        for piece in pieces:
            passed += gate.feed(piece)
            assert not passed or not gate.between or passed.endswith(ends)
        assert passed + gate.flush() == payload


def fuzz_adopted(data: bytes) -> None:
    payload, pieces = pieces_of(data)
    wire = AdoptedSSE()
    beaten = b""
    for piece in pieces:
        wire.pass_on(piece)
        beaten += piece + (wire.heartbeat or b"")
    if b"\r" not in payload:  # mixed line ends are ends for some clients only
        assert SSEDecoder().feed(beaten) == SSEDecoder().feed(payload)


def fuzz_accept(data: bytes) -> None:
    assert negotiate(data.decode("latin-1")) in format_names()


def fuzz_retry_after(data: bytes) -> None:
    seconds = parse_retry_after(data.decode("latin-1"), 1.7e9)
    assert seconds is None or seconds >= 0


def fuzz_chunkers(data: bytes) -> None:
    name = _CHUNKERS[data[0] % len(_CHUNKERS)] if data else "word"
    payload, _ = pieces_of(data[1:])
    text = payload.decode("utf-8", "replace")
    size = data[1] % 17 + 1 if len(data) > 1 else 1
    chunker: Any = make_chunker(name)
    if chunker is None:
        return
    segments: List[str] = []
    for start in range(0, len(text), size):
        segments += chunker.feed(text[start : start + size])
    segments += chunker.flush()
    assert "".join(segments) == text
    assert all(segments)


def fuzz_formats(data: bytes) -> None:
    """Text that comes in as bytes, cut inside of characters, leaves whole in every format."""
    payload, pieces = pieces_of(data)
    for name in format_names():
        wire = make_format(name)
        texts = [wire.decode_text(piece) for piece in pieces]
        for text in texts:
            assert isinstance(wire.encode(TextDelta(text)), bytes)
        assert isinstance(wire.done("stop"), bytes)
        assert payload.decode("utf-8", "replace").startswith("".join(texts))


def _targets() -> Iterator[Tuple[str, Callable[[bytes], None]]]:
    for name, target in sorted(globals().items()):
        if name.startswith("fuzz_"):
            yield name[len("fuzz_") :], target
    for name in ("openai", "openai-responses", "anthropic", "ollama", "gemini"):
        yield name, _provider(name)


#: The functions by the names of what they fuzz.
TARGETS: Dict[str, Callable[[bytes], None]] = dict(_targets())

_CHAT = (
    b'{"choices":[{"index":0,"delta":{"content":"a","tool_calls":[{"index":0,"id":"c","function":{"name":"f",'
    b'"arguments":"{}"}}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
)
_PROSE = "Dr. No paid 3.5 €. **bold** [a](b)\n\n```py\nx\n```\n".encode()
#: Where the search begins: inputs that get far.
SEEDS: Dict[str, List[bytes]] = {
    "sse": [
        b"\x05event: x\nid: 1\nretry: 5\ndata: a\ndata: b\n\n",
        b"\x02\xef\xbb\xbfdata: \xc3\xa9\r\n\r\n: c\r\r",
    ],
    "ndjson": [b'\x03{"a": 1}\n\n[2]\r\n"x"', b"\x01{}\n" * 3],
    "frames": [b"\x01\x00\x00\x00\x02\x01\x00Hi\x00\x00\x00\x02\x08\x00{}"],
    "chunked": [b"\x035\r\nhello\r\n3;a=b\r\nxyz\r\n0\r\nA: b\r\n\r\n"],
    "json": [
        b'\x04Sure! ```json\n{"a": [1, 2.5e3, true, null, "x\\u00e9\\ud83d"], /* c */ \'b\': None,}\n```'
    ],
    "openai": [b"\x00" + _CHAT + b"\n[DONE]", b'\x00!{"error":{"message":"no","type":"rate_limit_error"}}'],
    "openai-responses": [
        b'\x00{"type":"response.output_text.delta","delta":"a"}\n'
        b'{"type":"response.completed","response":{"status":"completed","output":[],'
        b'"usage":{"input_tokens":1,"output_tokens":2}}}'
    ],
    "anthropic": [
        b'\x00{"type":"message_start","message":{"usage":{"input_tokens":1}}}\n'
        b'{"type":"content_block_start","index":0,'
        b'"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}\n'
        b'{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{}"}}\n'
        b'{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":2}}'
    ],
    "ollama": [
        b'\x00{"message":{"content":"a","thinking":"b",'
        b'"tool_calls":[{"function":{"name":"f","arguments":{}}}]},"done":false}\n'
        b'{"done":true,"done_reason":"stop","eval_count":1,"prompt_eval_count":2}'
    ],
    "gemini": [
        b'\x00{"candidates":[{"content":{"parts":[{"text":"a","thought":true},'
        b'{"functionCall":{"name":"f","args":{}}}]},"finishReason":"STOP"}],'
        b'"usageMetadata":{"promptTokenCount":1}}'
    ],
    "meter": [b"\x06data: " + _CHAT + b'\n\ndata: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'],
    "gate": [b"\x03data: a\n\ndata: b\r\n\r\ndata: c\r\rdata", b"\x04{}\n[]\r\n1"],
    "adopted": [b"\x03data: a\n\n: c\ndata: b\n\nevent: x"],
    "accept": [b'text/event-stream;q=0.5, application/x-ndjson;charset="utf-8", */*;q=0.1'],
    "retry_after": [b"12.5", b"Fri, 31 Dec 1999 23:59:59 GMT"],
    "chunkers": [bytes([number, 4]) + _PROSE for number in range(len(_CHUNKERS))],
    "formats": [b"\x02Hi \xf0\x9f\x99\x82\xff"],
}
