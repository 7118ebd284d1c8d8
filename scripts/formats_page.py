"""Write docs/formats.md, whose tables show what each format really sends; ``--check`` only compares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, List, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from generated import write_or_check  # noqa: E402

from flask_llmstream.sansio import channels as c  # noqa: E402
from flask_llmstream.sansio import events as e  # noqa: E402
from flask_llmstream.sansio.formats import format_names, make_format  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "formats.md"
#: The text around the tables; ``{matrix}`` and ``{streams}`` stand where they go.
TEXT = ROOT / "scripts" / "formats_page.md"

#: First of all the formats of our own; the dialects of others follow in alphabetical order.
OWN = ["sse", "ndjson", "text", "frames"]

#: One stream, from its first item to its last, which holds one of each.
SAMPLES: List[Tuple[str, Any]] = [
    ('ReasoningDelta("Hm.")', e.ReasoningDelta("Hm.")),
    ('TextDelta("Hi"), "Hi", b"Hi"', e.TextDelta("Hi")),
    ('ToolCallDelta(0, "c1", "find")', e.ToolCallDelta(0, "c1", "find")),
    ("ToolCallDelta(0, arguments='{}')", e.ToolCallDelta(0, arguments="{}")),
    ('JsonDelta("/a", "add", 1)', e.JsonDelta("/a", "add", 1)),
    ('{"a": 1}', {"a": 1}),
    ('Custom("step", 1)', e.Custom("step", 1)),
    ('Event("hello", event="note")', e.Event("hello", event="note")),
    ('Comment("hello")', e.Comment("hello")),
    ("Usage(7, 2)", e.Usage(7, 2)),
    ('Finish("stop")', e.Finish("stop")),
]
END, FAILURE, HEARTBEAT, OPENING = "the end", "a failure", "a silence", "before all"
#: Of another stream, which has channels.
CHANNELS: List[Tuple[str, Any]] = [
    ("channels: which there are", c.Channels(["a", "b"])),
    ("channel b: a text", c.Tagged("b", "Hi")),
    ("channel b: its end", c.Tagged("b", c.ChannelDone("stop"))),
    ("channel a: a failure", c.Tagged("a", c.ChannelFailed("try again", "upstream_timeout", True))),
]
PLAIN = (END, FAILURE, HEARTBEAT, OPENING, *(text for text, _ in CHANNELS))


def names() -> List[str]:
    """Return the formats in the order of the page."""
    return OWN + [name for name in format_names() if name not in OWN]


def stream_of(name: str) -> List[Tuple[str, bytes]]:
    """Return what the format writes for each item of the sample stream, and around it."""
    wire = make_format(name)
    rows = [(OPENING, wire.opening(0))]
    rows += [(text, wire.encode(item)) for text, item in SAMPLES]
    rows.append((HEARTBEAT, wire.heartbeat or b""))
    rows.append((END, wire.done("stop", e.Usage(7, 2))))
    # Of a stream of its own: one that has ended cannot fail.
    other = make_format(name)
    other.opening(0)
    other.encode("Hi")
    rows.append((FAILURE, other.failed("try again", "upstream_timeout", True)))
    return rows + channels_of(name)


def channels_of(name: str) -> List[Tuple[str, bytes]]:
    """Return what the format writes of channels; nothing where it refuses them."""
    wire = make_format(name)
    try:
        return [(text, wire.encode(item)) for text, item in CHANNELS]
    except ValueError:
        return [(text, b"") for text, _ in CHANNELS]


def matrix() -> str:
    """Return the table of what is sent in which format, and what is left out."""
    columns = [stream_of(name) for name in names()]
    lines = ["| | " + " | ".join(f"`{name}`" for name in names()) + " |", "|---" * (len(columns) + 1) + "|"]
    for number, (text, _) in enumerate(columns[0]):
        cells = ["\N{BLACK CIRCLE}" if column[number][1] else "" for column in columns]
        lines.append(f"| {_title(text)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def streams() -> str:
    """Return, for each format, the bytes of the sample stream."""
    parts = []
    for name in names():
        rows = [f"| {_title(text)} | {_shown(data)} |" for text, data in stream_of(name)]
        content_type = make_format(name).content_type
        parts.append("\n".join([f"### `{name}`: `{content_type}`", "", "| | |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _title(text: str) -> str:
    return text if text in PLAIN else f"`{text}`"


def _shown(data: bytes) -> str:
    if not data:
        return "nothing"
    head = ""
    if data[0] == 0:  # of a frame; its numbers are no characters
        head = "".join(f"{byte:02x} " for byte in data[:6])
        data = data[6:]
    text = head + data.decode().replace("\n", "\\n").replace("|", "\\|")
    return f"`{text.rstrip(' ')}`"


def page() -> str:
    """Return the text of the page."""
    text = TEXT.read_text(encoding="utf-8")
    return text.replace("{matrix}", matrix()).replace("{streams}", streams())


if __name__ == "__main__":
    sys.exit(write_or_check(TARGET, page()))
