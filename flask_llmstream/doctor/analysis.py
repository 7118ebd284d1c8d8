"""From what was seen at each hop to what is wrong, and where. Pure.

Decision: what the first hop shows a fault of that the one before did not show is where it begins. The hops
behind it show it, too, and are not blamed, unless it is worse there.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

from flask_llmstream.doctor.causes import CAUSES
from flask_llmstream.doctor.findings import Finding
from flask_llmstream.doctor.observations import Observation
from flask_llmstream.doctor.remedies import APP, products_of, remedy
from flask_llmstream.doctor.rhythm import Rhythm, rhythm_of

__all__ = ["Departure", "Look", "findings_of"]

#: How bad a rhythm is.
_RANK = {"unknown": 0, "on time": 0, "delayed": 1, "buffered": 2, "stored": 3}
_CAUSES = {"delayed": "packet-delay", "buffered": "response-buffering", "stored": "store-and-forward"}
#: A body of fewer bytes fits into the buffers that proxies have by default.
_FITS = 65536
#: Seconds by which a first byte may be later than at the hop before.
_LATE = 1.0


class Departure(NamedTuple):
    """Whether the leaving of a client reached the app."""

    #: Seconds after which it was known there; ``None`` where it was not.
    after: Optional[float]
    #: Seconds for which it was waited.
    waited: float


class Look(NamedTuple):
    """All that was seen through one hop."""

    seen: Observation
    #: Of a silence of :attr:`idle_seconds`, and of a stream of :attr:`long_seconds`.
    idle: Optional[Observation] = None
    idle_seconds: float = 0.0
    long: Optional[Observation] = None
    long_seconds: float = 0.0
    #: ``None`` where the app could not be asked.
    departure: Optional[Departure] = None
    #: What was asked for, which the probe repeats.
    nonce: str = ""
    #: What came of looking for the app behind this hop; empty where nobody has looked.
    search: str = ""

    @property
    def headers(self) -> Dict[str, str]:
        """Those of the answer, with names in lower case."""
        return {name: self.seen.header(name) or "" for name, _ in self.seen.headers}

    def products(self, before: Optional[Look]) -> List[str]:
        """Return what stands there, by what it shows that the hop before does not."""
        theirs = before.headers if before is not None and not before.seen.error else None
        heard, earlier = (_via(each.seen) if each is not None else "" for each in (self, before))
        return products_of(self.seen.hop.name, self.headers, theirs, "" if heard == earlier else heard)

    @property
    def is_fresh(self) -> bool:
        """Whether the probe has answered us, and nobody before."""
        return not self.nonce or (self.seen.hello or {}).get("nonce") == self.nonce

    @property
    def rhythm(self) -> Rhythm:
        """What the timing shows."""
        return rhythm_of(self.seen)


def findings_of(looks: Sequence[Look]) -> List[Finding]:
    """Return what is wrong on the way.

    :param looks: from the app outwards; those that could not be read are passed over.
    """
    findings: List[Finding] = []
    before: Optional[Look] = None
    for look in looks:
        if look.seen.error is not None and not look.seen.events:
            continue
        findings += _Judge(look, before).findings()
        before = look
    return findings


class _Judge:
    """Compares one hop with the one before."""

    def __init__(self, look: Look, before: Optional[Look]) -> None:
        self._look = look
        self._before = before
        self._seen = look.seen
        self._headers = look.headers
        self._products = look.products(before)

    def findings(self) -> List[Finding]:
        """Return what begins here."""
        parts = (
            self._timing, self._protocol, self._cache, self._ends, self._silence, self._whole_time,
            self._heartbeats, self._departure,
        )
        found = [finding for part in parts for finding in part()]
        codes = [finding.code for finding in found]
        return [finding for number, finding in enumerate(found) if finding.code not in codes[:number]]

    def _finding(self, code: str, severity: str, seen: str) -> Finding:
        products = self._suspects(code)
        subject = self._seen.hop.name + (f" ({' or '.join(products)})" if products else "")
        alone = self._before is None and APP in products
        return Finding(code, severity, subject, seen, CAUSES[code].why, remedy(products, code, alone))

    def _suspects(self, code: str) -> List[str]:
        """Return the products that may be the cause."""
        before = self._before
        several = not self._products or before is None or before.seen.hop.found
        if code == "packet-delay" and several and "HAProxy" not in self._products:
            return [*self._products, "HAProxy"]  # nobody else is known for it, and it shows itself nowhere
        return self._products

    def _is_new(self, header: str) -> bool:
        return header in self._headers and (self._before is None or header not in self._before.headers)

    def _timing(self) -> Iterator[Finding]:
        rhythm = self._look.rhythm
        kind = _kind(self._look, self._before)
        worse = _RANK[kind] - (_RANK[_kind(self._before, None)] if self._before else 0)
        encoding = self._headers.get("content-encoding", "identity")
        compresses = self._is_new("content-encoding") and encoding != "identity"
        if worse > 0:
            said = _words(rhythm, kind, self._seen)
            cause = _CAUSES[kind]
            if compresses:
                cause, said = "compression", f"Content-Encoding: {encoding}, and {said}"
            elif kind == "stored" and rhythm.sent_gap is None and self._size() < _FITS:
                # All of it fits into common buffers; a length says that somebody has waited for the end.
                cause = "store-and-forward" if self._is_new("content-length") else "response-buffering"
            if self._is_new("content-length"):
                said += f"; Content-Length: {self._headers['content-length'][:20]} was added"
            yield self._finding(cause, "problem", said + self._taken_off())
            if self._app_hears("HTTP/1.0") and cause == "response-buffering":
                yield self._finding("http-1.0", "warning", "it speaks HTTP/1.0 to what is behind it")
        elif compresses:
            on_time = "; the tokens are on time" if not _RANK[kind] else ", to tokens that were held before"
            if self._seen.unread_encoding:
                on_time = ", and what is in it cannot be read here"
            said = f"Content-Encoding: {encoding[:20]} was added{on_time}"
            yield self._finding("compression", "warning", said)
        if not worse > 0 and self._is_new("content-length") and len(self._seen.events) > 1:
            yield self._finding(
                "content-length", "problem", f"Content-Length: {self._headers['content-length'][:20]}"
            )

    def _size(self) -> int:
        return sum(size for _, size in self._seen.reads)

    def _taken_off(self) -> str:
        """Say that the header that would have helped has been taken off on the way."""
        before = self._before
        if "nginx" not in self._products or before is None or "x-accel-buffering" in before.headers:
            return ""
        return (
            f"; X-Accel-Buffering: no does not reach it, {before.seen.hop.name} takes it off"
            " (if that is nginx: proxy_pass_header X-Accel-Buffering;)"
        )

    def _app_hears(self, protocol: str) -> bool:
        """Whether this hop is the one because of which the app hears that protocol."""
        heard = (self._seen.hello or {}).get("protocol")
        earlier = (self._before.seen.hello or {}).get("protocol") if self._before else None
        return heard == protocol and earlier != protocol

    def _protocol(self) -> Iterator[Finding]:
        if self._seen.version == "1.0":
            if self._before is None or self._before.seen.version != "1.0":
                yield self._finding("http-1.0", "warning", "it answers with HTTP/1.0")
            return
        if self._app_hears("HTTP/1.0"):
            said = "it speaks HTTP/1.0 to what is behind it; the tokens are on time"
            yield self._finding("http-1.0", "note", said)
        framed = "transfer-encoding" in self._headers or "content-length" in self._headers
        framed_before = self._before is None or "transfer-encoding" in self._before.headers
        if not framed and framed_before:
            yield self._finding("close-delimited", "warning", "neither Transfer-Encoding nor Content-Length")
        if self._before is not None and "no-transform" in self._before.headers.get("cache-control", ""):
            if "no-transform" not in self._headers.get("cache-control", ""):
                yield self._finding("header-lost", "note", "Cache-Control: no-transform was taken off")

    def _cache(self) -> Iterator[Finding]:
        before = self._before.headers if self._before else {}
        if _is_stale(self._look):
            if self._before is None or not _is_stale(self._before):
                yield self._finding("cache", "problem", "the answer is one to an earlier request")
            return
        for name in ("x-cache", "cf-cache-status", "x-cache-status"):
            value = self._headers.get(name, "")
            if "hit" in value.lower() and before.get(name) != value:
                yield self._finding("cache", "problem", f"{name}: {value[:40]}")
        age = self._headers.get("age", "0")
        if age.isdigit() and int(age) > 0 and before.get("age", "0") == "0":
            yield self._finding("cache", "problem", f"Age: {age[:12]}")

    def _ends(self) -> Iterator[Finding]:
        seen, before = self._seen, self._before
        if _is_whole(seen) or (before is not None and not _is_whole(before.seen)):
            pass
        else:
            last = seen.events[-1].at if seen.events else seen.head_at
            silent = seen.end_at - last
            said = f"the stream ended after {seen.end_at:.1f} s, before its end"
            if silent >= 1.0 and seen.end != "silent":
                yield self._finding("idle-timeout", "problem", f"{said}, after {silent:.1f} s of silence")
            else:
                yield self._finding("cut", "problem", said)
        if before is not None and _RANK[_kind(self._look, before)] == 0:
            late = (seen.first_byte or 0.0) - (before.seen.first_byte or 0.0) - 4 * seen.connect_time
            if late > _LATE:
                said = f"the first byte comes {late:.1f} s later than before it"
                yield self._finding("first-byte-late", "warning", said)

    def _silence(self) -> Iterator[Finding]:
        look, before = self._look, self._before
        if _is_cut(look.idle) and look.idle is not None and not (before and _is_cut(before.idle)):
            survived = look.idle.end_at - (look.idle.first_byte or 0.0)
            beat = (self._seen.hello or {}).get("heartbeat_interval") or 0
            helped = 0 < beat < survived * 0.8
            said = f"the stream was cut after {survived:.1f} s of silence"
            if not beat:
                said += "; heartbeats are off"
            else:
                said += f"; heartbeats every {beat:g} s " + ("keep it open" if helped else "come too late")
            yield self._finding("idle-timeout", "note" if helped else "problem", said)

    def _whole_time(self) -> Iterator[Finding]:
        long, before = self._look.long, self._before
        if _is_cut(long) and long is not None and not (before and _is_cut(before.long)):
            said = f"the stream was cut after {long.end_at:.1f} s in all"
            yield self._finding("total-timeout", "problem", said)

    def _heartbeats(self) -> Iterator[Finding]:
        seen, before = self._seen, self._before
        if seen.is_probe and not seen.comments and _is_whole(seen) and not self._is_held():
            if before is None or before.seen.comments:
                said = "no heartbeat came in a silence that had two"
                yield self._finding("heartbeats-lost", "warning", said)

    def _is_held(self) -> bool:
        """Whether heartbeats are held up on the way."""
        return any(_RANK[_kind(each, None)] > 1 for each in (self._look, self._before))

    def _departure(self) -> Iterator[Finding]:
        left, before = self._look.departure, self._before
        if left is None or left.after is not None or self._is_held() or not self._seen.comments:
            return  # without heartbeats many can notice nothing, and that has been said
        if before is None or before.departure is None or before.departure.after is not None:
            said = f"the app did not notice within {left.waited:.0f} s that a client had left"
            yield self._finding("departure-unseen", "warning", said)


def _kind(look: Optional[Look], before: Optional[Look]) -> str:
    """Return how the events came; of foreign streams in comparison with the hop before."""
    if look is None:
        return "unknown"
    rhythm = look.rhythm
    if rhythm.sent_gap is not None or before is None or rhythm.kind == "stored":
        return rhythm.kind
    earlier = before.rhythm
    many = len(before.seen.events) >= 4 and earlier.bursts >= 4
    if many and earlier.sent_gap is None and rhythm.bursts <= 2 and len(look.seen.events) >= 4:
        return "stored"
    if many and earlier.sent_gap is None and rhythm.bursts <= earlier.bursts * 0.6:
        return "buffered"
    return rhythm.kind


def _via(seen: Observation) -> str:
    """Return the ``Via`` of the request, as the app has told it."""
    request = (seen.hello or {}).get("request")
    return str(request.get("Via", "")) if isinstance(request, dict) else ""


def _words(rhythm: Rhythm, kind: str, seen: Observation) -> str:
    """Say what the timing was."""
    if kind == "stored":
        first, last = seen.events[0].at, seen.events[-1].at
        said = f"the first of {len(seen.events)} events came after {first:.1f} s, the last after {last:.1f} s"
        return said + ("" if rhythm.sent_gap is not None else "; nobody says when they were sent")
    if rhythm.joined is None or rhythm.sent_gap is None:
        return f"{len(seen.events)} events came in {rhythm.bursts} lumps"
    said = f"{100 * rhythm.joined:.0f} % of the tokens came together with the one before"
    said += f", up to {rhythm.late or 0:.2f} s late"
    if kind == "buffered" and rhythm.smallest:
        said += f"; the smallest block that got through had {rhythm.smallest} bytes"
    return said


def _is_stale(look: Look) -> bool:
    """Whether the probe has answered somebody else."""
    return look.seen.is_probe and not look.is_fresh


def _is_whole(seen: Observation) -> bool:
    if seen.end in ("enough", "unreadable"):
        return True  # it was us
    return seen.end == "complete" and (seen.last or not seen.is_probe)


def _is_cut(seen: Optional[Observation]) -> bool:
    """Whether a probe was cut; not where it was refused, or we could not wait."""
    if seen is None or seen.error is not None or not seen.is_probe:
        return False
    return not seen.last and seen.end not in ("enough", "silent", "unreadable")
