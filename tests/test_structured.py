"""Structured deltas inside a stream: bursts, faults, and clients that leave, as without them."""

from __future__ import annotations

import json
from typing import Any, Iterator

import pytest
from serving import Served, events_of
from structuring import Writes, ask, rebuilt

from flask_llmstream import json_deltas, snapshots
from flask_llmstream.testing.upstreams import done, silence, tokens


@pytest.mark.parametrize("delegated", [True, False])
def test_client_rebuilds_what_the_model_has_written(upstream, delegated):
    answer = ask(
        upstream,
        tokens("Sure:\n```json\n", '{"na', 'me": "A', "da\\ud83d", '\\ude00"', ", 'n': [1", "2,]}"),
        done(),
    )

    def source() -> Iterator[Any]:
        yield from json_deltas(answer)

    with Served(source() if delegated else json_deltas(answer)) as served:
        data = served.read()
        document = rebuilt(data)
        assert document.value == {"name": "Ada\U0001f600", "n": [12]} and document.complete
        assert served.end().reason == "finish"
        assert served.end().usage is not None and served.end().usage == answer.usage


def test_burst_of_the_model_leaves_in_one_write(upstream):
    count, writes = 20, Writes(upstream)
    answer = ask(upstream, tokens('["', *"x" * count, '"]'), done())

    def source() -> Iterator[Any]:
        yield from json_deltas(answer)

    with Served(source(), before_write=writes) as served:
        data = served.read()
        assert rebuilt(data).value == ["x" * count]
        served.end()
    assert writes.count < count


def test_client_that_leaves_ends_the_call(upstream):
    answer = ask(upstream, tokens('{"name": "Ada'), silence())

    def source() -> Iterator[Any]:
        yield from json_deltas(answer, cut="error")

    with Served(source()) as served:
        served.read_until(b"Ada")
        served.client.close()
        assert served.end().reason == "disconnect"
    upstream.wait_closed()
    assert answer.closed


def test_fault_in_the_json_is_a_failed_event_behind_what_came_before(upstream):
    answer = ask(upstream, tokens('{"name": "Ada"', "!", ' "more": 1}'), silence())

    def source() -> Iterator[Any]:
        yield from json_deltas(answer)

    with Served(source()) as served:
        data = served.read()
        assert rebuilt(data).value == {"name": "Ada"}
        (failed,) = [event for event in events_of(data) if event.event == "failed"]
        assert json.loads(failed.data)["code"] == "upstream_invalid"
        assert served.end().reason == "error"
    upstream.wait_closed()


def test_limit_is_a_failed_event(upstream):
    answer = ask(upstream, tokens("[1, " + "[" * 20), done())
    with Served(json_deltas(answer, max_depth=10)) as served:
        assert b"event: failed" in served.read()
        served.end()


def test_snapshots_are_for_the_application(upstream):
    answer = ask(upstream, tokens('{"a": 1', ', "b": "x', 'y"}'), done())

    def source() -> Iterator[Any]:
        for snapshot in snapshots(answer):
            yield {"fields": len(snapshot.value), "complete": snapshot.complete}

    with Served(source()) as served:
        values = [json.loads(each.data) for each in events_of(served.read()) if "fields" in each.data]
        assert values[-1]["value"] == {"fields": 2, "complete": True}
        served.end()
