"""What the live page, the log and traces say of streams, under several workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Set

import pytest
import requests
from asking import APPS, ask, events_of
from scraping import scrape

from flask_llmstream.testing import LiveServer, ScriptedUpstream, gunicorn_server, wait_until
from flask_llmstream.testing.scripts import cut, done, headers, silence, tokens

pytestmark = [pytest.mark.live, pytest.mark.timeout(90)]

LIVE = "/llmstream/live?who=operator"
EVENTS = "/llmstream/live/events?who=operator"
#: What nobody may read anywhere.
SECRETS = ("secret", "nobody's business", "alice")
#: Ports of the models so far, by which their calls are told apart.
_ports: Set[int] = set()


class Observed:
    """A server, and what it has said of its streams."""

    def __init__(self, server: LiveServer, folder: Path) -> None:
        self.server = server
        self.folder = folder

    def spans(self) -> List[Dict[str, Any]]:
        path = self.folder / "spans"
        if not path.exists():
            return []
        return [json.loads(line) for line in _whole_lines(path.read_text(encoding="utf-8"))]

    def span_when(self, is_it: Callable[[Dict[str, Any]], Any]) -> Dict[str, Any]:
        """Return the only span of which *is_it* is true, once there is one."""
        wait_until(lambda: any(map(is_it, self.spans())), 10.0, lambda: f"spans: {self.spans()[-9:]}")
        (found,) = filter(is_it, self.spans())
        return found

    def logged(self) -> List[Dict[str, Any]]:
        lines = _whole_lines(self.server.log())
        return [json.loads(line[7:]) for line in lines if line.startswith("LOGGED ")]

    def lookers_that_left(self) -> Set[str]:
        """Return the streams of live pages that are over: those without a line of their own."""
        logged = self.logged()
        lines = {each["stream_id"] for each in logged if each["llmstream"]}
        return {each["stream_id"] for each in logged if " ended: " in each["message"]} - lines

    def line_of(self, behind: int = 0, **fields: Any) -> Dict[str, Any]:
        """Return the line of the only stream that has *fields*, once it is there.

        :param behind: how many records had been logged before; they are passed over.
        """

        def found() -> List[Dict[str, Any]]:
            ends = [each for each in self.logged()[behind:] if each["name"] == "flask_llmstream.streams"]
            return [each for each in ends if fields.items() <= each["llmstream"].items()]

        wait_until(found, 10.0, lambda: self.server.log())
        (line,) = found()
        return line


def _whole_lines(text: str) -> List[str]:
    """Return the lines, but not one that is just being written."""
    return text.rpartition("\n")[0].splitlines()


@contextlib.contextmanager
def observed(folder: Path, worker: str, **changes: Any) -> Iterator[Observed]:
    folder.chmod(0o700)
    settings = json.dumps(dict({"shared_dir": str(folder)}, **changes.pop("settings", {})))
    env = {"SETTINGS": settings, "SPANS": str(folder / "spans"), "OTEL_PROPAGATORS": None}
    with gunicorn_server(
        APPS / "observed.py", worker=worker, workers=2, threads=16, env=env, **changes
    ) as server:
        yield Observed(server, folder)


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def seen(request: Any, tmp_path_factory: Any) -> Iterator[Observed]:
    with observed(tmp_path_factory.mktemp("shared"), request.param) as seen:
        yield seen


def read(server: LiveServer, path: str, **request: Any) -> bytes:
    with server.request(path, **request) as reader:
        return reader.read()


def table(data: bytes) -> Dict[str, Any]:
    events = [event for event in events_of(data) if event.event == "streams"]
    found: Dict[str, Any] = json.loads(events[-1].data)
    return found


# -- the live page ------------------------------------------------------------------------------


def on_both_workers(stack: contextlib.ExitStack, server: LiveServer, path: str) -> List[Any]:
    """Return a stream of *path* of each worker."""
    readers: Dict[str, Any] = {}

    def all_have_one() -> bool:
        reader = server.request(path)
        reader.read_until(b'"text"')
        if reader.headers["x-worker"] in readers:
            reader.sock.close()  # or one of them would have them all
        else:
            readers[reader.headers["x-worker"]] = stack.enter_context(reader)
        return set(map(int, readers)) == set(server.worker_pids())

    wait_until(all_have_one, 10.0)
    return list(readers.values())


def test_page_shows_the_streams_of_all_workers_and_nothing_of_what_they_say(seen: Observed) -> None:
    server = seen.server
    with contextlib.ExitStack() as stack:
        slow = on_both_workers(stack, server, "/slow/alice")
        held = stack.enter_context(server.request("/held"))
        held.read_until(b"x")
        follower = stack.enter_context(server.request(held.headers["content-location"]))
        follower.read_until(b"x")
        thinking = stack.enter_context(server.request("/thinking"))
        thinking.read_until(b'"a"')
        gone = server.request("/held")
        gone.read_until(b"x")
        gone.sock.close()

        page = stack.enter_context(server.request(EVENTS))
        assert page.headers["cache-control"] == "no-store"
        data = b""
        expected = len(slow) + 4
        deadline = time.monotonic() + 10
        while True:
            data += b"".join(piece for _, piece in page.read_until(b"\n\n"))
            rows = table(data)["rows"]
            by_state = {row["state"].partition(",")[0] for row in rows}
            followed = any(row["followers"] for row in rows)
            paced = all(row["rate"] > 1 for row in rows if row["route"] == "slow")
            if len(rows) == expected and {"streaming", "detached"} <= by_state and followed and paced:
                break
            assert time.monotonic() < deadline, rows
        found = table(data)
        assert found["streams"] == expected and found["hidden"] == 0
        assert {each["pid"] for each in found["workers"]} == set(server.worker_pids())
        assert sum(each["streams"] for each in found["workers"]) == expected
        by_route = {row["route"]: row for row in rows}
        row = by_route["slow"]
        assert row["pid"] in server.worker_pids() and row["format"] == "sse" and not row["resumable"]
        assert 0 <= row["first"] <= row["age"] and row["pieces"] > 1 and row["bytes"] > 30
        assert row["rate"] < 60
        follows = by_route["llmstream.follow"]["follows"]
        (leader,) = (row for row in rows if row["followers"])
        assert leader["id"] == follows and leader["resumable"] and leader["followers"] == 1
        assert by_route["thinking"]["state"] in ("streaming", "opening", "waiting for its source")
        shown = ""

        def all_are_shown() -> bool:
            # The other worker may answer, to which this one has not yet said what it has.
            nonlocal shown
            shown = read(server, LIVE, headers={"Accept": "text/html"}).decode()
            return all(f"<th scope=\"row\">{row['id']}</th>" in shown for row in rows)

        wait_until(all_are_shown, 5.0, lambda: f"{rows} on the page:\n{shown}")
        for secret in SECRETS:
            assert secret not in shown and secret.encode() not in data
        # It is no stream of the app: neither here nor for Prometheus.
        assert scrape(server).sum("streams_active") == expected
        assert not any("live" in row["route"] for row in rows)
        with server.request(held.headers["content-location"], method="DELETE") as answer:
            assert answer.status == 204
        with server.request(gone.headers["content-location"], method="DELETE") as answer:
            assert answer.status == 204
    wait_until(lambda: _sum(read(server, LIVE)).startswith(b"0 running"), 10.0)
    wait_until(seen.lookers_that_left, 10.0)


def _sum(page: bytes) -> bytes:
    found = re.search(rb'<p id="sum">(.*?)</p>', page)
    assert found is not None
    return found.group(1)


@pytest.mark.parametrize("seen", ["gevent"], indirect=True)
def test_workers_write_only_while_somebody_looks_and_clean_up(seen: Observed) -> None:
    live = seen.folder / "live"
    with contextlib.suppress(FileNotFoundError):  # nobody has looked yet where this test is the first
        (live / "watched").unlink()
    with contextlib.ExitStack() as stack:
        on_both_workers(stack, seen.server, "/slow/alice")
        for path in live.glob("*.json"):
            path.unlink()
        (live / "999999999.json").write_text("{}")
        time.sleep(1.5)  # longer than a look
        assert [path.name for path in live.glob("*.json")] == ["999999999.json"]
        read(seen.server, LIVE)
        wait_until(lambda: len(list(live.glob("*.json"))) == 2, 10.0)
        assert not (live / "999999999.json").exists()
    wait_until(lambda: not list(live.glob("*.json")), 10.0)


def test_only_who_is_allowed_may_look(seen: Observed) -> None:
    for path in (LIVE, EVENTS):
        with seen.server.request(path.partition("?")[0]) as reader:
            assert reader.status == 403
    with seen.server.request(LIVE, headers={"Accept": "text/event-stream"}) as reader:
        assert reader.headers["content-type"].startswith("text/event-stream")
        assert reader.headers["x-frame-options"] == "DENY"


# -- the log ------------------------------------------------------------------------------------


def test_each_stream_has_one_line_with_what_it_was(seen: Observed) -> None:
    server = seen.server
    behind = len(seen.logged())
    body = read(server, "/say")
    line = seen.line_of(behind, route="say")
    found = line["llmstream"]
    assert found["bytes"] == len(body) and found["pieces"] == 10 and found["status"] == 200
    assert found["reason"] == "finish" and not found["resumable"] and found["left_after"] is None
    assert 0 < found["ttft"] < found["duration"] and found["output_tokens"] == 10 and found["estimated"]
    assert line["stream_id"] == found["stream"] and found["pid"] in server.worker_pids()
    beginning = f"stream={found['stream']} route=say format=sse status=200 reason=finish "
    assert line["message"].startswith(beginning)

    body = read(server, "/half")
    assert seen.line_of(behind, route="half")["llmstream"]["bytes"] == len(body) > 100

    read(server, "/fails")
    failed = seen.line_of(behind, route="fails")
    assert (failed["llmstream"]["reason"], failed["llmstream"]["error"]) == ("error", "ValueError")
    read(server, "/old")
    assert seen.line_of(behind, route="old")["llmstream"]["format"] == "adopted-sse"
    for secret in SECRETS:
        for each in seen.logged():
            assert each["name"] != "flask_llmstream.streams" or secret not in json.dumps(each)
    # All that is said of the stream elsewhere has its id, too.
    id = failed["stream_id"]
    others = [each for each in seen.logged() if id in each["message"]]
    assert len(others) == 2 and {each["stream_id"] for each in others} == {id}


def test_line_says_when_the_client_has_left(seen: Observed) -> None:
    with seen.server.request("/left") as reader:
        reader.read_until(b'"a"')
    found = seen.line_of(route="left", reason="disconnect")["llmstream"]
    assert 0 < found["left_after"] <= found["duration"]


# -- traces -------------------------------------------------------------------------------------


@contextlib.contextmanager
def scripted(script: Any) -> Iterator[ScriptedUpstream]:
    """A model on a port that none had before it: the spans of earlier tests are still there."""
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(ScriptedUpstream(script))
        while model.port in _ports:
            model = stack.enter_context(ScriptedUpstream(script))
        _ports.add(model.port)
        yield model


@pytest.fixture
def model() -> Iterator[ScriptedUpstream]:
    with scripted([tokens("Hel", "lo"), done()]) as model:
        yield model


def is_call_of(model: ScriptedUpstream) -> Callable[[Dict[str, Any]], bool]:
    return lambda span: span["attributes"].get("server.port") == model.port


def with_id(seen: Observed, id: str) -> Dict[str, Any]:
    return seen.span_when(lambda span: span["id"] == id)


def test_call_is_a_child_of_its_stream_and_that_of_the_request(
    seen: Observed, model: ScriptedUpstream
) -> None:
    read(seen.server, "/ask", json={"url": model.url})
    call = seen.span_when(is_call_of(model))
    assert (call["name"], call["kind"], call["status"]) == ("chat m-1", "CLIENT", "UNSET")
    attributes = call["attributes"]
    assert attributes.pop("gen_ai.response.time_to_first_chunk") > 0
    assert attributes.pop("gen_ai.usage.input_tokens") > 0
    assert attributes.pop("gen_ai.usage.output_tokens") > 0
    del attributes["server.port"]
    assert attributes == {
        "gen_ai.operation.name": "chat", "gen_ai.request.stream": True, "gen_ai.request.model": "m-1",
        "gen_ai.provider.name": "openai", "server.address": "127.0.0.1",
        "gen_ai.response.finish_reasons": ["stop"], "gen_ai.response.model": "scripted",
    }
    stream = with_id(seen, call["parent"])
    assert stream["name"] == "stream ask" and stream["events"] == ["llmstream.first_token"]
    assert stream["attributes"]["llmstream.end_reason"] == "finish" and stream["status"] == "UNSET"
    assert stream["attributes"]["llmstream.sent_bytes"] > 10
    request = with_id(seen, stream["parent"])
    assert request["name"] == "request" and request["trace"] == call["trace"]
    (exchange,) = model.exchanges
    assert exchange.headers["traceparent"].startswith(f"00-{call['trace']}-{call['id']}-")
    for secret in SECRETS:
        assert secret not in json.dumps(seen.spans())


def test_span_of_the_generator_comes_between(seen: Observed, model: ScriptedUpstream) -> None:
    read(seen.server, "/nested", json={"url": model.url})
    step = with_id(seen, seen.span_when(is_call_of(model))["parent"])
    assert step["name"] == "step"
    assert with_id(seen, step["parent"])["name"] == "stream nested"


def test_next_request_of_a_connection_is_no_child_of_the_stream_before_it(seen: Observed) -> None:
    with requests.Session() as session:
        for path in ("/say", "/fails", "/say"):
            session.get(seen.server.url + path).close()
        roots = [span for span in seen.spans() if span["name"] == "request"]
        session.get(seen.server.url + "/pid")
    wait_until(lambda: len([span for span in seen.spans() if span["name"] == "request"]) > len(roots), 10.0)
    assert [span["parent"] for span in seen.spans() if span["name"] == "request" and span["parent"]] == []


def test_channels_call_for_their_stream(seen: Observed, model: ScriptedUpstream) -> None:
    read(seen.server, "/both", json={"url": model.url})
    wait_until(lambda: len(list(filter(is_call_of(model), seen.spans()))) == 2, 10.0)
    (parent,) = {span["parent"] for span in seen.spans() if is_call_of(model)(span)}
    assert with_id(seen, parent)["name"] == "stream both"


def test_stream_of_an_unmodified_route_is_a_child_of_its_request(seen: Observed) -> None:
    with seen.server.request("/old?once") as reader:
        reader.read()
    spans = [span for span in seen.spans() if span["name"] == "stream old"]
    wait_until(lambda: any(span["name"] == "stream old" for span in seen.spans()), 10.0)
    spans = [span for span in seen.spans() if span["name"] == "stream old"]
    assert with_id(seen, spans[-1]["parent"])["name"] == "request"
    assert spans[-1]["attributes"]["llmstream.format"] == "adopted-sse"


def test_who_leaves_ends_both_spans_and_is_no_error(seen: Observed) -> None:
    with scripted([tokens("a"), silence()]) as model:
        with seen.server.request("/ask", json={"url": model.url}) as reader:
            reader.read_until(b'"a"')
        call = seen.span_when(is_call_of(model))
        stream = with_id(seen, call["parent"])
    assert call["status"] == stream["status"] == "UNSET"
    assert call["attributes"]["llmstream.cancelled"] == "disconnect"
    assert call["attributes"]["gen_ai.usage.output_tokens"] == 1
    assert call["attributes"]["llmstream.usage.estimated"] is True
    assert stream["attributes"]["llmstream.end_reason"] == "disconnect"


@pytest.mark.parametrize("script, kind", [
    pytest.param([headers({}, status=429)], "429", id="refused"),
    pytest.param([tokens("a"), cut()], "upstream_interrupted", id="cut"),
])
def test_failure_of_the_provider_is_an_error_of_both(seen: Observed, script: Any, kind: str) -> None:
    with scripted(script) as model:
        with seen.server.request("/ask", json={"url": model.url}) as reader:
            reader.read()
        call = seen.span_when(is_call_of(model))
    stream = with_id(seen, call["parent"])
    for span in (call, stream):
        assert (span["status"], span["attributes"]["error.type"]) == ("ERROR", kind), span
    assert stream["attributes"]["llmstream.end_reason"] == "error"


def test_no_span_ends_twice(seen: Observed) -> None:
    for _ in range(6):
        assert ask(seen.server, "/pid")["pid"] in seen.server.worker_pids()
    wait_until(lambda: len(seen.spans()) > 5, 10.0, lambda: f"spans: {seen.spans()}")
    ids = [span["id"] for span in seen.spans()]
    assert len(ids) == len(set(ids))


def test_who_looks_does_not_hold_up_a_worker_that_goes(seen: Observed) -> None:
    """The last: these workers are not the same afterwards."""
    with seen.server.request(EVENTS) as reader:
        reader.read_until(b"event: streams")
        pid = int(reader.headers["x-worker"])
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        end = reader.read()
        assert b"event: done" in end, end
        assert time.monotonic() - began < 8.0  # graceful_timeout, in which a worker may end what it has
