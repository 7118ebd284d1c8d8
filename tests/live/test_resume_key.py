"""A page that was loaded anew finds what runs by the key that the app gave it."""

from __future__ import annotations

import json
import threading
import uuid
from typing import Any, Dict, Iterator, List

import pytest
import requests
from asking import APPS, events_of, text_of

from flask_llmstream.testing import LiveServer, ScriptedUpstream, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import done, hold, tokens

pytestmark = pytest.mark.live

WORDS = [f"{number} " for number in range(12)]
TEXT = "".join(WORDS)
ME, YOU = {"Authorization": "Bearer me"}, {"Authorization": "Bearer you"}


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream) -> Iterator[LiveServer]:
    log = tmp_path_factory.mktemp("keys") / "log.db"
    env = {"LOG": f"sqlite:///{log}", "UPSTREAM": upstream.url}
    with gunicorn_server(APPS / "chats.py", workers=2, env=env) as server:
        yield server
        assert "Traceback" not in server.log(), server.log()[-5000:]


@pytest.fixture(autouse=True)
def flag(upstream: ScriptedUpstream) -> Iterator[threading.Event]:
    """What is asked runs until this is set: whoever comes back while it runs cannot be late."""
    flag = threading.Event()
    upstream.script = [tokens(*WORDS[:5]), hold(flag), tokens(*WORDS[5:], interval=0.03), done()]
    yield flag
    flag.set()


def begin(server: LiveServer, key: str, headers: Dict[str, str]) -> Any:
    """Ask, and leave when the first words are there; return the answer."""
    with requests.post(f"{server.url}/api/chat", json={"id": key}, headers=headers, stream=True) as answer:
        read = b""
        for piece in answer.iter_content(None):
            read += piece
            if b"text-delta" in read:
                break
    return answer


def come_back(
    server: LiveServer, key: str, headers: Dict[str, str], path: str = "/api/chat/{}/stream"
) -> Any:
    return requests.get(server.url + path.format(key), headers=headers, timeout=20)


def rest_of(
    server: LiveServer, flag: threading.Event, key: str, headers: Dict[str, str]
) -> str:
    """Come back to what runs, have it go on, and return the whole text."""
    address = f"{server.url}/api/chat/{key}/stream"
    with requests.get(address, headers=headers, stream=True, timeout=20) as found:
        flag.set()
        return text_in(parts_of(found))


def parts_of(answer: Any) -> List[Dict[str, Any]]:
    """Return the parts of a message, and see that it has its frame."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    *parts, last = [event.data for event in events_of(answer.content)]
    assert last == "[DONE]"
    return [json.loads(part) for part in parts]


def text_in(parts: List[Dict[str, Any]]) -> str:
    return "".join(part["delta"] for part in parts if part["type"] == "text-delta")


def test_any_worker_replays_what_runs_and_goes_on(
    server: LiveServer, upstream: ScriptedUpstream, flag: threading.Event
) -> None:
    asked = upstream.requests
    begun = begin(server, "chat", ME)
    readers: List[Any] = []

    def ask_again() -> bool:
        address = f"{server.url}/api/chat/chat/stream"
        readers.append(requests.get(address, headers=ME, stream=True, timeout=20))
        return len({reader.headers["Worker"] for reader in readers}) == 2

    wait_until(ask_again, 30, "both workers to answer")
    flag.set()
    for reader in readers:
        assert reader.headers["Content-Location"] == begun.headers["Content-Location"]
        parts = parts_of(reader)
        assert parts[0]["type"] == "start" and text_in(parts) == TEXT and parts[-1]["finishReason"] == "stop"
    assert upstream.requests == asked + 1


def test_nothing_is_said_of_what_does_not_run(server: LiveServer, flag: threading.Event) -> None:
    begin(server, "chat", ME)
    others = [come_back(server, "chat", YOU), come_back(server, "chat", {}), come_back(server, "never", ME)]
    assert rest_of(server, flag, "chat", ME) == TEXT, "it ran meanwhile"
    ended = come_back(server, "chat", ME)
    for answer in [*others, ended]:
        assert (answer.status_code, answer.content) == (204, b"")
        assert "Content-Location" not in answer.headers


def test_last_stream_of_a_key_counts(server: LiveServer) -> None:
    first, second = begin(server, "twice", ME), begin(server, "twice", ME)
    address = f"{server.url}/api/chat/twice/stream"
    with requests.get(address, headers=ME, stream=True, timeout=20) as found:
        pass
    assert first.headers["Content-Location"] != second.headers["Content-Location"]
    assert found.headers["Content-Location"] == second.headers["Content-Location"]
    requests.delete(server.url + found.headers["Content-Location"], headers=ME)


def test_key_of_nobody_in_particular_is_a_secret(
    server: LiveServer, upstream: ScriptedUpstream, flag: threading.Event
) -> None:
    asked = upstream.requests
    refused = requests.post(f"{server.url}/api/chat", json={"id": "42"}, timeout=20)
    assert refused.status_code == 400 and upstream.requests == asked
    assert refused.json()["error"]["code"] == "invalid_resume_key"
    assert come_back(server, "42", {}).status_code == 204
    key = uuid.uuid4().hex
    begin(server, key, {})
    assert rest_of(server, flag, key, {}) == TEXT


def test_user_of_the_session_is_the_owner(server: LiveServer) -> None:
    me, you = requests.Session(), requests.Session()
    for session, name in ((me, "me"), (you, "you")):
        session.get(f"{server.url}/login/{name}").close()
    with me.post(f"{server.url}/api/chat", json={"id": "7"}, stream=True):
        path = f"{server.url}/api/chat/7/stream"
        assert you.get(path).status_code == 204
        with me.get(path, stream=True) as found:
            assert found.status_code == 200
            me.delete(server.url + found.headers["Content-Location"]).close()
    me.close()
    you.close()


def test_event_source_that_comes_back_gets_the_rest(server: LiveServer, flag: threading.Event) -> None:
    begin(server, "events", ME)
    with requests.get(f"{server.url}/events/events", headers=ME, stream=True) as answer:
        read = b""
        for piece in answer.iter_content(None):
            read += piece
            if text_of(read):
                break
    last = [event.id for event in events_of(read) if event.id][-1]
    flag.set()
    rest = come_back(server, "events", dict(ME, **{"Last-Event-ID": last}), "/events/{}")
    assert text_of(read) + text_of(rest.content) == TEXT
    assert come_back(server, "events", ME, "/events/{}").status_code == 204, "it has ended"
    again = come_back(server, "events", dict(ME, **{"Last-Event-ID": last}), "/events/{}")
    assert again.content == rest.content, "but what was begun can be read to its end"
