"""``llmstream.js`` without a browser: its size, its types, and that it reads exactly what is written.

One process of node runs every case cut in every way; what differs from the first way is told.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from flask_llmstream.assets import FOLDER
from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.channels import ChannelDone, ChannelFailed, Channels, Tagged
from flask_llmstream.sansio.frames import FramesFormat
from flask_llmstream.sansio.jsondelta import json_deltas
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.sansio.ndjson import NDJSONFormat
from flask_llmstream.sansio.text import TextFormat

sys.path.append(str(Path(__file__).resolve().parent.parent / "client"))

from test_conformance import CASES  # noqa: E402

pytestmark = pytest.mark.browser

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "browser.md"
#: Most bytes of llmstream.js, compressed.
LIMIT = 6 * 1024

PROGRAM = """
import { readFileSync } from "node:fs";
const { SSEParser, stream, applyDelta } = await import(process.argv[1]);
const { conformance, bodies, values } = JSON.parse(readFileSync(0));
const bytes = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));

function* ways(wire, every) {
  yield [wire];
  for (const size of [1, 2, 3, 7, 64]) {
    const pieces = [];
    for (let at = 0; at < wire.length; at += size) pieces.push(wire.subarray(at, at + size));
    yield pieces;
  }
  for (let cut = 1; cut < wire.length; cut += every) yield [wire.subarray(0, cut), wire.subarray(cut)];
}

function parse(pieces) {
  const seen = { events: [], retry: null };
  const parser = new SSEParser({
    onEvent: ({ type, data, lastEventId }) => seen.events.push([type, data, lastEventId]),
    onRetry: (retry) => { seen.retry = retry; },
  });
  for (const piece of pieces) parser.feed(piece);
  return { ...seen, id: parser.lastEventId };
}

async function run({ type, body, options }, pieces) {
  const waiting = [...pieces];
  const source = new ReadableStream({
    pull: (to) => waiting.length ? to.enqueue(waiting.shift()) : to.close(),
  }, { highWaterMark: 0 });
  globalThis.fetch = async () => new Response(source, { headers: { "Content-Type": type } });
  const reading = stream("http://localhost/", { retries: 0, ...options });
  const items = [], seen = { items };
  try {
    for await (const item of reading) items.push(structuredClone(item));
  } catch (error) {
    const { name, message, code, retryable } = error;
    Object.assign(seen, { name, message, code, retryable });
  }
  const { status, text, value, usage, reason, lastEventId, channels } = reading;
  const inside = { ...channels };
  if (type.startsWith("text/plain")) items.splice(0, items.length - 1); // it has no borders
  const { polluted } = {};
  return { ...seen, status, text, value, usage, reason, lastEventId, channels: inside, polluted };
}

const found = [], differ = [];
for (const hex of conformance) {
  const wire = bytes(hex);
  let first;
  for (const pieces of ways(wire, 1)) {
    const seen = JSON.stringify(parse(pieces));
    first ??= seen;
    if (seen !== first) differ.push([hex, pieces.map(String), seen]);
  }
  const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(wire);
  for (const pieces of [[text], text.match(/[^]/gu) ?? []]) {
    const seen = JSON.stringify(parse(pieces));
    if (seen !== first) differ.push([hex, "text", seen]);
  }
  found.push(JSON.parse(first));
}
const read = [];
for (const body of bodies) {
  let first;
  for (const pieces of ways(bytes(body.body), body.every)) {
    const seen = JSON.stringify(await run(body, pieces));
    first ??= seen;
    if (seen !== first) differ.push([body.type, pieces.map(String).slice(0, 3), seen]);
  }
  read.push(JSON.parse(first));
}
const applied = values.map((deltas) => {
  let value;
  for (const delta of deltas) value = applyDelta(value, delta);
  return JSON.stringify(value);
});

// One long line in small pieces takes no more than linear time.
const onEvent = (event) => { if (event.data.length !== 2 ** 22) differ.push("long"); };
const long = new SSEParser({ onEvent });
const began = performance.now();
const piece = new TextEncoder().encode("x".repeat(128));
long.feed("data:");
for (let i = 0; i < 2 ** 22 / 128; i++) long.feed(piece);
long.feed("\\n\\n");
console.log(JSON.stringify({ found, read, applied, differ, long: performance.now() - began }));
"""

ITEMS = [
    "\ufeffa", "é\u2028", "😀\ud83d", "\ude00", "", e.ReasoningDelta("hm\x85"),
    {"a": [1, None, "\u2029"]}, e.Comment("c"), e.ToolCallDelta(0, "c1", "find", '{"q":"\\n"}'),
    e.Event({"x": "7"}, event="own"), e.Event("8", event="own"), e.Custom("step", "\0"), e.Usage(1, 2),
]
USAGE = {"input_tokens": 1, "output_tokens": 2}
DELTAS = [
    {"type": "text", "text": "\ufeffa"}, {"type": "text", "text": "é\u2028"},
    {"type": "text", "text": "😀"}, {"type": "text", "text": "😀"},
    {"type": "reasoning", "text": "hm\x85"},
    {"type": "json", "path": "", "op": "replace", "value": {"a": [1, None, "\u2029"]}},
    {"type": "tool", "index": 0, "id": "c1", "name": "find", "arguments": '{"q":"\\n"}'},
    {"type": "event", "event": "own", "data": {"x": "7"}}, {"type": "event", "event": "own", "data": "8"},
    {"type": "custom", "name": "step", "data": "\0"}, dict(USAGE, type="usage"),
    {"type": "done", "reason": "length", "usage": USAGE},
]
CHANNELLED = [
    Channels(["a", "__proto__"]), Tagged("a", "Hel"), Tagged("__proto__", "x"), "all",
    Tagged("a", {"b": 1}), Tagged("a", "lo"), Tagged("a", ChannelDone("length", e.Usage(3, 4))),
    Tagged("__proto__", ChannelFailed("sorry", "broken", False)),
]
VALUE = {
    "name": "Ada 😀", "address": {"zip": "W1"}, "a/b~": [1, {"c": "d"}, []], "": {},
    "__proto__": {"polluted": "x"}, "paid": True, "none": None,
}


def body_of(wire: Any, items: List[Any], end: Optional[bytes] = None) -> bytes:
    said = [wire.opening(32), wire.heartbeat or b"", *map(wire.encode, items), wire.heartbeat or b""]
    return b"".join([*said, wire.done("length", e.Usage(1, 2)) if end is None else end])


def case(wire: Any, body: bytes, every: int = 1, **options: Any) -> Dict[str, Any]:
    return {"type": wire.content_type, "body": body.hex(), "every": every, "options": options}


def deltas_of(value: Any, size: int) -> List[Dict[str, Any]]:
    text = json.dumps(value)
    deltas = json_deltas(text[at : at + size] for at in range(0, len(text), size))
    return [{"path": each.path, "op": each.op, "value": each.value} for each in deltas]


FORMATS = [SSEFormat, NDJSONFormat, FramesFormat]
NAMES = sorted(CASES)


@pytest.fixture(scope="module")
def results(node: str, tmp_path_factory: Any) -> Dict[str, Any]:
    # Node would take .js for CommonJS.
    module = tmp_path_factory.mktemp("module") / "llmstream.mjs"
    shutil.copyfile(str(FOLDER / "llmstream.js"), str(module))
    bodies = []
    for make in FORMATS:
        bodies.append(case(make(), body_of(make(), ITEMS)))
        bodies.append(case(make(), body_of(make(), CHANNELLED), 7))
        bodies.append(case(make(), body_of(make(), ["a"], make().failed("try again", "busy", True)), 7))
        bodies.append(case(make(), body_of(make(), ["a"], b""), 7))
        bodies.append(case(make(), body_of(make(), ["a"], b""), 7, expectedEnd=False))
        hostile = e.JsonDelta("/__proto__/polluted", "add", "x")
        bodies.append(case(make(), body_of(make(), [{}, hostile]), 7))
    lines, frames = NDJSONFormat(), FramesFormat()
    bodies.append(case(TextFormat(), "\ufeffaé😀\r\n".encode()))
    bodies.append(case(lines, lines.encode("a") + b"[]\n", 7))
    bodies.append(case(frames, frames.encode("a") + b"\0\0\0\1\1\0\xff", 7))
    bodies.append(case(frames, frames.encode("a") + b"\xff\0\0\1\1\0", 7))
    bodies.append(case(lines, b'{"type":"later"}\n' + body_of(lines, ["a"]), 7))
    bodies.append(case(frames, b"\0\0\0\1\x4d\0\xff" + body_of(frames, ["a"]), 7))
    values = [deltas_of(VALUE, size) for size in (1, 5, 1000)]
    values.append(deltas_of([[1], "a", {}], 3))
    program = {"conformance": [CASES[name].wire.hex() for name in NAMES], "bodies": bodies, "values": values}
    done = subprocess.run(
        [node, "--input-type=module", "-e", PROGRAM, module.as_uri()], input=json.dumps(program).encode(),
        stdout=subprocess.PIPE, timeout=100, check=True,
    )
    found: Dict[str, Any] = json.loads(done.stdout.decode())
    return found


def test_nothing_depends_on_how_bytes_are_cut(results: Dict[str, Any]) -> None:
    assert results["differ"] == []


def test_event_streams_are_read_as_the_specification_says(results: Dict[str, Any]) -> None:
    for name, seen in zip(NAMES, results["found"]):
        case = CASES[name]
        events = [[kind, data, id or ""] for kind, data, id in case.events]
        expected = {"events": events, "retry": case.retry, "id": case.last_event_id}
        assert seen == expected, name


def test_a_long_line_takes_linear_time(results: Dict[str, Any]) -> None:
    print(f"4 MiB in pieces of 128 bytes: {results['long']:.0f} ms")
    assert results["long"] < 5000


@pytest.mark.parametrize("number, wire", list(enumerate(FORMATS)))
def test_every_format_says_the_same(results: Dict[str, Any], number: int, wire: Any) -> None:
    whole, channels, failed, cut, endless, hostile = results["read"][6 * number : 6 * number + 6]
    assert whole["items"] == DELTAS and whole["status"] == "done"
    assert whole["text"] == "\ufeffaé\u2028😀😀" and whole["value"] == {"a": [1, None, "\u2029"]}
    assert (whole["reason"], whole["usage"]) == ("length", USAGE)

    usage = {"input_tokens": 3, "output_tokens": 4}
    assert channels["items"] == [
        {"type": "text", "text": "Hel", "channel": "a"},
        {"type": "text", "text": "x", "channel": "__proto__"},
        {"type": "text", "text": "all"},
        {"type": "json", "path": "", "op": "replace", "value": {"b": 1}, "channel": "a"},
        {"type": "text", "text": "lo", "channel": "a"},
        {"type": "channel", "end": "done", "reason": "length", "usage": usage, "channel": "a"},
        {"type": "channel", "end": "failed", "message": "sorry", "code": "broken", "retryable": False,
         "channel": "__proto__"},
        DELTAS[-1],
    ]
    assert channels["text"] == "all"
    assert channels["channels"]["a"] == {
        "text": "Hello", "value": {"b": 1}, "usage": usage, "reason": "length"
    }

    assert failed["items"] == [{"type": "text", "text": "a"}]
    told = [failed[key] for key in ("status", "name", "message", "code", "retryable")]
    assert told == ["failed", "StreamFailed", "try again", "busy", True]

    assert cut["items"] == [{"type": "text", "text": "a"}] and cut["status"] == "failed"
    assert (cut["name"], cut["code"], cut["retryable"]) == ("StreamInterrupted", "interrupted", True)
    assert endless["items"][1:] == [{"type": "done", "reason": None, "usage": None}]

    assert (hostile["name"], hostile["code"]) == ("StreamError", "invalid_data")
    assert "polluted" not in hostile


def test_text_and_damage(results: Dict[str, Any]) -> None:
    plain, line, payload, size, later, unknown = results["read"][6 * len(FORMATS) :]
    assert plain["text"] == "\ufeffaé😀\r\n" and plain["items"][-1]["type"] == "done"
    for damaged in (line, payload, size):
        assert (damaged["name"], damaged["code"]) == ("StreamError", "invalid_data")
        assert damaged["items"] == [{"type": "text", "text": "a"}]
    for passed in (later, unknown):
        assert passed["items"] == [{"type": "text", "text": "a"}, DELTAS[-1]]


def test_json_is_rebuilt(results: Dict[str, Any]) -> None:
    expected = [VALUE, VALUE, VALUE, [[1], "a", {}]]
    # As text: the order of the names counts.
    assert [json.dumps(json.loads(each)) for each in results["applied"]] == list(map(json.dumps, expected))


def test_size() -> None:
    size = len(gzip.compress((FOLDER / "llmstream.js").read_bytes(), 9))
    print(f"llmstream.js: {size} bytes, compressed")
    assert size <= LIMIT


SAME = """
import * as written from "./llmstream.js";
import * as typed from "./types.js";
const one: Record<keyof typeof typed, unknown> = written;
const other: Record<keyof typeof written, unknown> = typed;
export { one, other };
"""

USED = """
import { stream, StreamRefused, type Delta, type Run } from "./types.js";
export async function use(): Promise<string> {
  const run: Run = stream("/chat", { body: { question: "why" }, onStatus: (status) => status === "done" });
  try {
    for await (const delta of run) {
      if (delta.type === "text") delta.text.trim();
      else if (delta.type === "channel" && delta.end === "failed") delta.code.trim();
      // @ts-expect-error: a usage has no text
      else if (delta.type === "usage") delta.text;
    }
  } catch (error) {
    if (error instanceof StreamRefused) error.retryAfter?.toFixed();
  }
  // @ts-expect-error: no such format
  stream("/chat", { format: "xml" });
  return run.text;
}
"""


@pytest.mark.checkout
def test_types(node: str, npm_packages: Path, tmp_path: Path) -> None:
    """The module is what its declarations say, they say what is needed, and the page keeps to them."""
    script = (FOLDER / "llmstream.js").read_text(encoding="utf-8")
    script = script.replace('import("./llmstream.js")', 'import("./types.js")')
    # Types of a module's own; the element has a test of its own.
    script = script.replace('import("./llmstream-element.js")', "null")
    (tmp_path / "llmstream.js").write_text(script, encoding="utf-8")
    shutil.copyfile(str(FOLDER / "llmstream.d.ts"), str(tmp_path / "types.d.ts"))
    (tmp_path / "same.ts").write_text(SAME)
    (tmp_path / "used.ts").write_text(USED)
    blocks = re.findall(r"^```javascript\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 5
    for number, block in enumerate(blocks):
        block = block.replace('"/llmstream/llmstream.js"', '"./types.js"')
        # What the page's elements are is not the matter here.
        block = block.replace("document.", "/** @type {any} */ (document).")
        (tmp_path / f"page{number}.js").write_text(block, encoding="utf-8")
    options = [
        "--noEmit", "--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler",
        "--lib", "es2022,dom,dom.iterable", "--pretty", "false",
        "--allowJs", "--checkJs", "--strict", "--noImplicitAny", "false", "--skipDefaultLibCheck",
    ]
    command = [node, str(npm_packages / "typescript" / "bin" / "tsc"), *options, "same.ts", "used.ts"]
    command += [f"page{number}.js" for number in range(len(blocks))]
    done = subprocess.run(command, cwd=str(tmp_path), stdout=subprocess.PIPE, timeout=100)
    assert done.returncode == 0, done.stdout.decode()
