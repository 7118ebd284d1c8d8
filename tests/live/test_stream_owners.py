"""Whose a stream is: nobody else reads, follows or stops it, and nobody can make a cursor."""

from __future__ import annotations

from typing import Callable, Dict, Iterator, Tuple
from urllib.parse import quote

import pytest
from coming_back import chat
from resumed import begin, cookies, last_id, read_all, serving

from flask_llmstream.testing import LiveServer, ScriptedUpstream

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def server(talker: ScriptedUpstream, log_urls: Callable[[str], str]) -> Iterator[LiveServer]:
    with serving(talker, log_urls("sqlite"), settings={"grace": 2.0}) as server:
        yield server


def test_nobody_gets_at_the_streams_of_others(server: LiveServer) -> None:
    users = {name: cookies(server, name) for name in ("ada", "bob")}
    users["nobody"] = {}
    users["token"] = {"Authorization": "Bearer secret"}
    own: Dict[str, Tuple[str, str]] = {}
    for name, headers in users.items():
        reader, place, data = begin(server, f"own{name}-10-10", headers)
        reader.read()
        reader.close()
        own[name] = place, last_id(data)

    def ask(path: str, method: str = "GET", **headers: str) -> Tuple[int, bytes]:
        with server.request(path, method=method, headers=headers) as answer:
            return answer.status, answer.read()

    refusals = set()
    for me, headers in users.items():
        for of_place, (place, _) in own.items():
            for of_cursor, (_, cursor) in own.items():
                status, body = ask(place, **dict(headers, **{"Last-Event-ID": cursor}))
                if me == of_place == of_cursor:
                    assert status == 200
                else:
                    refusals.add((status, body))
                assert ask(f"{place}?after={cursor}", **headers)[0] == status
            if me != of_place:
                refusals.add(ask(place, **headers))
                refusals.add(ask(place, "DELETE", **headers))
                status, body = ask(chat("never-1-1"), **dict(headers, **{"Last-Event-ID": own[of_place][1]}))
                refusals.add((status, body))
    never = own["ada"][0][:-8] + "AAAAAAAA"
    refusals.add(ask(never, **users["ada"]))
    assert len(refusals) == 1 and refusals.pop()[0] == 404


def spoilt(text: str) -> Iterator[str]:
    """Yield what is not *text*, in every way."""
    yield from (text[:length] for length in range(1, len(text), 5))
    for place in range(0, len(text), 3):
        yield text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
    yield from (text * 2, text + "=", text.upper(), text + "é", "A" * 3000, text.replace("1", "2", 1))
    yield from ("v1....", "v1.0.0.0.0", "v9" + text[2:], "-", "%00", "..", "0", "💥")


def test_spoilt_cursors_and_tickets_are_refused(server: LiveServer) -> None:
    reader, place, data = begin(server, "spoilt-5-10")
    reader.read()
    reader.close()
    cursor = last_id(data)
    before, _, ticket = place.rpartition("/")
    for wrong in set(spoilt(cursor)) - {cursor}:
        for path in (chat("never-1-1"), place):
            with server.request(path, headers={"Last-Event-ID": wrong.encode().decode("latin-1")}) as answer:
                assert 400 <= answer.status < 500, wrong
        with server.request(f"{place}?after={quote(wrong, safe='')}") as answer:
            assert 400 <= answer.status < 500, wrong
    for wrong in set(spoilt(ticket)) - {ticket, ".."}:
        for method in ("GET", "DELETE"):
            with server.request(f"{before}/{quote(wrong, safe='')}", method=method) as answer:
                assert 400 <= answer.status < 500, wrong
    assert read_all(server, place)


def test_old_secrets_are_accepted_until_they_are_taken_away(
    talker: ScriptedUpstream, log_urls: Callable[[str], str]
) -> None:
    log = log_urls("sqlite")
    with serving(talker, log, 1, env={"SECRET": "one"}) as server:
        reader, place, data = begin(server, "secret-10-10")
        reader.read()
        reader.close()
        cursor = last_id(data)
    with serving(talker, log, 1, env={"SECRET": "two", "FALLBACKS": "other one"}) as server:
        rest = read_all(server, place, headers={"Last-Event-ID": cursor})
        newer = last_id(rest)
        assert newer != cursor
        assert read_all(server, place)
    with serving(talker, log, 1, env={"SECRET": "two"}) as server:
        for headers in ({}, {"Last-Event-ID": cursor}):
            with server.request(place, headers=headers) as answer:
                assert answer.status == 404
        with server.request(chat("secret-10-10"), headers={"Last-Event-ID": newer}) as answer:
            assert answer.status == 204
