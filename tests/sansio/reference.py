"""The specification of event streams as plainly as it can be written: slow, whole input only.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import re
from typing import List, NamedTuple, Optional

from flask_llmstream.sansio.events import Event


class Result(NamedTuple):
    events: List[Event]
    comments: List[str]
    last_event_id: str
    retry: Optional[int]


def parse(wire: bytes) -> Result:
    text = wire.decode("utf-8", "replace")
    if text.startswith("\ufeff"):
        text = text[1:]
    lines = re.split("\r\n|\n|\r", text)
    lines.pop()  # not ended by a line end, or nothing at all
    events: List[Event] = []
    comments: List[str] = []
    last_event_id = ""
    retry: Optional[int] = None
    data = event_type = ""
    id_buffer: Optional[str] = None
    for line in lines:
        if line == "":
            last_event_id = last_event_id if id_buffer is None else id_buffer
            if data != "":
                events.append(Event(data[:-1], event_type or None, id_buffer))
            data = event_type = ""
            continue
        if line.startswith(":"):
            comments.append(re.sub("^: ?", "", line))
            continue
        field, value = line, ""
        if ":" in line:
            field, value = line.split(":", 1)
            value = value[1:] if value.startswith(" ") else value
        if field == "event":
            event_type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            id_buffer = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            retry = int(value)
    return Result(events, comments, last_event_id, retry)
