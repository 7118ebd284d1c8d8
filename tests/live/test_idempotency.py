"""A POST that is repeated with its ``Idempotency-Key`` joins the generation that it has bought."""

from __future__ import annotations

import json
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple
from urllib.parse import quote

import pytest
import requests
from asking import APPS, events_of, text_of

from flask_llmstream.testing import LiveServer, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import ScriptedUpstream, done, status, tokens

pytestmark = pytest.mark.live

#: Seconds for which streams are kept after their end.
KEEP = 3.0
WORDS = [f"{number} " for number in range(10)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    log = tmp_path_factory.mktemp("idempotency") / "log.db"
    env = {"LOG": f"sqlite:///{log}", "SETTINGS": json.dumps({"keep": KEEP})}
    with gunicorn_server(APPS / "handover.py", workers=2, env=env) as server:
        yield server


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream([tokens(*WORDS, interval=0.1), done()]) as upstream:
        yield upstream


def post(
    server: LiveServer, upstream: ScriptedUpstream, key: str, owner: str = "Bearer me"
) -> Any:
    fields: Dict[str, str] = {"Idempotency-Key": key}
    if owner:
        fields["Authorization"] = owner
    address = f"{server.url}/chat?url={quote(upstream.url)}"
    return requests.post(address, headers=fields, stream=True, timeout=20)


def text(*args: Any, **kwargs: Any) -> str:
    response = post(*args, **kwargs)
    assert response.status_code == 200, response.text
    body = response.content
    assert events_of(body)[-1].event == "done", body
    return text_of(body)


def test_retry_joins_what_runs_and_what_has_ended(
    server: LiveServer, upstream: ScriptedUpstream
) -> None:
    whole = "".join(WORDS)
    with post(server, upstream, "retry") as first:
        next(first.iter_content(None))
        with post(server, upstream, "retry") as second:
            assert second.headers["Content-Location"] == first.headers["Content-Location"]
            assert events_of(second.content)[0].event == "stream"
    assert text(server, upstream, "retry") == whole
    assert text(server, upstream, "retry") == whole, "it has ended"
    assert upstream.requests == 1


def test_ten_at_once_are_one(server: LiveServer, upstream: ScriptedUpstream) -> None:
    texts: List[str] = []
    ask = lambda: texts.append(text(server, upstream, "at-once"))  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert texts == ["".join(WORDS)] * 10
    assert upstream.requests == 1


def test_key_of_somebody_else_is_another(server: LiveServer, upstream: ScriptedUpstream) -> None:
    locations: Set[str] = set()
    secret = "0af31a5e-5d2f-4d0c-9d3e"
    for owner in ("Bearer you", "Bearer them", ""):
        with post(server, upstream, secret, owner) as response:
            locations.add(response.headers["Content-Location"])
    assert len(locations) == 3
    upstream.wait_for(lambda u: u.requests == 3)


def test_what_is_kept_no_longer_is_begun_anew(
    server: LiveServer, upstream: ScriptedUpstream
) -> None:
    text(server, upstream, "gone")
    assert upstream.requests == 1
    time.sleep(KEEP)  # it is time itself that is tested
    # The time counts from when the log knows of the end, and that may take a moment.
    wait_until(lambda: text(server, upstream, "gone") and upstream.requests == 2, 10.0, "a new answer")


def test_what_has_failed_may_be_tried_again(server: LiveServer) -> None:
    with ScriptedUpstream([status(503)]) as upstream:
        assert post(server, upstream, "failed").status_code == 502
        asked = upstream.requests
        upstream.script = [tokens("a"), done()]

        def is_begun_anew() -> bool:
            # For some milliseconds the log does not know yet that it has failed: then it is joined.
            return events_of(post(server, upstream, "failed").content)[-1].event == "done"

        wait_until(is_begun_anew, 5.0)
        assert text(server, upstream, "failed") == "a"
        assert upstream.requests == asked + 1


def echoed(server: LiveServer, how: str, key: str, body: Dict[str, Any], query: str = "") -> Tuple[int, str]:
    """Send *body* to a view that says it; return the status, and what it said."""
    headers = {"Idempotency-Key": key, "Authorization": "Bearer me"}
    address = f"{server.url}/echo/{how}{query}"
    response = requests.post(address, headers=headers, timeout=20, **body)
    if response.status_code != 200:
        return response.status_code, response.json()["error"]["code"]
    assert events_of(response.content)[-1].event == "done"
    return 200, text_of(response.content)


BODIES: Dict[str, Callable[[str], Dict[str, Any]]] = {
    "json": lambda text: {"json": {"text": text}},
    "form": lambda text: {"data": {"text": text}},
    "data": lambda text: {"data": text.encode()},
    "stream": lambda text: {"data": text.encode()},
    # The boundary is another each time; what differs is in the file.
    "eager": lambda text: {"data": {"text": ""}, "files": {"a": ("a.txt", text.encode())}},
}


@pytest.mark.parametrize("how", list(BODIES))
def test_key_with_another_body_is_refused(server: LiveServer, how: str) -> None:
    """And the view finds its body as it was sent, however late and by whatever way it reads it."""
    body = BODIES[how]
    for _ in range(2):
        assert echoed(server, how, f"body-{how}", body("one é")) == (200, "one é")
    assert echoed(server, how, f"body-{how}", body("two é")) == (422, "idempotency_key_reused")
    assert echoed(server, how, f"body-{how}", body("one é"), "?a=b") == (422, "idempotency_key_reused")
    assert echoed(server, how, f"other-{how}", body("two é")) == (200, "two é")


def test_key_with_an_upload_that_is_read_late(server: LiveServer) -> None:
    def upload(text: str) -> Dict[str, Any]:
        return {"data": {"text": "and "}, "files": {"a": ("a.txt", text.encode())}}

    assert echoed(server, "form", "upload", upload("one")) == (200, "and one")
    assert echoed(server, "form", "upload", upload("one")) == (200, "and one")
    assert echoed(server, "form", "upload", upload("two"))[0] == 422


def test_large_body_is_compared_by_its_length(server: LiveServer) -> None:
    large = b"x" * (1 << 21)
    for _ in range(2):
        assert echoed(server, "length", "large", {"data": large}) == (200, str(len(large)))
    assert echoed(server, "length", "large", {"data": large + b"x"})[0] == 422


@pytest.mark.parametrize(
    "key, owner",
    [
        pytest.param("", "Bearer me", id="empty"),
        pytest.param("x" * 256, "Bearer me", id="long"),
        pytest.param("a\tb", "Bearer me", id="control"),
        pytest.param("a b", "Bearer me", id="space"),
        pytest.param("\xe9t\xe9", "Bearer me", id="latin"),
        pytest.param("short", "", id="guessable"),
    ],
)
def test_bad_keys_are_refused(
    key: str, owner: str, server: LiveServer, upstream: ScriptedUpstream
) -> None:
    response = post(server, upstream, key, owner)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_idempotency_key"
    assert "Idempotency-Key" in response.json()["error"]["message"]
    assert upstream.requests == 0
