"""What can be wrong with the way of a stream: its name, what it is called, and what it does to readers."""

from __future__ import annotations

from typing import Dict, NamedTuple

__all__ = ["CAUSES", "Cause"]


class Cause(NamedTuple):
    """One of them."""

    title: str
    why: str


#: By the code of the finding.
CAUSES: Dict[str, Cause] = {
    "response-buffering": Cause(
        "response buffering", "Tokens wait until a buffer is full, so the answer arrives in lumps."
    ),
    "store-and-forward": Cause("store and forward", "The reader sees nothing until the model has ended."),
    "packet-delay": Cause(
        "small packets wait",
        "Small packets wait up to 200 ms for more, so tokens arrive in pairs and threes.",
    ),
    "compression": Cause(
        "compression",
        "It costs CPU for each token, and most compressors wait for more before they send anything.",
    ),
    "http-1.0": Cause(
        "HTTP/1.0", "It has no chunks: many hops buffer because of it, and a broken stream looks complete."
    ),
    "content-length": Cause(
        "a length was added", "A stream has no length. Who says one has read all of it before."
    ),
    "cache": Cause("a cache answers", "The reader gets the answer to somebody else's question."),
    "idle-timeout": Cause("idle timeout", "A model that thinks for longer than that loses its reader."),
    "total-timeout": Cause("limit on the whole time", "A long answer loses its reader."),
    "departure-unseen": Cause(
        "departures are not passed on", "The model goes on, and is paid for, when nobody reads any more."
    ),
    "heartbeats-lost": Cause(
        "heartbeats are lost", "Without them every limit on silence cuts a model that thinks."
    ),
    "cut": Cause("the stream is cut", "The reader loses the rest."),
    "first-byte-late": Cause(
        "the beginning is late", "The reader waits that much longer for the first word."
    ),
    "close-delimited": Cause("the end is not marked", "A broken stream looks like a complete one."),
    "header-lost": Cause(
        "a header is lost", "Hops further out do not know any more that the stream must not be changed."
    ),
}
