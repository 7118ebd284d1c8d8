"""Forms over real connections: fields that are final before the model is, and those that are wrong."""

from __future__ import annotations

import json
import threading
from typing import Any, Callable, Dict, Iterator, List

import pytest
from asking import APPS, ended, events_of, leaving, new_key

from flask_llmstream import JsonDelta
from flask_llmstream.sansio.jsondelta import JsonDocument
from flask_llmstream.testing import LiveServer, gunicorn_server
from flask_llmstream.testing.upstreams import ScriptedUpstream, done, hold, silence, tokens

pytest.importorskip("jsonschema")
pytestmark = pytest.mark.live

VALUE = {"name": "Ada \U0001f600", "born": 1815, "notes": ["first", "second \"quoted\""], "paid": True}
WRITTEN = json.dumps(VALUE, indent=1)


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    with gunicorn_server(
        APPS / "forms.py", request.param, threads=8, config_lines="accesslog = None"
    ) as server:
        yield server


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream
    assert not upstream.errors


def pieces(text: str, size: int = 3) -> List[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def ask_for(
    server: LiveServer, upstream: ScriptedUpstream, key: str, path: str = "form", **options: Any
) -> Any:
    return server.request(
        f"/{path}/{key}", method="POST", json={"base_url": upstream.url, "options": options}
    )


def applied(changes: List[Dict[str, Any]]) -> Any:
    document = JsonDocument()
    for change in changes:
        document.apply(JsonDelta(change["path"], change["op"], change["value"]))
    assert document.complete
    return document.value


def of_sse(body: bytes) -> Any:
    return applied([json.loads(event.data) for event in events_of(body) if event.event == "json"])


def of_ndjson(body: bytes) -> Any:
    lines = [json.loads(line) for line in body.decode().splitlines()]
    assert lines[-1]["type"] == "done"
    return applied([line for line in lines if line["type"] == "json"])


def of_ai_sdk(body: bytes) -> Any:
    parts = [json.loads(event.data) for event in events_of(body) if event.data != "[DONE]"]
    return applied([part["data"] for part in parts if part["type"] == "data-json-delta"])


def of_ag_ui(body: bytes) -> Any:
    jsonpatch = pytest.importorskip("jsonpatch")
    state: Any = None
    for event in map(json.loads, [event.data for event in events_of(body)]):
        if event["type"] == "STATE_SNAPSHOT":
            state = event["snapshot"]
        elif event["type"] == "STATE_DELTA":
            state = jsonpatch.apply_patch(state, event["delta"])
    return state


@pytest.mark.parametrize(
    "format, read", [("sse", of_sse), ("ndjson", of_ndjson), ("ai-sdk", of_ai_sdk), ("ag-ui", of_ag_ui)]
)
def test_client_puts_together_what_the_model_wrote(
    server: LiveServer, upstream: ScriptedUpstream, format: str, read: Callable[[bytes], Any]
) -> None:
    said = f"Here is your form:\n\n```json\n{WRITTEN}\n```\nAnything else?"
    upstream.script = [tokens(*pieces(said)), done()]
    key = new_key()
    reader = ask_for(server, upstream, key, structured=True, format=format)
    with leaving(reader):
        body = reader.read()
        assert reader.complete
    assert read(body) == json.loads(WRITTEN) == VALUE
    (end,) = ended(server, key)["ends"]
    assert (end["reason"], end["text"], end["value"]) == ("finish", said, VALUE)


def test_first_field_is_complete_before_the_model_is(server: LiveServer, upstream: ScriptedUpstream) -> None:
    rest = threading.Event()
    begun, _, left = WRITTEN.partition(",")
    upstream.script = [tokens("```json\n", *pieces(begun)), hold(rest), tokens(*pieces("," + left)), done()]
    key = new_key()
    reader = ask_for(server, upstream, key, "checked")
    with leaving(reader):
        body = b"".join(data for _, data in reader.read_until(b'{"path":"/name","op":"complete"'))
        assert b"born" not in body and not rest.is_set()
        rest.set()
        body += reader.read()
    assert of_sse(body) == VALUE
    (end,) = ended(server, key)["ends"]
    assert end["value"] == VALUE


def test_invalid_field_fails_at_once_and_ends_the_call(
    server: LiveServer, upstream: ScriptedUpstream
) -> None:
    upstream.script = [tokens('{"name": "Ada", "born": "unkn', 'own", "notes": "'), silence()]
    key = new_key()
    reader = ask_for(server, upstream, key, "checked")
    with leaving(reader):
        events = events_of(reader.read())
        assert reader.complete
    upstream.wait_closed()
    failed = json.loads(events[-1].data)
    assert (events[-1].event, failed["code"], failed["retryable"]) == ("failed", "output_invalid", True)
    assert "/born" in failed["message"] and "unknown" not in failed["message"]
    completed = [json.loads(event.data) for event in events if event.event == "json"]
    assert [change["path"] for change in completed if change["op"] == "complete"] == ["/name"]
    (end,) = ended(server, key)["ends"]
    assert (end["reason"], end["value"]) == ("error", None)
    assert end["text"].startswith('{"name": "Ada"')
    assert [error["path"] for error in end["errors"]] == ["/born"]
    assert "unknown" not in "".join(line for line in server.log().splitlines() if "output" in line)


def test_whole_answer_is_read_where_that_is_wanted(server: LiveServer, upstream: ScriptedUpstream) -> None:
    """What is wrong with all fields is told together, and the provider's own usage is known."""
    upstream.script = [
        tokens('{"name": 1, ', '"born": "x"}'),
        done(usage={"prompt_tokens": 1, "completion_tokens": 77, "total_tokens": 78}),
    ]
    key = new_key()
    reader = ask_for(server, upstream, key, "checked", validate="end")
    with leaving(reader):
        failed = json.loads(events_of(reader.read())[-1].data)
    assert failed["code"] == "output_invalid"
    assert "/born" in failed["message"] and "/name" in failed["message"]
    (end,) = ended(server, key)["ends"]
    assert end["output_tokens"] == 77


def test_client_that_leaves_ends_the_call(server: LiveServer, upstream: ScriptedUpstream) -> None:
    upstream.script = [tokens('{"name": "Ada'), silence()]
    key = new_key()
    reader = ask_for(server, upstream, key, structured={"cut": "error"})
    reader.read_until(b"Ada")
    reader.close()
    upstream.wait_closed()
    (end,) = ended(server, key)["ends"]
    assert (end["reason"], end["value"]) == ("disconnect", None)
