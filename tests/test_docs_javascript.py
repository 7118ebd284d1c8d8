"""The JavaScript that the docs show reads what we write, however the network cuts it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import pytest

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.channels import ChannelDone, ChannelFailed, Channels, Tagged
from flask_llmstream.sansio.frames import FrameDecoder, FramesFormat
from flask_llmstream.sansio.jsondelta import json_deltas
from flask_llmstream.sansio.ndjson import NDJSONFormat

DOCS = Path(__file__).resolve().parent.parent / "docs"
pytestmark = pytest.mark.checkout

ITEMS = [
    "\ufeffa", "é\u2028", "😀\ud83d", "\ude00", "", e.ReasoningDelta("hm\x85"),
    {"a": [1, None, "\u2029"]}, e.Comment("c"), e.ToolCallDelta(0, "c1", "find", '{"q":"\\n"}'),
    e.Usage(1, 2), e.Event("x", id="7"), e.Custom("own", "\0"),
]

DRIVER = """
const cases = JSON.parse(require("fs").readFileSync(0));
const bytes = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));

async function run({ reader, pieces, limit, stop }) {
  const result = { items: [], error: null, cancelled: false };
  const waiting = pieces.map(bytes);
  const body = new ReadableStream({
    pull: (controller) => waiting.length ? controller.enqueue(waiting.shift()) : controller.close(),
    cancel: () => { result.cancelled = true; },
  }, { highWaterMark: 0 });
  try {
    for await (const item of { readFrames, readLines }[reader](new Response(body), limit)) {
      result.items.push(item);
      if (result.items.length === stop) break;
    }
  } catch (error) {
    result.error = String(error);
  }
  return result;
}

(async () => console.log(JSON.stringify(await Promise.all(cases.map(run)))))();
"""


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.fail("node is not installed (Debian: apt-get install nodejs)", pytrace=False)
    return found


def read_in_javascript(node: str, cases: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Run the readers of the page, all *cases* in one process; return what each has read."""
    for case in cases:
        case["pieces"] = [piece.hex() for piece in case["pieces"]]
    return run_javascript(node, blocks_of("formats.md") + [DRIVER], cases)


def blocks_of(page: str) -> List[str]:
    """Return the blocks of JavaScript on *page*."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```javascript\n(.*?)^```", text, re.M | re.S)


def run_javascript(node: str, program: List[str], cases: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Give *cases* to a program; return what it writes, one for each of them."""
    done = subprocess.run(
        [node, "-e", "\n".join(program)], input=json.dumps(cases).encode(), stdout=subprocess.PIPE,
        timeout=60, check=True,
    )
    found: List[Dict[str, Any]] = json.loads(done.stdout.decode())
    assert len(found) == len(cases)
    return found


def body_of(wire: Any) -> bytes:
    frames = [wire.opening(32), wire.heartbeat, *map(wire.encode, ITEMS), wire.heartbeat]
    return b"".join([*frames, wire.done("stop", e.Usage(1, 2))])


def cut(body: bytes, size: int) -> List[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


SIZES = (1, 2, 3, 7, 64, 1 << 20)


def test_frames_are_read_as_in_python(node: str) -> None:
    body = body_of(FramesFormat())
    expected = [
        {"kind": each.kind, "channel": each.channel, "data": each.data} for each in FrameDecoder().feed(body)
    ]
    assert len(expected) == 11
    for found in read_in_javascript(
        node, [{"reader": "readFrames", "pieces": cut(body, size)} for size in SIZES]
    ):
        assert found["error"] is None and found["items"] == expected


def test_lines_are_read_as_in_python(node: str) -> None:
    body = body_of(NDJSONFormat())
    expected = [json.loads(line) for line in body.decode().split("\n")[:-1]]
    for found in read_in_javascript(
        node, [{"reader": "readLines", "pieces": cut(body, size)} for size in SIZES]
    ):
        assert found["error"] is None and found["items"] == expected


def test_faults_are_errors_and_who_stops_cancels(node: str) -> None:
    body = FramesFormat().encode("abc")
    unknown = b"\0\0\0\1\x4d\0\xff"
    long, cut_off, damaged, passed, stopped = read_in_javascript(
        node,
        [
            {"reader": "readFrames", "pieces": [body + body], "limit": 2},
            {"reader": "readFrames", "pieces": [body, body[:-1]]},
            {"reader": "readFrames", "pieces": [body, b"\0\0\0\1\1\0\xff"]},
            {"reader": "readFrames", "pieces": [unknown + body]},
            {"reader": "readFrames", "pieces": [body, body, body], "stop": 1},
        ],
    )
    assert long["items"] == [] and "a frame says that it has 3 bytes" in long["error"] and long["cancelled"]
    assert len(cut_off["items"]) == 1 and "ended inside a frame" in cut_off["error"]
    assert len(damaged["items"]) == 1 and "TypeError" in damaged["error"] and damaged["cancelled"]
    assert passed["items"] == [{"kind": "text", "channel": 0, "data": "abc"}] and passed["error"] is None
    assert len(stopped["items"]) == 1 and stopped["cancelled"]


FORM = """
const cases = JSON.parse(require("fs").readFileSync(0));

async function run({ body, names }) {
  const fields = new Map(names.map((name) => [name, { value: null, disabled: true }]));
  const form = { elements: { namedItem: (name) => fields.get(name) ?? null } };
  const result = { text: null, error: null, polluted: false };
  try {
    result.text = JSON.stringify(await fillForm(form, new Response(body)));
  } catch (error) {
    result.error = String(error);
  }
  result.polluted = {}.polluted !== undefined;
  return { ...result, fields: Object.fromEntries(fields) };
}

(async () => console.log(JSON.stringify(await Promise.all(cases.map(run)))))();
"""


def test_form_is_filled_in_and_its_final_fields_enabled(node: str) -> None:
    value = {
        "name": "Ada 😀", "address": {"zip": "W1"}, "a/b~": [1, {"c": "d"}],
        "__proto__": {"polluted": "x"}, "paid": True, "none": None,
    }
    text = json.dumps(value)
    names = ["name", "address/zip", "paid", "notes"]
    cases = []
    for size in (1, 5, 1000):
        lines = NDJSONFormat()
        deltas = json_deltas(text[at : at + size] for at in range(0, len(text), size))
        cases.append({
            "body": b"".join([*map(lines.encode, deltas), lines.done("stop")]).decode(), "names": names,
        })
    lines = NDJSONFormat()
    cut = b"".join(map(lines.encode, json_deltas(['{"name": "Ada", "notes": "fir'])))
    cases.append({"body": (cut + lines.failed("no more", "output_invalid", True)).decode(), "names": names})
    program = blocks_of("formats.md") + blocks_of("structured.md") + [FORM]
    *whole, failed = run_javascript(node, program, cases)
    for found in whole:
        assert found["error"] is None and not found["polluted"]
        assert list(json.loads(found["text"]).items()) == list(value.items())
        assert found["fields"] == {
            "name": {"value": value["name"], "disabled": False},
            "address/zip": {"value": "W1", "disabled": False},
            "paid": {"value": True, "disabled": False},
            "notes": {"value": None, "disabled": True},
        }
    assert failed["error"] == "Error: no more"
    assert failed["fields"]["name"]["disabled"] is False
    assert failed["fields"]["notes"] == {"value": "fir", "disabled": True}


def test_channels_are_told_apart() -> None:
    """The reader of docs/multiplex.md, on the lines of docs/formats.md."""
    pages = [(DOCS / name).read_text(encoding="utf-8") for name in ("formats.md", "multiplex.md")]
    code = [block for page in pages for block in re.findall(r"^```javascript\n(.*?)^```", page, re.M | re.S)]
    wire = NDJSONFormat()
    items = [
        Channels(["a", "b"]), Tagged("a", "Hel"), Tagged("b", "x"), Tagged("a", "lo"),
        Tagged("a", ChannelDone("length")), Tagged("b", ChannelFailed("sorry", "broken", False)),
    ]
    body = b"".join(wire.encode(item) for item in items)
    driver = """
    (async () => {
      const read = (body) => readChannels(new Response(body)).catch((error) => error.message);
      const [whole, cut] = JSON.parse(require("fs").readFileSync(0));
      console.log(JSON.stringify([await read(whole), await read(cut)]));
    })();
    """
    wanted = [block for block in code if "readLines" in block]
    node = shutil.which("node")
    assert node is not None, "node is not installed"
    bodies = json.dumps([(body + wire.done("stop")).decode(), body.decode()])
    ran = subprocess.run(
        [node, "-e", "\n".join(wanted) + driver], input=bodies.encode(), stdout=subprocess.PIPE, check=True
    )
    whole, cut = json.loads(ran.stdout)
    assert whole["a"] == {"text": "Hello", "end": {"type": "done", "reason": "length", "usage": None}}
    assert whole["b"]["text"] == "x" and whole["b"]["end"]["code"] == "broken"
    assert cut == "the stream was cut"
