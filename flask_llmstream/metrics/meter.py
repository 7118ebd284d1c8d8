"""What is counted of one stream: plain numbers, which the tally of the process takes over now and then."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, List, NamedTuple, Optional

from flask_llmstream.metrics.table import metric

__all__ = ["GAPS", "Counted", "Meter"]

#: Upper bounds of what lies between two deliveries.
GAPS = metric("output_gap_seconds").bounds


class Counted(NamedTuple):
    """What a stream has counted by a certain moment."""

    sent: int = 0
    events: int = 0
    coalesced: int = 0
    gap_sum: float = 0.0
    #: One for each bound, and one for what is longer than all.
    gaps: List[int] = [0] * (len(GAPS) + 1)


class Meter:
    """The counters of one stream. Only what drives it counts; anybody may read.

    :param tally: of this process.
    :param route: where it was asked for.
    :param format: its wire format.
    """

    __slots__ = (
        "tally", "route", "format", "at", "base", "sent", "gaps", "extra", "coalesced", "padded", "left_at",
        "calls", "called", "handed", "watch",
    )

    def __init__(self, tally: Any, route: str, format: str) -> None:
        self.tally = tally
        self.route = route
        self.format = format
        #: When the first and the last delivery of output were, on the runtime's clock.
        self.base = 0.0
        self.at: Optional[float] = None
        #: Bytes.
        self.sent = 0
        #: How many gaps were so long; see :data:`GAPS`.
        self.gaps = [0] * (len(GAPS) + 1)
        #: Pieces of output beyond one for each delivery.
        self.extra = 0
        self.coalesced = 0
        #: Bytes that have just been put in front of the first output.
        self.padded = 0
        #: When the client left.
        self.left_at: Optional[float] = None
        #: Upstream calls that are still to be closed because of that, and whether there were any.
        self.calls = 0
        self.called = False
        #: What the tally has got already.
        self.handed = Counted()
        #: A reference to the stream, which tells if it is collected.
        self.watch: Any = None

    def deliver(self, pieces: int, at: float) -> None:
        """Count *pieces* of output that leave together."""
        if self.at is None:
            self.base = at
        else:
            self.gaps[bisect_left(GAPS, at - self.at)] += 1
        self.at = at
        self.join(pieces)

    def join(self, pieces: int) -> None:
        """Count that so many *pieces* become one."""
        if pieces > 1:
            self.extra += pieces - 1
            self.coalesced += pieces

    def counted(self) -> Counted:
        """Return what was counted so far."""
        gaps = list(self.gaps)
        begun = self.at is not None
        # Each delivery but the first has a gap before it.
        events = begun + sum(gaps) + self.extra
        gap_sum = self.at - self.base if self.at is not None else 0.0
        return Counted(self.sent, events, self.coalesced, gap_sum, gaps)
