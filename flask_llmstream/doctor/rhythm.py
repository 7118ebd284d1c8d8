"""How the events of one answer came, against how they were sent. Pure.

Decisions
    1. The clocks of client and app are never compared: of sent times only the distances are used.
    2. What is held is told by silences. A hop that counts bytes holds the last event of a burst until
       more comes; one that waits for time does not.
    3. Thresholds leave room for a link that jitters: some events that come together prove nothing.
"""

from __future__ import annotations

import statistics
from typing import List, NamedTuple, Optional, Sequence

from flask_llmstream.doctor.observations import Arrival, Observation

__all__ = ["Rhythm", "rhythm_of"]

#: Of the gap that was sent: two events came together that are closer than this.
_TOGETHER = 0.25
#: Share of the tokens that came together with the one before; a healthy way with jitter has fewer.
_LUMPY = 0.35
#: Seconds: shorter gaps say nothing; longer ones are silences.
_SHORTEST, _SILENCE = 0.05, 0.45
#: Seconds between two bursts of bytes.
_BURST = 0.02
#: Bytes: smaller ones are no block of a buffer.
_BLOCK = 64
#: Seconds that a foreign stream must take, and events that it must have, before it can be judged.
_LONG, _MANY = 0.7, 4


class Rhythm(NamedTuple):
    """What the timing shows."""

    #: ``on time``, ``delayed`` (by time), ``buffered`` (by size), ``stored`` (to the end) or ``unknown``.
    kind: str
    #: Share of tokens that came together with the one before; ``None`` where nobody knows.
    joined: Optional[float]
    #: Median gap of the tokens when sent and when received, in seconds.
    sent_gap: Optional[float]
    received_gap: Optional[float]
    #: How much later than the promptest one the latest token came, in seconds.
    late: Optional[float]
    #: Bytes of the smallest burst that came before the last; ``None`` where all came in one.
    smallest: Optional[int]
    #: Bursts of bytes.
    bursts: int


def rhythm_of(seen: Observation) -> Rhythm:
    """Return what the times of *seen* show."""
    bursts = _bursts(seen)
    smallest = min(bursts[:-1], default=None)
    timed = [event for event in seen.events if event.sent is not None]
    if len(timed) < _MANY:
        return _without_times(seen, bursts, smallest)
    sent = [_gap_sent(*pair) for pair in zip(timed, timed[1:])]
    received = [later.at - earlier.at for earlier, later in zip(timed, timed[1:])]
    pairs = [(gap, came) for gap, came in zip(sent, received) if gap >= _SHORTEST]
    together = [came < _TOGETHER * gap for gap, came in pairs]
    tokens = [each for each, (gap, _) in zip(together, pairs) if gap < _SILENCE]
    silences = [each for each, (gap, _) in zip(together, pairs) if gap >= _SILENCE]
    # Blocks take their time on a slow link; the first part is all small events.
    first = _first_part(sent)
    joined = statistics.mean(tokens[:first] or tokens or [False])
    late = [event.at - (event.sent or 0.0) for event in timed[: first + 1]]
    span = sum(sent)
    kind = "on time"
    if span and timed[-1].at - timed[0].at < _TOGETHER * span:
        kind = "stored"
    elif any(silences):
        kind = "buffered"
    elif joined >= _LUMPY:
        kind = "delayed"
    if kind == "buffered":
        # What the head brought along, or a heartbeat, is not what a full buffer let go.
        smallest = min((size for size in bursts[:-1] if size >= _BLOCK), default=None)
    return Rhythm(
        kind, float(joined), _median(sent[:first]), _median(received[:first]), max(late) - min(late),
        smallest, len(bursts),
    )


def _without_times(seen: Observation, bursts: List[int], smallest: Optional[int]) -> Rhythm:
    """Judge a stream whose events do not say when they were sent: by the one pattern that is plain."""
    gaps = [later.at - earlier.at for earlier, later in zip(seen.events, seen.events[1:])]
    kind = "unknown"
    first = seen.first_byte
    if first is not None and len(seen.events) >= _MANY and seen.end == "complete":
        spread = seen.events[-1].at - first
        if spread >= _LONG and len(bursts) >= min(len(seen.events), 8) / 2:
            kind = "on time"
        elif first >= _LONG and spread < _TOGETHER * first:
            kind = "stored"
    return Rhythm(kind, None, None, _median(gaps), None, smallest, len(bursts))


def _first_part(sent: Sequence[float]) -> int:
    """Return how many gaps there are before the first silence."""
    for number, gap in enumerate(sent):
        if gap >= _SILENCE:
            return number or 1
    return len(sent)


def _gap_sent(earlier: Arrival, later: Arrival) -> float:
    return (later.sent or 0.0) - (earlier.sent or 0.0)


def _bursts(seen: Observation) -> List[int]:
    """Return the sizes of what came together."""
    bursts: List[int] = []
    before: Optional[float] = None
    for at, size in seen.reads:
        if before is not None and at - before < _BURST:
            bursts[-1] += size
        else:
            bursts.append(size)
        before = at
    return bursts


def _median(values: Sequence[float]) -> Optional[float]:
    return statistics.median(values) if values else None
