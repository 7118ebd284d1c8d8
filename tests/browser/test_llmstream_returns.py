"""When ``llmstream.js`` comes back and when it does not: its requests, as a server sees them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from flask_llmstream.assets import FOLDER
from flask_llmstream.sansio.frames import FramesFormat, with_cursor

sys.path.append(str(Path(__file__).resolve().parent.parent / "client"))

from scripted import Exchange, ScriptedServer  # noqa: E402

pytestmark = pytest.mark.browser

PROGRAM = """
const { stream } = await import(process.argv[1]);
const cases = JSON.parse(process.argv[2]);
const found = await Promise.all(cases.map(async ([url, options]) => {
  const statuses = [], delays = [], onStatus = (status, detail) => {
    statuses.push(status);
    if (detail.delay !== undefined) delays.push(detail.delay);
  };
  const run = stream(url, { onStatus, ...options });
  let error = {};
  try {
    for await (const item of run) if (item.type === "event") statuses.push(item.event);
  } catch (thrown) {
    const { name, code, retryable, status, retryAfter, body, message } = thrown;
    error = { name, code, retryable, status, retryAfter, body, message };
  }
  return { ...error, text: run.text, url: run.url, statuses, delays };
}));
console.log(JSON.stringify(found));
"""

FOLLOW = {"Content_Location": "/streams/s1"}
FRAMES = FramesFormat.content_type
DONE = b'id: e\xc3\xa9\nevent: done\ndata: {"reason":"stop","usage":null}\n\n'


def text(text: str, id: str = "", retry: str = "retry: 1\n") -> bytes:
    return f'{f"id: {id}" if id else ":"}\n{retry}data: {json.dumps({"text": text})}\n\n'.encode()


def framed(text: str, cursor: str) -> bytes:
    return with_cursor(FramesFormat().encode(text), cursor)


def cut(*pieces: bytes, **headers: str) -> Callable[[Exchange], None]:
    """Send a part, and end the connection in the middle of an HTTP chunk."""

    def answer(exchange: Exchange) -> None:
        exchange.head(**headers)
        exchange.send(b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"99\r\n: ")

    return answer


def whole(*pieces: bytes, **headers: str) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(b"".join(pieces), **headers)


def refuse(status: str, body: bytes = b"", **headers: str) -> Callable[[Exchange], None]:
    def answer(exchange: Exchange) -> None:
        exchange.head(status, Content_Length=str(len(body)), Content_Type="text/plain", **headers)
        exchange.send(body)

    return answer


#: What the server answers, one after the other; what is asked with, and what is seen at the end.
CASES: Dict[str, Any] = {
    "post": ([cut(text("a", "1"), **FOLLOW), whole(text("b", "2"), DONE)], {"body": {"x": 1}}),
    "named by an event": ([
        cut(b'event: stream\ndata: {"url":"/streams/s1"}\n\n' + text("a", "1")), whole(text("b", "2"), DONE)
    ], {"body": "x"}),
    "all was read": ([cut(text("ab", "1"), **FOLLOW), refuse("204 No Content")], {"body": "x"}),
    "busy": ([
        cut(text("a", "\u0436"), **FOLLOW), refuse("503 Busy", Retry_After="0"), refuse("500 No"),
        whole(text("b", "2"), DONE),
    ], {"body": "x"}),
    "lines": ([
        cut(b'{"type":"text","text":"a","cursor":"7"}\n', Content_Type="application/ndjson", **FOLLOW),
        whole(b'{"type":"text","text":"b"}\n{"type":"done","reason":"stop"}\n',
              Content_Type="application/x-ndjson"),
    ], {"body": "x", "headers": {"Accept": "*/*"}}),
    "get with an id": ([cut(text("a", "1")), whole(text("b", "2"), DONE)], {}),
    "get without anything": ([cut(b"retry: 1\n\n"), whole(text("ab"), DONE)], {}),
    "post that was too early": ([
        refuse("429 Slow down", b"enough", Retry_After="0"), refuse("503 Busy", Retry_After="1"),
        cut(text("a", "1"), **FOLLOW), whole(text("b", "2"), DONE),
    ], {"body": {"x": 1}}),
    "frames": ([
        cut(framed("a", "7") + framed("b", "8")[:-4], Content_Type=FRAMES, **FOLLOW),
        whole(framed("b", "8") + FramesFormat().done("stop"), Content_Type=FRAMES),
    ], {"body": "x", "headers": {"Accept": "*/*"}}),
    "get that may come later": ([refuse("503 Busy", Retry_After="0"), whole(text("ab"), DONE)], {}),
    # What ends in an error.
    "gone": ([cut(text("a", "1"), **FOLLOW), refuse("410 Gone")], {"body": "x"}),
    "post without a name": ([cut(text("a", "1"))], {"body": "x"}),
    "somebody else's": ([
        cut(text("a", "1"), Content_Location="http://elsewhere.test/streams/s1")
    ], {"body": "x"}),
    "get without ids": ([cut(text("a"))], {}),
    "not wanted": ([cut(text("a", "1"), **FOLLOW)], {"body": "x", "resume": False}),
    "lost by the server": ([
        cut(b'event: stream\ndata: {"url":null}\n\n' + text("a", "1"), **FOLLOW)
    ], {"body": "x"}),
    "never again": ([cut(text("a", "1"), **FOLLOW)] + [refuse("502 No")] * 3, {"body": "x", "retries": 3}),
    "too long": ([refuse("503 Busy", b"x" * 3000, Retry_After="3600")], {}),
    "refused post": ([refuse("429 Slow down", b"enough")], {"body": "x"}),
    "failed post": ([refuse("502 No", Retry_After="0")], {"body": "x"}),
    "early, and never again": ([refuse("503 Busy", Retry_After="0")], {"body": "x", "retries": 0}),
    "post that was sent elsewhere": ([
        refuse("303 See Other", Location="/elsewhere"), refuse("503 Busy", Retry_After="0")
    ], {"body": "x"}),
    "refused get": ([refuse("500 No")], {}),
}
FAILED = list(CASES)[list(CASES).index("gone") :]


class Seen:
    def __init__(self, requests: List[Any], result: Dict[str, Any]) -> None:
        self.requests = requests
        self.result = result


@pytest.fixture(scope="module")
def seen(node: str, tmp_path_factory: Any) -> Dict[str, Seen]:
    module = tmp_path_factory.mktemp("module") / "llmstream.mjs"
    shutil.copyfile(str(FOLDER / "llmstream.js"), str(module))
    servers = {}
    for name, (answers, _) in CASES.items():
        def script(exchange: Exchange, answers: List[Any] = answers) -> None:
            answers[exchange.number](exchange)

        servers[name] = ScriptedServer(script)
    asked = json.dumps([(servers[name].url, options) for name, (_, options) in CASES.items()])
    try:
        done = subprocess.run(
            [node, "--input-type=module", "-e", PROGRAM, module.as_uri(), asked],
            stdout=subprocess.PIPE, timeout=100, check=True,
        )
    finally:
        for server in servers.values():
            server.stop()
    results = json.loads(done.stdout.decode())
    for name, server in servers.items():
        assert not server.errors, (name, server.errors)
    return {name: Seen(servers[name].requests, result) for name, result in zip(CASES, results)}


@pytest.mark.parametrize("name", list(CASES))
def test_requests(seen: Dict[str, Seen], name: str) -> None:
    """As many as there are answers; a POST is sent once, what follows are GETs of the stream's own URL."""
    requests, result = seen[name].requests, seen[name].result
    answers, options = CASES[name]
    assert len(requests) == len(answers), result
    assert ("code" in result) == (name in FAILED), result
    if name not in FAILED:
        assert result["text"] == "ab" and result["statuses"][-1] == "done", result
    first, rest = requests[0], requests[1:]
    assert first.method == ("POST" if "body" in options else "GET")
    assert first.headers["accept"] == options.get("headers", {}).get("Accept", "text/event-stream")
    assert "last-event-id" not in first.headers
    early = 2 if name == "post that was too early" else 0  # nothing had begun
    repeated = [(each.method, each.target, each.body) for each in rest[:early]]
    assert repeated == [(first.method, first.target, first.body)] * early
    place = {"post that was sent elsewhere": "/elsewhere"}.get(name, "/streams/s1")
    for request in rest[early:]:
        assert request.method == "GET" and not request.body
        assert request.target == (place if "body" in options else "/stream")
    assert result["statuses"].count("reconnecting") == len(rest) - (place == "/elsewhere")


def test_what_is_sent(seen: Dict[str, Seen]) -> None:
    first, again = seen["post"].requests
    assert (first.headers["content-type"], first.body) == ("application/json", b'{"x":1}')
    assert again.headers["last-event-id"] == "1"
    assert seen["get with an id"].requests[1].headers["last-event-id"] == "1"
    assert "last-event-id" not in seen["get without anything"].requests[1].headers
    # UTF-8, as an EventSource sends it.
    assert seen["busy"].requests[-1].headers["last-event-id"].encode("latin-1").decode() == "\u0436"
    # In the format that it began in: only there do the ids mean anything.
    assert seen["lines"].requests[1].headers["accept"] == "application/x-ndjson"
    assert seen["frames"].requests[1].headers["accept"] == FRAMES
    assert seen["frames"].requests[1].headers["last-event-id"] == "7"


def test_waiting(seen: Dict[str, Seen]) -> None:
    """The server's time, doubled each time and spread."""
    delays = seen["never again"].result["delays"]
    for number, delay in enumerate(delays):
        assert 0.001 * 2**number <= delay <= 0.0015 * 2**number, delays


def test_errors(seen: Dict[str, Seen]) -> None:
    told = {name: seen[name].result for name in FAILED}
    assert (told["gone"]["name"], told["gone"]["code"]) == ("StreamInterrupted", "lost")
    assert told["not wanted"]["url"].endswith("/streams/s1")
    nameless = ["post without a name", "somebody else's", "get without ids", "lost by the server"]
    assert [told[name]["url"] for name in nameless] == [None] * 4
    for name in [*nameless, "not wanted"]:
        assert (told[name]["name"], told[name]["code"]) == ("StreamInterrupted", "interrupted"), name
        assert told[name]["text"] == "a", name
    assert (told["never again"]["name"], told["never again"]["status"]) == ("StreamRefused", 502)
    long = told["too long"]
    assert (long["status"], long["retryAfter"], long["retryable"]) == (503, 3600, True)
    assert len(long["body"]) == 1024
    assert (told["refused post"]["retryAfter"], told["refused post"]["body"]) == (None, "enough")
    assert told["failed post"]["retryAfter"] == 0
    assert seen["post that was too early"].result["delays"][1] >= 1
    assert told["refused get"]["message"] == "/stream answered 500"
