"""Streams whose readers come back: whatever is cut, every reader has the exact text."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
from typing import Any, Callable, Iterator, List

import pytest
from asking import events_of, text_of
from coming_back import Cuts, CuttingProxy, chat, end_of, event_source, stream_client, together, words_of
from resumed import begin, closed, last_id, read_all, running, serving

from flask_llmstream.client import StreamClient
from flask_llmstream.client.decoding import MEDIA_TYPES
from flask_llmstream.sansio.frames import FrameDecoder, FramesFormat
from flask_llmstream.testing import (
    LiveServer,
    ScriptedUpstream,
    read_stream,
    send_request,
    wait_until,
)

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(180)]

READERS = 200
CUTS = 5
SETTINGS = {"grace": 2.0, "slow_reader_timeout": 1.0, "keep_bytes": 1 << 24}


def run_readers(proxy: CuttingProxy, count: int, model: str, cuts: Cuts) -> List[float]:
    """Have readers of three kinds read, each its own stream; return how long each has taken."""

    def read(number: int) -> float:
        name = f"r{number}"
        own = model.format(number)
        began = time.monotonic()
        if number % 3:
            accept = {"Accept": list(MEDIA_TYPES.values())[number // 3 % 3]}
            text, client = stream_client(proxy.url + chat(own), name, accept, post=number % 3 == 1)
            assert client.finish_reason == "stop"
        else:
            text, events = event_source(proxy.address, chat(own), name)
            assert end_of(events)[0] == "done"
        assert text == "".join(words_of(own)), (name, text)
        return time.monotonic() - began

    results = together([functools.partial(read, number) for number in range(count)])
    faults = [each for each in results if isinstance(each, BaseException)]
    assert not faults, (len(faults), faults[:3])
    assert len(cuts.made) == count and set(cuts.made.values()) == {CUTS}
    return results


@pytest.mark.parametrize(
    "kind, worker, workers, count",
    [
        pytest.param("sqlite", "gevent", 4, READERS, id="sqlite"),
        pytest.param("redis", "gevent", 4, READERS, id="redis", marks=pytest.mark.slow),
        pytest.param("memory", "gevent", 1, READERS, id="memory", marks=pytest.mark.slow),
        pytest.param("sqlite", "gthread", 4, 40, id="sqlite-threads"),
        pytest.param("redis", "gthread", 4, 40, id="redis-threads", marks=pytest.mark.slow),
    ],
)
def test_readers_that_are_cut_five_times_get_the_exact_text(
    talker: ScriptedUpstream, log_urls: Callable[[str], str], kind: str, worker: str, workers: int,
    count: int, measured: Any,
) -> None:
    before = talker.requests
    threads = None if worker == "gevent" else 24
    with serving(talker, log_urls(kind), workers, worker=worker, threads=threads) as server:
        # An EventSource that is cut before it knows any id would ask the model anew.
        cuts = Cuts(CUTS, least=400)
        with CuttingProxy(server.address, cuts) as proxy:
            measured("each reader took", run_readers(proxy, count, "w{}-40-60", cuts))
    assert talker.requests - before == count, "an answer was asked for twice"


@pytest.fixture(scope="module")
def server(talker: ScriptedUpstream, log_urls: Callable[[str], str]) -> Iterator[LiveServer]:
    with serving(talker, log_urls("sqlite"), settings=SETTINGS) as server:
        yield server


def test_the_same_address_gives_the_rest_and_204_at_the_end(server: LiveServer) -> None:
    model = "same-12-30"
    reader, place, data = begin(server, model)
    with reader:
        pass
    opening = events_of(data)[0]
    assert opening.event == "stream" and json.loads(opening.data) == {"url": place}
    retry = re.search(rb"\nretry: (\d+)\n", data)
    assert retry and 500 <= int(retry.group(1)) <= 1500
    rest = read_all(server, chat(model), headers={"Last-Event-ID": last_id(data)})
    text = text_of(data.partition(b"\n\n")[2]) + text_of(rest.partition(b"event:")[0])
    assert text == "".join(words_of(model))
    for path in (chat(model), place):
        with server.request(path, headers={"Last-Event-ID": last_id(rest)}) as answer:
            assert answer.status == 204
    with server.request(f"{place}?after={last_id(rest)}") as answer:
        assert answer.status == 204
    whole = read_all(server, place)
    assert last_id(whole) == last_id(rest)


def test_others_keep_a_stream_running_and_grace_begins_when_the_last_has_left(
    server: LiveServer, talker: ScriptedUpstream, noticed: Callable[[str], None]
) -> None:
    model = "many-2000-20"
    reader, place, _ = begin(server, model, on_disconnect="cancel")
    exchange = running(talker, model)
    others = [server.request(place) for _ in range(3)]
    for other in others:
        other.read_until(b'{"text"')
    reader.close()
    began = time.monotonic()
    while time.monotonic() - began < 2.2:
        for other in others:
            next(iter(other))
    assert closed(exchange) is None, "the readers that are left still read"
    for other in others:
        other.close()
    left = time.monotonic()
    wait_until(lambda: closed(exchange), 8.0, "the upstream to be closed")
    noticed(f"closed {time.monotonic() - left:.2f} s after the last reader left")


def test_nobody_comes_back(server: LiveServer, talker: ScriptedUpstream, measured: Any) -> None:
    took = []
    for grace, options in ((2.0, {}), (0.5, {"on_disconnect": 0.5})):
        reader, place, _ = begin(server, f"alone{grace}-2000-20", **options)
        exchange = running(talker, f"alone{grace}-2000-20")
        left = time.monotonic()
        reader.close()
        wait_until(lambda: closed(exchange), grace + 5.0, "the upstream to be closed")
        took.append(time.monotonic() - left)
        assert took[-1] >= grace
        end = read_all(server, place)
        assert end_of(events_of(end)) == ("done", {"reason": "cancelled", "usage": None})
    measured("closed after a grace of 2 s and 0.5 s", took)


def test_somebody_comes_back(server: LiveServer, talker: ScriptedUpstream) -> None:
    def leave_and_return(pause: float) -> None:
        model = f"back{pause}-60-50"
        reader, place, data = begin(server, model)
        reader.close()
        time.sleep(pause)
        rest = read_all(server, place, headers={"Last-Event-ID": last_id(data)})
        assert end_of(events_of(rest))[1]["reason"] == "stop"
        assert text_of(rest.partition(b"event:")[0]).endswith(words_of(model)[-1])
        wait_until(lambda: running(talker, model).completed, 5.0, "the whole answer to be taken")

    pauses = (0.2, 1.0, 1.4, 1.9)
    assert together([functools.partial(leave_and_return, pause) for pause in pauses]) == [None] * len(pauses)


def test_a_detached_stream_ends_by_itself(server: LiveServer, talker: ScriptedUpstream) -> None:
    model = "detached-30-30"
    reader, place, _ = begin(server, model, on_disconnect="detach")
    reader.close()
    wait_until(lambda: running(talker, model).completed, 10.0, "the answer to be complete")
    whole = read_all(server, place)
    assert text_of(whole.partition(b"\n\n")[2].partition(b"event:")[0]) == "".join(words_of(model))
    assert end_of(events_of(whole))[1]["reason"] == "stop"


@pytest.fixture(scope="module", params=["memory", "sqlite", "redis", "sqlite-threads"])
def logging_server(
    request: Any, talker: ScriptedUpstream, log_urls: Callable[[str], str]
) -> Iterator[LiveServer]:
    """Two workers where the log can be shared, one where it is in memory."""
    kind, _, threads = request.param.partition("-")
    options = {"worker": "gthread", "threads": 40} if threads else {}
    with serving(talker, log_urls(kind), 1 if kind == "memory" else 2, **options) as server:
        yield server


@pytest.mark.timing
def test_delete_stops_a_stream_from_any_worker(
    logging_server: LiveServer, talker: ScriptedUpstream, measured: Any
) -> None:
    took = []
    server = logging_server
    for number in range(20):
        model = f"stop{server.port}.{number}-2000-20"
        reader, place, _ = begin(server, model)
        exchange = running(talker, model)
        with reader, server.request(place) as follower:
            began = time.monotonic()
            with server.request(place, method="DELETE") as answer:
                assert answer.status == 204
            for each in (reader, follower):
                end = end_of(events_of(each.read()))
                assert end == ("done", {"reason": "cancelled", "usage": None}), end
            wait_until(lambda: closed(exchange), 5.0, "the upstream to be closed")
            took.append(exchange.peer.closed_at - began)
    with server.request(place, method="DELETE") as answer:
        assert answer.status == 204
    measured("DELETE to the upstream closed", took)
    assert sorted(took)[len(took) // 2] < 0.5


@pytest.mark.timing
def test_stream_is_cancelled_at_once_when_the_last_follower_leaves(
    logging_server: LiveServer, talker: ScriptedUpstream, measured: Any
) -> None:
    """Whether its worker is the one that generates or another, in good order or not."""
    server = logging_server
    rounds = range(10)
    models = [f"left{server.port}.{number}-2000-20" for number in rounds]
    begun = [begin(server, model, on_disconnect="cancel") for model in models]
    exchanges = [running(talker, model) for model in models]
    followers = [[server.request(place) for _ in range(2)] for _, place, _ in begun]
    for reader, _, _ in begun:
        reader.close()
    for number in rounds:
        for each in followers[number]:
            each.read_until(b".30")  # its own reader is known to have left by then
    took = []
    for number in rounds:
        first, last = followers[number]
        first.close()
        last.read_until(b".90" if number % 4 == 0 else b'{"text"')
        assert closed(exchanges[number]) is None, "one is left who reads"
        left = time.monotonic()
        last.close() if number % 2 else last.reset()
        wait_until(lambda: closed(exchanges[number]), 8.0, "the upstream to be closed")
        took.append(closed(exchanges[number]) - left)
    measured("the last follower leaves → the upstream closed", took)
    assert sorted(took)[len(took) // 2] < 0.5


def test_failure_is_told_to_whoever_comes_back(server: LiveServer) -> None:
    with server.request("/failing") as reader:
        data = b"".join(piece for _, piece in reader.read_until(b'"b"'))
        place = reader.headers["content-location"]
        with server.request(place) as follower:
            bodies = [data + reader.read(), follower.read()]
    bodies.append(data + read_all(server, "/failing", headers={"Last-Event-ID": last_id(data)}))
    for body in bodies:
        name, said = end_of(events_of(body))
        assert name == "failed" and said == {
            "message": "The model rests.", "code": "service_unavailable", "retryable": True,
        }
        with server.request(place, headers={"Last-Event-ID": last_id(body)}) as answer:
            assert answer.status == 204
    lines = [line for line in server.log().splitlines() if "service_unavailable" in line]
    assert not [line for line in lines if line.startswith("ERROR")], "it is logged where it happens, and once"


def test_reader_who_reads_nothing_is_cut_off_and_finds_the_rest(
    server: LiveServer, noticed: Callable[[str], None]
) -> None:
    count = 400
    with contextlib.closing(server.connect(receive_buffer=4096)) as sock:
        send_request(sock, f"/flood?count={count}")
        reader = read_stream(sock, 10)
        place = reader.headers["content-location"]
        began = time.monotonic()
        server.wait_for_log("is cut off", 10)
        noticed(f"cut off after {time.monotonic() - began:.1f} s; the limit is 1 s")
        data = b""
        with contextlib.suppress(OSError):
            for _, piece in reader:
                data += piece
        assert not reader.complete
    whole = data[: data.rfind(b"\n\n") + 2]
    rest = read_all(server, place, headers={"Last-Event-ID": last_id(whole)})
    assert end_of(events_of(rest))[1]["reason"] == "stop"
    said = [json.loads(event.data) for event in events_of(whole) + events_of(rest) if event.event is None]
    assert [int(each["text"]) for each in said] == list(range(count))


def test_another_format_than_it_began_in(server: LiveServer) -> None:
    model = "formats-30-30"
    reader, place, data = begin(server, model)
    reader.close()
    seen = len([event for event in events_of(data) if event.event is None])
    words = words_of(model)
    lines = [json.loads(line) for line in read_all(
        server, place, headers={"Accept": "application/x-ndjson", "Last-Event-ID": last_id(data)}
    ).decode().splitlines()]
    assert "".join(line["text"] for line in lines if line["type"] == "text") == "".join(words[seen:])
    assert lines[-1]["type"] == "done" and lines[-1]["reason"] == "stop"
    middle = [line["cursor"] for line in lines if line["type"] == "text"][4]
    frames = FrameDecoder().feed(
        read_all(server, place, headers={"Accept": FramesFormat.content_type, "Last-Event-ID": middle})
    )
    assert "".join(each.data for each in frames if each.kind == "text") == "".join(words[seen + 5 :])
    assert frames[-1].kind == "done" and len({each.cursor for each in frames} - {None}) == len(frames)
    text = read_all(server, place, headers={"Accept": "text/plain", "Last-Event-ID": frames[0].cursor})
    assert text.decode() == "".join(words[seen + 6 :])
    text = read_all(server, place, headers={"Accept": "text/plain", "Last-Event-ID": middle})
    assert text.decode() == "".join(words[seen + 5 :])
    again = read_all(server, place, headers={"Last-Event-ID": middle})
    assert text_of(again.partition(b"event:")[0]) == text.decode()


def test_running_stream_is_followed_in_formats_of_all_kinds(server: LiveServer) -> None:
    """Begun as ``sse``; in those that carry no cursor whoever comes back has all of it again."""
    model = "kinds-40-40"
    whole = "".join(words_of(model))
    reader, place, data = begin(server, model)
    reader.close()
    seen = len([event for event in events_of(data) if event.event is None])

    def frames() -> None:
        found = FrameDecoder().feed(read_all(server, place, headers={"Accept": FramesFormat.content_type}))
        assert "".join(frame.data for frame in found if frame.kind == "text") == whole
        assert found[-1].kind == "done"

    def parts(last: str, text: str) -> None:
        path = chat(model, format="ai-sdk")
        headers = {"Last-Event-ID": last} if last else {}
        events = events_of(read_all(server, path, headers=headers))
        assert events[-1].data == "[DONE]"
        said = [json.loads(event.data) for event in events[:-1]]
        assert said[0]["type"] == "start" and said[-1]["type"] == "finish"
        assert "".join(part["delta"] for part in said if part["type"] == "text-delta") == text

    beginning = events_of(data)[0].id
    found = together([
        frames,
        lambda: parts(beginning, whole),
        lambda: parts(last_id(data), "".join(words_of(model)[seen:])),
    ])
    assert found == [None] * 3, found


def test_changes_of_a_json_value_resume(server: LiveServer) -> None:
    reader = server.request("/json?count=40")
    data = b"".join(piece for _, piece in reader.read_until(b'"value":10'))
    place = reader.headers["content-location"]
    reader.close()
    rest = read_all(server, place, headers={"Last-Event-ID": last_id(data)})
    whole = read_all(server, place)
    changes = [event for event in events_of(data) + events_of(rest) if event.event == "json"]
    assert changes == [event for event in events_of(whole) if event.event == "json"]
    numbers = [json.loads(event.data)["value"] for event in changes]
    assert [each for each in numbers if isinstance(each, int)] == list(range(40))
    lines = read_all(server, place, headers={"Accept": "application/x-ndjson"}).decode().splitlines()
    numbers = [json.loads(line).get("value") for line in lines]
    assert [each for each in numbers if isinstance(each, int)] == list(range(40))


def test_channels_resume(server: LiveServer) -> None:
    models = ["left-30-30", "right-30-30"]
    reader = server.request(chat(",".join(models), "/several"))
    data = b"".join(piece for _, piece in reader.read_until(b"left.5"))
    place = reader.headers["content-location"]
    reader.close()
    rest = read_all(server, place, headers={"Last-Event-ID": last_id(data)})
    accept = {"Accept": FramesFormat.content_type}
    with StreamClient(server.url + place, headers=accept, last_event_id=last_id(data)) as client:
        in_frames = [(event.event, json.loads(event.data), event.id) for event in client]
    assert in_frames == [(each.event, json.loads(each.data), each.id) for each in events_of(rest)]
    texts = dict.fromkeys(models, "")
    for event in events_of(data) + events_of(rest):
        said = json.loads(event.data)
        if event.event is None:
            texts[said["channel"]] += said["text"]
    assert texts == {model: "".join(words_of(model)) for model in models}
    ends = [event for event in events_of(rest) if event.event == "done"]
    assert len(ends) == 3
