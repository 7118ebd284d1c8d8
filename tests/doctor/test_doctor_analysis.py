"""From what was seen to what is wrong: tables, without a network."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Dict, List, Optional

import pytest

from flask_llmstream.doctor.analysis import Departure, Look, findings_of
from flask_llmstream.doctor.causes import CAUSES
from flask_llmstream.doctor.connecting import hidden, shown
from flask_llmstream.doctor.doctor_command import hops_of, verdict_of
from flask_llmstream.doctor.drawing import facts_of, headers_of, plain_table, rich_table, timeline
from flask_llmstream.doctor.examining import probe_url
from flask_llmstream.doctor.observations import Arrival, Hop, Observation
from flask_llmstream.doctor.remedies import PRODUCTS, products_of, remedy
from flask_llmstream.doctor.report import as_html
from flask_llmstream.doctor.rhythm import rhythm_of

#: When the probe sends.
SENT = [number / 10 for number in range(11)] + [1.6 + number / 10 for number in range(9)] + [3.7, 3.8]
HEADERS = {
    "content-type": "text/event-stream", "transfer-encoding": "chunked",
    "cache-control": "no-cache, no-transform", "x-accel-buffering": "no",
}


def seen_as(
    name: str,
    times: Optional[List[float]] = None,
    headers: Optional[Dict[str, Optional[str]]] = None,
    **facts: Any,
) -> Look:
    """Return what is seen of a probe whose events came at *times*."""
    seen = Observation(Hop(name, "http://127.0.0.1/llmstream/probe?token=secret"))
    seen.status, seen.version, seen.end, seen.last = 200, "1.1", "complete", True
    fields = dict(HEADERS, **(headers or {}))
    seen.headers = [(key, value) for key, value in fields.items() if value is not None]
    times = SENT if times is None else times
    seen.events = [Arrival(at, sent, 120 * (n + 1), 100) for n, (at, sent) in enumerate(zip(times, SENT))]
    seen.reads = [(at, 120) for at in times]
    seen.comments = [2.9, 3.4]
    seen.hello = {"protocol": "HTTP/1.1", "nonce": "n", "heartbeat_interval": 15.0}
    seen.end_at = times[-1]
    look = Look(seen, nonce="n")
    for key, value in facts.items():
        if key in Look._fields:
            look = look._replace(**{key: value})
        else:
            setattr(seen, key, value)
    return look


def buffered(size: int) -> List[float]:
    """Return when the events come through a buffer of so many events."""
    last = len(SENT) - 1
    return [SENT[min(last, number - number % size + size - 1)] for number in range(len(SENT))]


def silent(seconds: float, ended: float) -> Observation:
    """Return what is seen of a silence that was cut."""
    look = seen_as("x", [0.0], last=False, end="cut")
    look.seen.end_at = ended
    return look.seen


def codes(*looks: Look) -> List[str]:
    """Return ``code at hop`` of all findings, notes too."""
    return [f"{each.code} at {each.subject.partition(' (')[0]}" for each in findings_of(looks)]


DELAYED = [at + (0.2, 0.1, 0.0)[number % 3] for number, at in enumerate(SENT[:10])]
DELAYED += [at + 0.2 for at in SENT[10:]]

GZIP: Dict[str, Any] = {"headers": {"content-encoding": "gzip"}}
SIZED = {"content-length": "99", "transfer-encoding": None}

ONE_HOP = [
    pytest.param({}, [], id="healthy"),
    pytest.param({"times": buffered(4)}, ["response-buffering"], id="small buffer"),
    pytest.param({"times": buffered(11)}, ["response-buffering"], id="large buffer"),
    pytest.param({"times": [3.8] * 22}, ["store-and-forward"], id="stored"),
    pytest.param({"times": DELAYED}, ["packet-delay"], id="held by time"),
    pytest.param({"times": [at + 0.2 + 0.07 * (n % 2) for n, at in enumerate(SENT)]}, [], id="jitter"),
    pytest.param(GZIP, ["compression"], id="compressed on time"),
    pytest.param(dict(GZIP, times=[3.8] * 22), ["compression"], id="compressed"),
    pytest.param({"headers": SIZED}, ["content-length"], id="length"),
    pytest.param({"version": "1.0"}, ["http-1.0"], id="HTTP/1.0"),
    pytest.param({"headers": {"transfer-encoding": None}}, ["close-delimited"], id="no framing"),
    pytest.param({"headers": {"cache-control": "no-cache"}}, ["header-lost"], id="header lost"),
    pytest.param({"nonce": "another"}, ["cache"], id="another's answer"),
    pytest.param({"headers": {"x-cache": "HIT from x"}}, ["cache"], id="cache says so"),
    pytest.param({"headers": {"age": "7"}}, ["cache"], id="old"),
    pytest.param({"comments": []}, ["heartbeats-lost"], id="no heartbeats"),
    pytest.param({"departure": Departure(None, 10.0)}, ["departure-unseen"], id="deaf"),
    pytest.param({"departure": Departure(0.1, 0.1)}, [], id="departure seen"),
    pytest.param({"idle": silent(5, 3.0), "idle_seconds": 5}, ["idle-timeout"], id="idle cut"),
    pytest.param({"long": silent(9, 6.0), "long_seconds": 9}, ["total-timeout"], id="total cut"),
    pytest.param({"end": "cut", "last": False}, ["cut"], id="cut"),
    pytest.param({"end": "reset", "last": False, "end_at": 5.8}, ["idle-timeout"], id="cut in a silence"),
    pytest.param({"times": [at + 2.0 for at in SENT]}, ["first-byte-late"], id="late"),
    pytest.param({"error": "answers 502", "events": []}, [], id="unread"),
]


@pytest.mark.parametrize("facts, expected", ONE_HOP)
def test_fault_is_blamed_on_the_hop_where_it_begins(facts: Dict[str, Any], expected: List[str]) -> None:
    app, hop, outer = seen_as("app"), seen_as("middle", **facts), seen_as("outer", **facts)
    assert codes(app, hop, outer) == [f"{code} at middle" for code in expected]
    later = ("header-lost", "first-byte-late")  # only in comparison
    alone = [f"{code} at middle" for code in expected if code not in later]
    assert codes(hop) == alone


def test_worse_fault_further_out_is_found_as_well() -> None:
    looks = [seen_as("app"), seen_as("inner", DELAYED), seen_as("outer", [3.8] * 22)]
    assert codes(*looks) == ["packet-delay at inner", "store-and-forward at outer"]


def test_compression_behind_a_buffer_is_not_said_to_be_on_time() -> None:
    looks = [seen_as("app"), seen_as("inner", buffered(11)), seen_as("outer", buffered(11), GZIP["headers"])]
    held, compressed = findings_of(looks)
    assert (held.code, compressed.code) == ("response-buffering", "compression")
    assert "held before" in compressed.seen and "on time" not in compressed.seen


def test_heartbeats_that_outlast_the_idle_cut_make_it_a_note() -> None:
    look = seen_as("app", idle=silent(70, 60.0), idle_seconds=70)
    (finding,) = findings_of([look])
    assert (finding.severity, finding.code) == ("note", "idle-timeout")
    assert "heartbeats every 15 s keep it open" in finding.seen


def test_http10_to_the_app_is_a_note_where_nothing_is_held() -> None:
    hello = {"protocol": "HTTP/1.0", "nonce": "n"}
    (note,) = findings_of([seen_as("app"), seen_as("nginx", hello=hello)])
    assert (note.code, note.severity) == ("http-1.0", "note")
    held = findings_of([seen_as("app"), seen_as("nginx", buffered(11), hello=hello)])
    assert [(each.code, each.severity) for each in held] == [
        ("response-buffering", "problem"), ("http-1.0", "warning"),
    ]


def test_header_that_an_inner_nginx_takes_off_is_named_where_it_is_missed() -> None:
    inner = seen_as("inner", headers={"x-accel-buffering": None})
    outer = seen_as("nginx", buffered(11), headers={"x-accel-buffering": None})
    (finding,) = findings_of([seen_as("app"), inner, outer])
    assert "inner takes it off" in finding.seen and "proxy_pass_header" in finding.seen


def foreign(name: str, times: List[float]) -> Look:
    """Return what is seen of a stream that does not say when it was sent."""
    look = seen_as(name, times)
    look.seen.hello = None
    look.seen.events = [event._replace(sent=None) for event in look.seen.events]
    return look


def test_foreign_stream_is_judged_by_what_is_plain() -> None:
    steady, stored = [0.1 + 0.15 * n for n in range(12)], [1.9] * 12
    assert codes(foreign("app", steady)) == []
    assert codes(foreign("nginx", stored)) == ["response-buffering at nginx"]
    chain = [foreign("app", steady), foreign("x", stored), foreign("y", stored)]
    assert codes(*chain) == ["response-buffering at x"]
    lumps = [0.1 + 0.6 * (n // 4) for n in range(12)]
    assert codes(foreign("app", steady), foreign("x", lumps)) == ["response-buffering at x"]
    # Fast from beginning to end: nobody can say whether it was held.
    quick = foreign("app", [0.01] * 12)
    assert rhythm_of(quick.seen).kind == "unknown" and codes(quick) == []
    assert "not certain" in verdict_of([quick], [])


@pytest.mark.parametrize(
    "name, headers, before, product",
    [
        ("edge", {"server": "cloudflare", "cf-ray": "8"}, None, "Cloudflare"),
        ("edge", {"via": "1.1 varnish (Varnish/7.1)"}, None, "Varnish"),
        ("edge", {"server": "nginx/1.22.1"}, {"server": "gunicorn"}, "nginx"),
        ("edge", {"server": "gunicorn"}, {"server": "gunicorn"}, None),
        ("my haproxy", {"server": "gunicorn"}, {"server": "gunicorn"}, "HAProxy"),
        ("ingress", {}, None, "nginx"),
        ("edge", {"via": "1.1 Caddy"}, None, "Caddy"),
        ("alb", {}, None, "AWS ALB"),
    ],
)
def test_products_are_known_by_what_they_add(
    name: str, headers: Any, before: Any, product: Optional[str]
) -> None:
    assert products_of(name, headers, before) == ([product] if product else [])


def test_each_product_behind_one_address_is_named_with_its_line() -> None:
    """One address was given, and two proxies show themselves: one in the answer, one to the app."""
    headers = {"server": "nginx/1.22.1", "via": "1.1 Caddy"}
    hello = {"protocol": "HTTP/1.1", "nonce": "n", "request": {"Via": "1.1 host (Varnish/7.1)"}}
    site = seen_as("site", buffered(11), headers, hello=hello)
    assert site.products(None) == ["Varnish", "Caddy", "nginx"]
    (finding,) = findings_of([seen_as("app", headers={"server": "gunicorn"}), site])
    assert finding.subject == "site (Varnish or Caddy or nginx)"
    assert "Varnish: " in finding.change and "Or, nginx: " in finding.change
    late = seen_as("site", DELAYED, headers)
    app = seen_as("app", headers={"server": "gunicorn"})
    app.seen.hop = app.seen.hop._replace(found=True)
    (finding,) = findings_of([app, late])  # and one that shows itself nowhere may be there, too
    assert finding.subject.endswith("nginx or HAProxy)") and "option http-no-delay" in finding.change
    # What the hop before shows, too, is not of this one.
    assert seen_as("edge", headers=headers, hello=hello).products(site) == []


def test_every_cause_has_a_remedy() -> None:
    for code in CAUSES:
        assert remedy([], code) and all(remedy([product], code) for product in PRODUCTS)
    assert all(set(own) <= set(CAUSES) for own in PRODUCTS.values())


def test_table_timeline_and_page_show_each_hop_and_nothing_that_harms() -> None:
    evil = {"via": "\x1b[2J<script>", "content-encoding": "gzip"}
    looks = [seen_as("app"), seen_as("nginx", buffered(11), evil)]
    looks[1].seen.hop = Hop("nginx\x1b]0;x\x07<b>", "http://x/")
    table, lines, headers = plain_table(looks), timeline(looks), headers_of(looks)
    assert "tokens" in table and "buffered" in table and "gzip" in table
    assert lines[0].startswith("sent") and lines[0].count("|") > 10 and "#" in lines[2]
    assert "adds content-encoding: gzip" in headers[0]
    assert all(char.isprintable() or char == "\n" for char in table + "\n".join(lines + headers))
    page = as_html(looks, findings_of(looks), "verdict <b>")
    assert "<script>" not in page and "<b>" not in page and "<svg" in page and "verdict &lt;b&gt;" in page
    rich = rich_table(looks)
    assert (rich is not None) is (find_spec("rich") is not None)
    assert rich is None or rich.row_count == len(facts_of(looks))
    assert timeline([]) == [] and plain_table([]) == ""


def test_urls_lead_to_the_probe_and_are_shown_without_the_token() -> None:
    assert probe_url("http://x", "/llmstream", "t") == "http://x/llmstream/probe?token=t"
    assert probe_url("https://x/", "/s/", "") == "https://x/s/probe"
    assert probe_url("http://x/chat?q=1#top", "/llmstream", "t") == "http://x/chat?q=1"
    assert shown("http://x/llmstream/probe?token=t&a=1") == "http://x/llmstream/probe?token=...&a=1"
    assert hidden("leads to https://x/?token=t1&a", "http://x/?token=t1") == "leads to https://x/?token=...&a"
    assert [hop.name for hop in hops_of(["http://a:1"], ["app=http://b"], "/llmstream", "")] == ["app", "a:1"]


@pytest.mark.parametrize(
    "urls, named, complaint",
    [
        ([], [], "nothing to read"), (["ftp://x"], [], "http://"), ([], ["http://x"], "NAME=URL"),
        (["http://user:geheim@x"], [], "-H 'Authorization"), (["http://x:99999"], [], "99999/?' is no URL"),
        (["http://user:geheim@[::1"], [], "is no URL: Invalid IPv6"), (["x:80"], [], "such as http://"),
        ([], ["=http://x"], "NAME=URL"),
    ],
)
def test_wrong_hops_are_refused(urls: List[str], named: List[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        hops_of(urls, named, "/llmstream", "")
    assert "geheim" not in str(caught.value)
