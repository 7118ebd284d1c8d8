"""What a scripted upstream does with a request: a list of steps, made by the functions here.

::

    [tokens("Hel", "lo"), wait(0.5), done()]        an answer with a pause
    [tokens("a", "b", "c"), silence()]              goes silent for ever
    [tokens("a"), raw(b'data: {"cho'), cut()]       cut in the middle of an event
    [status(429, headers={"Retry-After": "7"})]     no stream at all
"""

from __future__ import annotations

import asyncio
import json as json_module
import math
import threading
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Tuple, Union

from flask_llmstream.testing.answer import Answer

__all__ = [
    "Script",
    "Step",
    "chunk",
    "close_delimited",
    "cut",
    "delay_headers",
    "done",
    "flood",
    "headers",
    "hold",
    "invalid_utf8",
    "raw",
    "reset",
    "silence",
    "status",
    "tokens",
    "wait",
]


#: How often a held script looks at its flag, in seconds.
_POLL_INTERVAL = 0.002


class Step:
    """One step of a script."""

    def __init__(self, name: str, run: Callable[[Answer], Awaitable[None]]) -> None:
        self._name = name
        self.run = run

    def __repr__(self) -> str:
        return self._name


#: What a request is answered with. The end of the script ends the body as HTTP wants it.
Script = Union[List[Step], Tuple[Step, ...]]


def _frame(obj: Any) -> bytes:
    return b"data: " + json_module.dumps(obj, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def _chunk(delta: Dict[str, Any], finish_reason: Optional[str] = None) -> Dict[str, Any]:
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "scripted",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def tokens(*texts: str, interval: float = 0.0) -> Step:
    """Send each text as one chunk of a chat completion, in an HTTP chunk of its own.

    :param interval: seconds between two of them. Defaults to 0.
    """
    frames = [_frame(_chunk({"content": text})) for text in texts]
    return Step(f"tokens(<{len(texts)}>)", _paced([(frame, 1) for frame in frames], interval))


def flood(count: int, text: str = " token", burst: int = 256, interval: float = 0.0) -> Step:
    """Send the same text *count* times, rendered beforehand, for load tests.

    :param burst: chunks per write; each is an HTTP chunk of its own all the same.
    :param interval: seconds between two writes. Defaults to 0.
    """
    frame = _frame(_chunk({"content": text}))
    full, rest = divmod(count, burst)
    pieces = [(frame, burst)] * full + ([(frame, rest)] if rest else [])
    return Step(f"flood({count})", _paced(pieces, interval))


def _paced(pieces: List[Tuple[bytes, int]], interval: float) -> Callable[[Answer], Awaitable[None]]:
    async def run(answer: Answer) -> None:
        loop = asyncio.get_event_loop()
        due = loop.time()
        for number, (frame, times) in enumerate(pieces):
            if interval and number:
                # From a fixed start, so that the pace is kept under load.
                due += interval
                await asyncio.sleep(max(0.0, due - loop.time()))
            answer.exchange.tokens_sent += times
            await answer.write(frame, times)

    return run


def chunk(obj: Any) -> Step:
    """Send *obj* as the JSON of one event."""
    return Step("chunk(…)", lambda answer: answer.write(_frame(obj)))


def raw(data: bytes) -> Step:
    """Send *data* as it is, in one HTTP chunk."""
    return Step(f"raw(<{len(data)} bytes>)", lambda answer: answer.write(data))


def invalid_utf8() -> Step:
    """Send a chunk whose text holds bytes that are not UTF-8."""
    return raw(_frame(_chunk({"content": "X"})).replace(b'"X"', b'"\xff\xfe"'))


def done(
    usage: Union[None, bool, Mapping[str, Any]] = None,
    finish_reason: Optional[str] = "stop",
    marker: bool = True,
) -> Step:
    """End the answer as OpenAI does: a finish reason, the usage, ``[DONE]``.

    :param usage: what to report. Defaults to the number of tokens sent, if the request asked for
        usage; ``False`` reports none.
    :param finish_reason: ``None`` leaves it out.
    :param marker: whether ``[DONE]`` is sent.
    """

    async def run(answer: Answer) -> None:
        if finish_reason is not None:
            await answer.write(_frame(_chunk({}, finish_reason)))
        report = usage
        if report is None:
            asked = answer.exchange.json
            options = asked.get("stream_options") if isinstance(asked, dict) else None
            report = bool(options and options.get("include_usage"))
        if report is True:
            sent = answer.exchange.tokens_sent
            report = {"prompt_tokens": 7, "completion_tokens": sent, "total_tokens": 7 + sent}
        if report:
            await answer.write(_frame(dict(_chunk({}), choices=[], usage=report)))
        if marker:
            await answer.write(b"data: [DONE]\n\n")

    return Step("done()", run)


def wait(seconds: float) -> Step:
    """Send nothing for *seconds*."""

    async def run(answer: Answer) -> None:
        await answer.start()
        await asyncio.sleep(seconds)

    return Step(f"wait({seconds:g})", run)


def hold(flag: threading.Event) -> Step:
    """Send nothing until *flag* is set, by the test for example."""

    async def run(answer: Answer) -> None:
        await answer.start()
        while not flag.is_set():
            await asyncio.sleep(_POLL_INTERVAL)

    return Step("hold(…)", run)


def silence() -> Step:
    """Send nothing any more until the peer leaves."""

    async def run(answer: Answer) -> None:
        await answer.start()
        await _for_ever()

    return Step("silence()", run)


def delay_headers(seconds: float = math.inf) -> Step:
    """Send nothing at all for *seconds*, not even the status. Defaults to for ever."""

    async def run(answer: Answer) -> None:
        await (asyncio.sleep(seconds) if math.isfinite(seconds) else _for_ever())

    return Step(f"delay_headers({seconds:g})", run)


async def _for_ever() -> None:
    await asyncio.get_event_loop().create_future()


def headers(fields: Mapping[str, str], status: int = 200) -> Step:
    """Add response headers; with ``Content-Length`` the body is sent without chunking.

    :param status: of an answer whose body is streamed nevertheless.
    """

    async def run(answer: Answer) -> None:
        answer.headers.update(fields)
        answer.status = status

    return Step("headers(…)", run)


async def _delimit_by_close(answer: Answer) -> None:
    answer.headers["Connection"] = "close"


#: Not a function: the body is not chunked and ends with the connection.
close_delimited = Step("close_delimited", _delimit_by_close)


def cut() -> Step:
    """Close the connection here and now (FIN), whatever is still missing, be it the status."""
    return Step("cut()", lambda answer: answer.cut())


def reset() -> Step:
    """Break the connection here and now (RST), whatever is still missing."""
    return Step("reset()", lambda answer: answer.cut(reset=True))


def status(
    code: int,
    headers: Optional[Mapping[str, str]] = None,
    json: Any = None,
    body: Optional[bytes] = None,
) -> Step:
    """Answer with *code* and no stream.

    :param headers: more headers. ``Content-Type`` defaults to JSON.
    :param json: the body. Defaults to an error object as OpenAI sends it.
    :param body: the body itself, where it is not JSON.
    """
    if json is None:
        json = {"error": {"message": f"scripted {code}", "type": "scripted", "code": None, "param": None}}
    payload = json_module.dumps(json).encode() if body is None else body

    async def run(answer: Answer) -> None:
        answer.status = code
        answer.headers["Content-Type"] = "application/json"
        answer.headers.update(headers or {})
        answer.headers["Content-Length"] = str(len(payload))
        await answer.write(payload)

    return Step(f"status({code})", run)
