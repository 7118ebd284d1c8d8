"""What comes between two commands of a log in Redis: each test puts it there."""

from __future__ import annotations

from typing import Any, Callable, List

import pytest
from redis_servers import Server, begin

from flask_llmstream.eventlog import Page, redis
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.testing.logs import new_id

pytest.importorskip("redis", reason="needs the extra redis")


def between(log: Any, monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], Any]) -> None:
    """Have *log* send its commands one by one, as they may arrive, and *act* before the first such one."""
    clients, acted = log._now._clients, []  # type: ignore[var-annotated]
    run = clients.run

    def one_by_one(commands: Any) -> List[Any]:
        replies: List[Any] = []
        for command in commands:
            if command[0] == name and not acted:
                acted.append(command)
                act()
            replies += run([command])
        return replies

    monkeypatch.setattr(clients, "run", one_by_one)


@pytest.mark.parametrize("name", ["PEXPIRE", "XADD", "PUBLISH"])
def test_stream_is_not_kept_for_longer_by_an_append_before_its_seal(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whenever it is that another process ends the stream."""
    monkeypatch.setattr(redis, "RENEWED_AFTER", -1.0)
    server.say("FLUSHALL")
    log, other = make(), make()
    stream = begin(log, keep=30.0)
    between(log, monkeypatch, name, lambda: other.seal(stream, "interrupted"))
    log.append(stream, 1, [b"x"])
    left = {key.decode(): server.say("TTL", key) for key in server.say("KEYS", "*{*")}
    assert len(left) == 2 and all(0 < each <= 30 for each in left.values()), left


@pytest.mark.parametrize("name", ["XREVRANGE", "XRANGE", "HMGET"])
def test_end_that_comes_while_a_page_is_read_hides_no_entry(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Else a stream that has finished would look as if its worker had gone without a word."""
    log, writer = make(), make()
    stream = begin(writer)
    writer.append(stream, 1, [b"x"])

    def ends() -> None:
        writer.append(stream, 2, [b"done"])
        writer.seal(stream, "finished")

    between(log, monkeypatch, name, ends)
    page = log.read(stream, 1)
    assert page is not None and (page.state == "open" or page.entries == [b"done"])
    assert log.read(stream, 1) == Page(2, [b"done"], 2, "finished")


@pytest.mark.parametrize("name", ["SET", "PEXPIRE"])
def test_lease_that_runs_out_while_it_is_renewed_goes_on(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    log = make()
    worker = new_id()
    log.renew(worker, 60.0)
    stream = begin(log, worker=worker)
    lease = f"llmstream:worker:{worker}"
    between(log, monkeypatch, name, lambda: server.say("DEL", lease))
    log.renew(worker, 60.0)
    assert 50 < server.say("TTL", lease) <= 60
    page = make().read(stream, 0)
    assert page is not None and page.state == "open"


def test_stream_is_kept_for_its_time_though_the_reply_to_its_seal_was_lost(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make()
    stream = begin(log, keep=200000.0)
    key = f"llmstream:{{{stream}}}:log"
    server.say("EXPIRE", key, 1000)  # it was begun long ago
    clients = log._now._clients
    send, sent = clients._send, []  # type: ignore[var-annotated]

    def sent_again(commands: Any) -> Any:
        sent.append(commands)
        replies = send(commands)
        return send(commands) if len(sent) == 1 else replies

    monkeypatch.setattr(clients, "_send", sent_again)
    assert log.seal(stream, "finished")
    assert server.say("TTL", key) > 190000


def test_reader_that_could_not_be_announced_is_announced_the_next_time(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = make(), make()
    stream = begin(other)
    assert log.read(stream, 0) is not None

    def cut() -> None:
        raise LogUnavailable(log.name, "no answer")

    with monkeypatch.context() as patch:
        between(log, patch, "PEXPIRE", cut)
        with pytest.raises(LogUnavailable):
            log.attend(stream, 600.0)
    log.attend(stream, 600.0)
    assert server.say("TTL", f"llmstream:{{{stream}}}:readers") > 500
    log.leave(stream)
    assert not other.attended(stream)


def test_call_that_is_under_way_when_the_log_is_closed_leaves_no_connection(
    server: Server, make: Any
) -> None:
    log = make()
    process = log._now
    log.close()
    assert process.run([("PING",)]) and process._clients._idle == []
