"""Proves that a decoder does not mind how its input was cut."""

from __future__ import annotations

from typing import Any, Callable, Iterator, List, Sequence, Tuple

SIZES = (1, 2, 3, 7)


def every_way(wire: Any) -> Iterator[Tuple[str, List[Any]]]:
    """Yield *wire* whole, in pieces of several sizes, and cut in two at each place."""
    yield "whole", [wire]
    for size in SIZES:
        yield f"pieces of {size}", [wire[i : i + size] for i in range(0, len(wire), size)]
    for cut in range(len(wire) + 1):
        yield f"cut at {cut}", [wire[:cut], wire[cut:]]


def decode_every_way(make: Callable[[], Any], wire: Any, expected: Sequence[Any]) -> List[Any]:
    """Feed *wire* to new decoders in every way; return the decoders for a look at their state."""
    decoders = []
    for way, pieces in every_way(wire):
        decoder = make()
        items = [item for piece in pieces for item in decoder.feed(piece)]
        items += decoder.flush()
        assert items == list(expected), way
        decoders.append(decoder)
    return decoders
