"""The one table of metrics: names, types, labels, buckets and help come from here."""

from __future__ import annotations

from typing import Dict, NamedTuple, Tuple

__all__ = ["LEAKS", "METRICS", "REASONS", "Metric", "metric"]

#: Why streams end; see :class:`~flask_llmstream.StreamEnd`.
REASONS = ("finish", "disconnect", "stop", "error", "timeout", "shutdown")
#: What must not be there; see :mod:`flask_llmstream.metered`.
LEAKS = ("abandoned", "lingering", "unclosed")

#: Bounds in seconds. From a token of a fast model to one that the reader takes for the end.
_GAPS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_WAITS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
_DURATIONS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
_MOMENTS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metric(NamedTuple):
    """One row of the table."""

    #: As it is read; a counter's ends in ``_total``.
    name: str
    #: ``counter``, ``gauge`` or ``histogram``.
    type: str
    labels: Tuple[str, ...]
    help: str
    #: Upper bounds of a histogram's buckets, without the infinite one.
    bounds: Tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """Its name without ``_total``, which is how the library calls it."""
        return self.name[:-6] if self.type == "counter" else self.name


METRICS: Tuple[Metric, ...] = (
    Metric(
        "llmstream_streams_active", "gauge", ("route", "format"),
        "Streams that are running now.",
    ),
    Metric(
        "llmstream_streams_started_total", "counter", ("route", "format"),
        "Streams that the server has begun to send.",
    ),
    Metric(
        "llmstream_streams_ended_total", "counter", ("route", "format", "reason"),
        "Streams that are over, by what ended them.",
    ),
    Metric(
        "llmstream_streams_refused_total", "counter", ("limit",),
        "Streams that were refused because of a limit, by the limit.",
    ),
    Metric(
        "llmstream_time_to_first_token_seconds", "histogram", ("route",),
        "Time from the start of a stream to the first item of its source.", _WAITS,
    ),
    Metric(
        "llmstream_output_gap_seconds", "histogram", ("route",),
        "Time between two deliveries of output of one stream; tokens that leave together are one delivery.",
        _GAPS,
    ),
    Metric(
        "llmstream_stream_duration_seconds", "histogram", ("route",),
        "Time from the start of a stream to its end.", _DURATIONS,
    ),
    Metric(
        "llmstream_sent_bytes_total", "counter", ("route",),
        "Bytes of bodies that were handed to the server, heartbeats and padding included.",
    ),
    Metric(
        "llmstream_sent_events_total", "counter", ("route",),
        "Pieces of output that were handed to the server: one for each item that has something to send,"
        " and the terminal event.",
    ),
    Metric(
        "llmstream_coalesced_events_total", "counter", ("route",),
        "Pieces of output that left together with another in one write.",
    ),
    Metric(
        "llmstream_input_tokens_total", "counter", ("route", "estimated"),
        "Input tokens of streams that are over; estimated where a call was cut before it could say.",
    ),
    Metric(
        "llmstream_output_tokens_total", "counter", ("route", "estimated"),
        "Output tokens of streams that are over; estimated where the provider has not said them.",
    ),
    Metric(
        "llmstream_upstream_cancelled_total", "counter", ("route",),
        "Upstream calls, and whatever else was bound to a stream, that were closed because its client left.",
    ),
    Metric(
        "llmstream_upstream_cancel_seconds", "histogram", ("route",),
        "Time from a client's departure, as it was noticed, to the end of an upstream call.", _MOMENTS,
    ),
    Metric(
        "llmstream_saved_output_tokens_estimate_total", "counter", ("route",),
        "Output tokens not bought thanks to cancellation, an estimate: mean output of the route's finished"
        " streams in this worker, minus what the cancelled one had got, never below 0.",
    ),
    Metric(
        "llmstream_leaks", "gauge", ("kind",),
        "What should not be there, and must be 0: streams that were collected without having ended"
        " (abandoned), streams that run on after their request (lingering), bound objects of ended streams"
        " that are still open (unclosed).",
    ),
)

_BY_NAME: Dict[str, Metric] = {each.name: each for each in METRICS}


def metric(name: str) -> Metric:
    """Return the row called *name*, without the prefix of all."""
    return _BY_NAME["llmstream_" + name]
