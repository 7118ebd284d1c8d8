"""An app that sends what chance gives it, in every way there is, and says at the end what it was."""

from __future__ import annotations

import hashlib
import random
import time
from typing import Any, Callable, Dict, Iterator, List

from flask import Flask, request

from flask_llmstream import (
    Comment,
    Custom,
    Event,
    LLMStream,
    TextDelta,
    current_stream,
    stream_response,
)
from flask_llmstream.current import running

app = Flask(__name__)
LLMStream(app, heartbeat_interval=0.01, status_hold=0.03, max_delay=0.02)

#: Longest single text, in characters.
LARGEST = 300_000

_random = random.Random(1)
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789" * 4 + " .,:\"\\/\r\n\t\0\x0b\x7f\x85\u2028äßЖ中😀\ufeff"
#: Texts are cut out of this.
_PLENTY = "".join(_random.choice(_ALPHABET) for _ in range(LARGEST + 1000))


class Record:
    """What was sent: every text goes through here on its way."""

    def __init__(self, seed: int, budget: int) -> None:
        self.chance = random.Random(seed)
        self.left = budget
        self.length = 0
        self._hash = hashlib.sha256()

    def text(self, largest: int = LARGEST) -> str:
        """Return the next text, which is to be sent."""
        chance = self.chance
        size = chance.randint(0, chance.choice([200] * 5 + [8000] * 3 + [LARGEST]))
        size = max(0, min(size, largest, self.left))
        start = chance.randint(0, 1000)
        text = _PLENTY[start : start + size]
        self.left -= max(1, size)
        self.length += size
        self._hash.update(text.encode())
        return text

    def mark(self) -> Event:
        """Return an event that says how much text precedes it."""
        return Event(str(self.length), event="mark")

    def pause(self, longest: float) -> None:
        """Block for a while, or not at all."""
        time.sleep(self.chance.choice([0.0, self.chance.random() * longest]))

    def sums(self) -> Custom:
        """Return the last item."""
        return Custom("sums", {"sha256": self._hash.hexdigest(), "length": self.length})


class Burst:
    """A source that knows how much of it is ready."""

    def __init__(self, texts: List[str]) -> None:
        self._texts = texts

    @property
    def ready(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Burst:
        return self

    def __next__(self) -> TextDelta:
        if not self._texts:
            raise StopIteration
        return TextDelta(self._texts.pop(0))


def paced(record: Record) -> Iterator[Any]:
    """One text at a time, with pauses in which heartbeats are due."""
    while record.left > 0:
        yield record.text()
        record.pause(0.03)


def late(record: Record) -> Iterator[Any]:
    """Nothing until its silence has opened the stream, so that this is not the source's doing."""
    stream, until = running(), time.monotonic() + 5.0
    while not stream._opened and time.monotonic() < until:
        time.sleep(0.01)
    yield from paced(record)


def hot(record: Record) -> Iterator[Any]:
    """As fast as it can, blocking now and then in the middle of a burst."""
    while record.left > 0:
        for _ in range(record.chance.randint(1, 80)):
            yield record.text(4000 if record.chance.random() < 0.97 else LARGEST)
        if record.chance.random() < 0.4:
            yield from Burst([record.text(3000) for _ in range(record.chance.randint(1, 70))])
        record.pause(0.02)


def sending(record: Record) -> Iterator[Any]:
    """Through ``current_stream`` and by ``yield`` in turns."""
    while record.left > 0:
        kind = record.chance.randint(0, 5)
        if kind <= 1:
            current_stream.send(record.text())
        elif kind == 2:
            current_stream.flush()
        else:
            yield record.text()
        if record.chance.random() < 0.3:
            current_stream.send(record.mark())
        record.pause(0.02)


def octets(record: Record) -> Iterator[Any]:
    """As bytes, cut anywhere, also inside a character."""
    while record.left > 0:
        data = record.text(50_000).encode()
        while data:
            size = record.chance.randint(1, 5000)
            yield data[:size]
            data = data[size:]
            if record.chance.random() < 0.1:
                record.pause(0.02)


def everything(record: Record) -> Iterator[Any]:
    """All of it."""
    yield Comment("begin")
    while record.left > 0:
        way = record.chance.choice([paced, hot, sending, octets])
        budget = min(record.left, record.chance.randint(1, 60_000))
        part = Record(record.chance.randint(0, 1 << 30), budget)
        part._hash, part.length, before = record._hash, record.length, part.left
        yield from way(part)
        record.length = part.length
        record.left -= before
        yield record.mark()


_WAYS: Dict[str, Callable[[Record], Iterator[Any]]] = {
    "paced": paced, "late": late, "hot": hot, "sending": sending, "octets": octets, "everything": everything,
}


@app.route("/<way>/<int:seed>")
def payload(way: str, seed: int) -> Any:
    record = Record(seed, int(request.args["budget"]))

    def generate() -> Iterator[Any]:
        yield from _WAYS[way](record)
        if way == "paced":
            time.sleep(0.05)  # chance may have given it few pauses
        current_stream.flush()
        yield record.sums()

    padding = int(request.args.get("padding", 0))
    return stream_response(generate(), chunk=request.args.get("chunk"), padding=padding)
