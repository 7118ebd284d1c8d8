"""What may happen to a resumable stream before its first word, and sources whose words are bytes."""

from __future__ import annotations

import gc
import json
from typing import Any, Iterator, List

import pytest
from flask import Flask, abort, request
from werkzeug.exceptions import ServiceUnavailable

from flask_llmstream import LLMStream, multiplex, stream_response
from flask_llmstream.journal import current_journals
from flask_llmstream.sansio.sse import SSEDecoder
from flask_llmstream.testing import wait_until

LOG = "memory://beginnings"
SPLIT = "aé😀".encode()


class Refusing:
    """An iterable that cannot be iterated."""

    def __iter__(self) -> Iterator[str]:
        raise LookupError("no such model")


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "of the tests alone"
    LLMStream(app, event_log=LOG, owner=lambda: "me")

    @app.route("/refusing", methods=["POST"])
    def refusing() -> Any:
        return stream_response(Refusing(), resumable=True)

    @app.route("/header", methods=["POST"])
    def header() -> Any:
        return stream_response(["a"], resumable=True, headers={"Connection": "close"})

    @app.route("/thrown-away", methods=["POST"])
    def thrown_away() -> Any:
        response = stream_response((each for each in "ab"), resumable=True)
        if request.args.get("fail"):
            raise LookupError(str(response.status))
        return "another answer"

    asked: List[str] = []

    @app.route("/aborting/<int:status>", methods=["POST"])
    def aborting(status: int) -> Any:
        def source() -> Iterator[str]:
            asked.append(request.path)
            if asked.count(request.path) == 1:
                abort(status, "Not now.")
            yield "a"

        return stream_response(source(), resumable=True)

    @app.route("/closed", methods=["POST"])
    def closed() -> Any:
        response = stream_response(["a"], resumable=True)
        if "X-Fail" in request.headers:
            response.close()
            return "another answer"
        return response

    @app.route("/bytes")
    def in_bytes() -> Any:
        return stream_response([SPLIT[:2], SPLIT[2:5], SPLIT[5:], b"\xc3"], resumable=True)

    @app.route("/channels")
    def channels() -> Any:
        def failing() -> Iterator[bytes]:
            yield b"c\xf0\x9f"
            raise ServiceUnavailable("The model rests.")

        sources = {"a": [SPLIT[:2], SPLIT[2:], b"\xc3"], "b": ["b\ud83d"], "c": failing()}
        return stream_response(multiplex(sources), resumable=True)

    return app


def events(response: Any) -> List[Any]:
    return SSEDecoder().feed(response.data if hasattr(response, "data") else response)


def read(app: Flask, path: str, **options: Any) -> bytes:
    response = app.test_client().get(path, buffered=True, **options)
    assert response.status_code == 200
    return b"".join(response.response)


@pytest.mark.parametrize("path, error", [("/refusing", LookupError), ("/header", ValueError)])
def test_stream_that_cannot_begin_is_sealed(app: Flask, path: str, error: Any) -> None:
    """A second request with its key gets to know so, and waits for nothing."""
    app.testing = True
    key = {"Idempotency-Key": path}
    with pytest.raises(error):
        app.test_client().post(path, headers=key)
    assert not current_journals()[LOG]._writers
    answer = app.test_client().post(path, headers=key, buffered=True)
    (said,) = [event for event in events(b"".join(answer.response)) if event.event == "failed"]
    assert json.loads(said.data)["code"] == "internal_error"


@pytest.mark.parametrize("status, code", [(503, None), (400, "bad_request")])
def test_refusal_before_the_first_word_is_noted_as_it_was_told(app: Flask, status: int, code: Any) -> None:
    """What may be tried again is begun anew by the same key, and nothing else."""
    path = f"/aborting/{status}"
    key = {"Idempotency-Key": path}
    first = app.test_client().post(path, headers=key, buffered=True)
    assert first.status_code == status
    told = json.loads(b"".join(first.response))["error"]
    assert told["retryable"] == (code is None)
    second = app.test_client().post(path, headers=key, buffered=True)
    said = {event.event: json.loads(event.data) for event in events(b"".join(second.response))}
    if code is None:
        assert said[None] == {"text": "a"} and "failed" not in said
    else:
        assert said["failed"] == told and told["code"] == code and None not in said


@pytest.mark.parametrize("query", ["", "?fail=1"])
def test_stream_whose_response_is_thrown_away_is_sealed(app: Flask, query: str) -> None:
    app.logger.disabled = True  # pytest keeps what is logged, and with it the view's variables
    path = "/thrown-away" + query
    answer = app.test_client().post(path, headers={"Idempotency-Key": path})
    assert answer.status_code == (500 if query else 200)
    answer.close()
    journal = current_journals()[LOG]

    def is_sealed() -> bool:
        gc.collect()
        return not journal._writers

    wait_until(is_sealed, 10.0, "the stream to be sealed")


def test_stream_that_was_never_sent_is_no_answer_for_who_asks_again(app: Flask) -> None:
    key = {"Idempotency-Key": "closed"}
    assert app.test_client().post("/closed", headers=dict(key, **{"X-Fail": "1"})).data == b"another answer"
    answer = app.test_client().post("/closed", headers=key, buffered=True)
    said = [json.loads(event.data) for event in events(b"".join(answer.response)) if event.event is None]
    assert said == [{"text": "a"}]


def test_bytes_are_text_for_who_comes_back_too(app: Flask) -> None:
    """Also where they are cut inside a character, and where the last one is never completed."""
    data = read(app, "/bytes")
    texts = [json.loads(event.data)["text"] for event in events(data) if event.event is None]
    assert "".join(texts) == "aé😀\ufffd"
    place = json.loads(events(data)[0].data)["url"]
    assert read(app, place).partition(b"\n\n")[2] == data.partition(b"\n\n")[2]
    second = [event.id for event in events(data) if event.id][2]
    rest = read(app, place, headers={"Last-Event-ID": second})
    assert data.endswith(rest.partition(b"\n")[2])
    assert len(rest) > 100


def test_bytes_of_a_channel_are_text_for_who_comes_back_too(app: Flask) -> None:
    """Also what is left of a character at the end of a channel, whichever end that is."""
    data = read(app, "/channels")
    texts = dict.fromkeys("abc", "")
    for event in events(data):
        if event.event is None:
            said = json.loads(event.data)
            texts[said["channel"]] += said["text"]
    assert texts["a"] == SPLIT.decode() + "\ufffd" and texts["c"] == "c\ufffd"
    assert texts["b"] in ("b\ud83d", "b\ufffd")
    place = json.loads(events(data)[0].data)["url"]
    assert read(app, place).partition(b"\n\n")[2] == data.partition(b"\n\n")[2]
