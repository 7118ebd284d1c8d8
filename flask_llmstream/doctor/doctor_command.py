"""What ``flask-llmstream doctor`` does with its arguments, and prints.

Exit status: 0 every hop passes the stream on; 1 there are findings; 2 a hop could not be read, or the
arguments are wrong; 130 Ctrl-C; 141 nobody reads the output any more.
"""

from __future__ import annotations

import json as json_module
import os
import sys
from typing import Any, Dict, List, Sequence
from urllib.parse import urlsplit

from flask_llmstream.doctor.analysis import Look, findings_of
from flask_llmstream.doctor.causes import CAUSES
from flask_llmstream.doctor.connecting import Request, hidden, shown
from flask_llmstream.doctor.drawing import facts_of, headers_of, plain_table, rich_table, timeline
from flask_llmstream.doctor.examining import Plan, examine, probe_url
from flask_llmstream.doctor.findings import (
    EXIT_FAILED,
    Finding,
    as_json,
    as_text,
    by_severity,
    exit_status,
)
from flask_llmstream.doctor.observations import Hop
from flask_llmstream.doctor.report import as_html
from flask_llmstream.terminal import is_live, on_one_line

__all__ = ["hops_of", "run", "verdict_of"]


def run(hops: Sequence[Hop], request: Request, *, json: bool, report: str, **plan: Any) -> int:
    """Look, print, and return the exit status.

    :param report: file that the page is written to; empty for none.
    :param plan: the rest of a :class:`~flask_llmstream.doctor.examining.Plan`.
    :raises OSError: the page cannot be written.
    """
    if report:
        open(report, "a", encoding="utf-8").close()  # better now than after minutes
    live = is_live(sys.stderr, os.environ) and not json

    def say(text: str) -> None:
        if live:
            sys.stderr.write(f"\r\x1b[K{on_one_line(text)[:70]} ")
            sys.stderr.flush()

    try:
        looks = examine(Plan(hops, request, **plan), say)
    finally:
        if live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
    findings = [_clean(finding) for finding in findings_of(looks)]
    verdict = on_one_line(verdict_of(looks, findings))
    status = EXIT_FAILED if any(look.seen.error for look in looks) else exit_status(findings)
    if report:
        with open(report, "w", encoding="utf-8") as file:
            file.write(as_html(looks, findings, verdict))
    if json:
        answer = json_module.loads(as_json(findings))
        answer.update(exit_status=status, verdict=verdict, hops=[_as_dict(look) for look in looks])
        print(json_module.dumps(answer, indent=2))
    else:
        _print(looks, findings, verdict)
    return status


def hops_of(urls: Sequence[str], named: Sequence[str], prefix: str, token: str) -> List[Hop]:
    """Return the hops that were given, from the app outwards.

    :param urls: without names; each is called by its host and port.
    :param named: ``NAME=URL``.
    :param prefix: ``LLMSTREAM_URL_PREFIX`` of the app.
    :param token: opens the probe.
    :raises ValueError: one of them is not what it should be.
    """
    hops = []
    for text in named:
        name, found, url = text.partition("=")
        if not found or "//" in name or not name.strip():
            raise ValueError("--hop takes NAME=URL, such as --hop nginx=https://example.com")
        hops.append((name.strip(), url))
    hops += [(_place(url) or url, url) for url in urls]
    if not hops:
        raise ValueError("there is nothing to read: give a URL, or --hop NAME=URL from the app outwards")
    for _, url in hops:
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError as exc:
            raise ValueError(f"{url.rpartition('@')[2][:80]!r} is no URL: {exc}") from None
        if not known:
            raise ValueError(
                f"{shown(url)[:80]!r} is no URL that begins with http:// or https:// and names a host,"
                " such as http://127.0.0.1:8000"
            )
        if parts.username or parts.password:
            raise ValueError("a password in a URL ends up in logs; use -H 'Authorization: ...'")
    return [Hop(on_one_line(name), probe_url(url, prefix, token)) for name, url in hops]


def _place(url: str) -> str:
    """Return host and port, also of what turns out to be no URL."""
    return url.partition("//")[2].partition("/")[0].rpartition("@")[2]


def verdict_of(looks: Sequence[Look], findings: Sequence[Finding]) -> str:
    """Return all of it in one line."""
    unread = [look for look in looks if look.seen.error]
    worst = [finding for finding in by_severity(findings) if finding.severity != "note"]
    if worst:
        return f"{worst[0].subject}: {CAUSES[worst[0].code].title}"
    if unread:
        return f"{unread[0].seen.hop.name} {unread[0].seen.error}"[:300]
    if not all(look.seen.is_probe or look.rhythm.kind == "on time" for look in looks):
        return "Nothing wrong was seen; without the probe that is not certain"
    return "Healthy: every hop passes the stream on"


def _print(looks: Sequence[Look], findings: Sequence[Finding], verdict: str) -> None:
    live = is_live(sys.stdout, os.environ)
    colour = live and "NO_COLOR" not in os.environ
    table = rich_table(looks) if live else None
    if table is None:
        print(plain_table(looks))
    else:
        from rich.console import Console

        Console(no_color=not colour, highlight=False).print(table)
    for lines in (timeline(looks), headers_of(looks)):
        if lines:
            print("", *lines, sep="\n")
    for look in looks:
        for said in (_aside(look), look.search):
            if said:
                print(f"\n{on_one_line(f'{look.seen.hop.name} {said}')}")
    if findings or not any(look.seen.error for look in looks):
        print(f"\n{verdict}\n")
        print(as_text(findings, colour), end="")


def _aside(look: Look) -> str:
    """Return what is to be said of a hop that was not read, or not well."""
    seen = look.seen
    if not seen.error:
        return "" if seen.is_probe else (
            "is no probe, so nobody knows when the events were sent, whether heartbeats pass, and whether the"
            " app hears that a client has left"
        )
    return f"{seen.error} ({shown(seen.hop.url)})" + (f"; {seen.step}" if seen.step else "")


def _clean(finding: Finding) -> Finding:
    """Take out of a finding what a server could do to a terminal."""
    return finding._replace(subject=on_one_line(finding.subject), seen=on_one_line(finding.seen))


def _as_dict(look: Look) -> Dict[str, Any]:
    seen = look.seen
    return {
        "name": seen.hop.name, "url": shown(seen.hop.url), "error": seen.error, "next_step": seen.step,
        "status": seen.status,
        "http_version": seen.version,
        "headers": [
            [name, hidden(value, seen.hop.url)] for name, value in seen.headers if name != "set-cookie"
        ],
        "first_byte": seen.first_byte, "rhythm": look.rhythm._asdict(), "heartbeats": len(seen.comments),
        "end": seen.end, "end_at": seen.end_at, "probe": seen.is_probe,
        "departure": look.departure and look.departure._asdict(),
        "found": seen.hop.found, "search": look.search,
        "events": [{"at": event.at, "sent": event.sent} for event in seen.events],
        "facts": {name: values[0] for name, values in facts_of([look])},
    }
