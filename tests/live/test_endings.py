"""However a generator ends, it cleans up, ``on_end`` is called once, and the log names it once."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any, Dict, Iterator, List

import pytest
from asking import (
    APPS,
    address,
    ask,
    ended,
    events_of,
    leaving,
    log_lines,
    new_key,
    note_when,
    produce,
    text_of,
)

from flask_llmstream.testing import LiveServer, gunicorn_server, send_request, wait_until
from flask_llmstream.testing.upstreams import ScriptedUpstream, raw, silence

pytestmark = pytest.mark.live


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    quiet = "accesslog = None"
    with gunicorn_server(
        APPS / "producers.py", worker=request.param, threads=8, config_lines=quiet
    ) as server:
        yield server


def only_end(note: Dict[str, Any], started: int = 1) -> Dict[str, Any]:
    """Return the end of a stream, which is one, and whose generator has cleaned up."""
    assert note["started"] == note["cleaned_up"] == started
    (end,) = note["ends"]
    assert end["id"] == note["id"]
    return dict(end)


def last_event(body: bytes) -> Any:
    event = events_of(body)[-1]
    return event.event, json.loads(event.data)


@pytest.mark.parametrize(
    "name, code, retryable, has_traceback",
    [("raising", "internal_error", False, True), ("refused_upstream", "upstream_interrupted", True, False)],
)
def test_generator_that_raises_after_three_tokens(
    server: LiveServer, name: str, code: str, retryable: bool, has_traceback: bool
) -> None:
    key = new_key()
    with leaving(produce(server, name, key)) as reader:
        body = reader.read()
        assert reader.complete
    assert text_of(b"".join(body.partition(b"event: failed")[:1])) == "one two three"
    event, failure = last_event(body)
    assert (event, failure["code"], failure["retryable"]) == ("failed", code, retryable)
    assert b"secret" not in body and b"Traceback" not in body
    note = ended(server, key)
    end = only_end(note)
    assert end["reason"] == "error" and end["text"] == "one two three"
    assert "the secret" in end["error"] and end["tokens"] == 3 and end["estimated"]
    (line,) = log_lines(server, note["id"])
    assert line.startswith("ERROR") and "after 3 pieces of text" in line and "the secret" in line
    behind = server.log().partition(line)[2].lstrip().startswith("Traceback")
    assert behind == has_traceback


def test_whole_answer_is_not_worth_a_line(server: LiveServer) -> None:
    key = new_key()
    with leaving(produce(server, "lone", key, count=3, pause=0)) as reader:
        body = reader.read()
    assert last_event(body) == ("done", {"reason": "stop", "usage": None})
    note = ended(server, key)
    assert only_end(note)["reason"] == "finish" and note["raised"] == []
    assert log_lines(server, note["id"]) == []


def test_head_starts_nothing(server: LiveServer) -> None:
    key = new_key()
    reader = server.request(address("raising", key) + "&watch_end=1", method="HEAD")
    with leaving(reader):
        assert reader.status == 200 and reader.headers["content-type"].startswith("text/event-stream")
        assert reader.read() == b"" and reader.complete
        assert "content-length" not in reader.headers or reader.headers["content-length"] == "0"
    note = ended(server, key)
    assert only_end(note, started=0)["text"] == ""


def test_response_that_is_dropped_starts_nothing(server: LiveServer) -> None:
    key = new_key()
    reader = server.request(address("raising", key) + "&watch_end=1&drop=closed")
    with leaving(reader):
        assert reader.read() == b"something else"
    note = ended(server, key)
    only_end(note, started=0)


def test_client_that_has_left_before_the_first_turn_starts_nothing(server: LiveServer) -> None:
    """The opening goes out first here, so that the server finds out before the generator runs."""
    key = new_key()
    with server.connect() as sock:
        path = address("raising", key, {"status_hold": 0})
        send_request(sock, path + "&watch_end=1&until_left=1")
        note_when(server, key, lambda note: note["id"])
        reset(sock)
    note = ended(server, key)
    assert only_end(note, started=0)["reason"] == "disconnect"
    (line,) = log_lines(server, note["id"])
    assert "ended: disconnect" in line


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_client_that_has_left_before_anything_is_sent_ends_the_generator(server: LiveServer) -> None:
    key = new_key()
    with server.connect() as sock:
        send_request(sock, address("unheard", key))
        note_when(server, key, lambda note: note["started"])
    note = ended(server, key)
    assert only_end(note)["reason"] == "disconnect" and note["raised"] == ["StreamCancelled"]
    (line,) = log_lines(server, note["id"])
    assert "ended: disconnect, after 0 pieces of text" in line


def test_generator_that_ignores_the_cancel_is_asked_again_after_the_grace(server: LiveServer) -> None:
    key = new_key()
    options = {"heartbeat_interval": 0.2}
    with leaving(produce(server, "stubborn", key, options)) as reader:
        reader.read_until(b"begun")
        left_at = time.monotonic()
    note = ended(server, key)
    assert only_end(note)["reason"] == "disconnect"
    first, second = note["marks"]
    assert first - left_at < 5.0
    assert 1.9 <= second - first < 10.0, "cancel_grace is 2 s here"
    warning, line = log_lines(server, note["id"])
    assert warning.startswith("WARNING") and "goes on 2.0 s after it was cancelled" in warning
    assert line.startswith("INFO") and "ended: disconnect" in line


# -- policies ------------------------------------------------------------------------------


def test_shielded_block_is_left_alone_and_the_cancellation_comes_at_its_end(server: LiveServer) -> None:
    key = new_key()
    with leaving(produce(server, "shielded", key, seconds=0.7)) as reader:
        reader.read_until(b"begun")
    note = ended(server, key)
    assert note["marks"] == [
        "the block was left alone", "StreamCancelled at its end", "clean-up was left alone"
    ]
    end = only_end(note)
    assert end["reason"] == "disconnect" and end["duration"] >= 1.4
    assert note["raised"] == ["StreamCancelled"]


def test_detached_generator_goes_on_to_its_end(server: LiveServer) -> None:
    key = new_key()
    options = {"on_disconnect": "detach"}
    with leaving(produce(server, "patient", key, options, seconds=0.7)) as reader:
        reader.read_until(b"begun")
    note = ended(server, key)
    end = only_end(note)
    assert (end["reason"], end["text"]) == ("finish", "begun ended")
    assert note["raised"] == [] and note["marks"] == [None]


def test_generator_is_cancelled_when_its_grace_is_over(server: LiveServer) -> None:
    key = new_key()
    with leaving(produce(server, "patient", key, {"on_disconnect": 0.8}, seconds=30)) as reader:
        reader.read_until(b"begun")
        left_at = time.monotonic()
    note = ended(server, key)
    took = time.monotonic() - left_at
    assert 0.75 <= took < 10.0
    end = only_end(note)
    assert (end["reason"], end["text"]) == ("disconnect", "begun ")
    assert note["raised"] == ["StreamCancelled"]


def test_generator_that_ends_within_its_grace_is_not_cancelled(server: LiveServer) -> None:
    key = new_key()
    with leaving(produce(server, "patient", key, {"on_disconnect": 20}, seconds=0.5)) as reader:
        reader.read_until(b"begun")
    end = only_end(ended(server, key))
    assert (end["reason"], end["text"]) == ("finish", "begun ended")


def test_stream_that_takes_too_long_before_its_first_byte_is_a_504(server: LiveServer) -> None:
    key = new_key()
    with leaving(produce(server, "unheard", key, {"max_duration": 0.3})) as reader:
        assert reader.status == 504
        error = reader.json()["error"]
    assert error == {"message": "The answer took too long.", "code": "timeout", "retryable": True}
    note = ended(server, key)
    assert only_end(note)["reason"] == "timeout" and note["raised"] == ["StreamCancelled"]
    (line,) = log_lines(server, note["id"])
    assert "ended: timeout" in line


def test_stream_that_takes_too_long_after_its_first_byte_fails(server: LiveServer) -> None:
    key = new_key()
    with leaving(produce(server, "patient", key, {"max_duration": 0.5}, seconds=30)) as reader:
        body = reader.read()
        assert reader.complete, "the connection could be used again"
    assert last_event(body) == (
        "failed", {"message": "The answer took too long.", "code": "timeout", "retryable": True}
    )
    assert [event.event for event in events_of(body)].count("failed") == 1
    end = only_end(ended(server, key))
    assert (end["reason"], end["text"]) == ("timeout", "begun ")


def test_another_request_can_stop_a_stream(server: LiveServer) -> None:
    key = new_key()
    with leaving(produce(server, "patient", key, seconds=30)) as reader:
        start = b"".join(data for _, data in reader.read_until(b"begun"))
        stopped_at = time.monotonic()
        assert ask(server, f"/stop/{key}") == {"stopped": key}
        body = start + reader.read()
        assert time.monotonic() - stopped_at < 10.0
        assert reader.complete
    assert last_event(body) == ("done", {"reason": "cancelled", "usage": None})
    note = ended(server, key)
    end = only_end(note)
    assert (end["reason"], end["text"]) == ("stop", "begun ")
    assert note["raised"] == ["StreamCancelled"]
    assert len(log_lines(server, note["id"])) == 1


def test_stopped_generator_may_send_while_it_cleans_up(server: LiveServer) -> None:
    for _ in range(5):
        key = new_key()
        with leaving(produce(server, "last_words", key)) as reader:
            start = b"".join(data for _, data in reader.read_until(b"more"))
            ask(server, f"/stop/{key}")
            body = start + reader.read()
        *_, said, done = events_of(body)
        assert said.data == '{"text":"last words"}' and done.event == "done"
        assert only_end(ended(server, key))["reason"] == "stop"


def test_what_is_bound_is_closed_when_the_client_leaves(server: LiveServer) -> None:
    with ScriptedUpstream([raw(b"first\nsecond\n"), silence()]) as upstream:
        key = new_key()
        with leaving(produce(server, "binding", key, base_url=upstream.url)) as reader:
            reader.read_until(b"first")
            exchange = upstream.exchanges[0]
            left_at = time.monotonic()
        wait_until(lambda: exchange.closed_at, 10.0, "the upstream's connection to be closed")
        assert (exchange.closed_at or 0) - left_at < 5.0
    note = ended(server, key)
    assert only_end(note)["reason"] == "disconnect"
    assert note["marks"] == ["bound"], "what was released is not ours to close"


def test_nothing_is_left_over(server: LiveServer) -> None:
    """Runs last: after all of the above this process is as it was."""
    idle: List[str] = ["streams", "bound", "running", "watched", "ticking"]

    def is_idle() -> bool:
        counts = ask(server, "/counts")
        return not any(counts[each] for each in idle)

    wait_until(is_idle, 10.0, lambda: f"what is left over: {ask(server, '/counts')}")
    assert ask(server, "/totals")["odd"] == {}
