"""Nothing that is secret reaches a client or a log: keys, prompts, credentials, texts of exceptions."""

from __future__ import annotations

import logging
import re
from typing import Any, Iterator, List

import pytest
import requests
from flask import Flask, request, session

from flask_llmstream import LLMStream, relay, stream_response
from flask_llmstream.eventlog import open_log
from flask_llmstream.sansio.formats import format_names
from flask_llmstream.settings import Settings
from flask_llmstream.testing import ScriptedUpstream
from flask_llmstream.testing.scripts import chunk, cut, raw, status, tokens
from flask_llmstream.upstream import anthropic_messages, gemini_chat, ollama_chat, openai_chat
from flask_llmstream.upstream.call import Key

KEY = "sk-live-canary0123456789abcdef"
PROMPT = "what the patient told the doctor in confidence"
CREDENTIALS, COOKIE, SESSION = "Bearer canary-of-the-user", "canary-in-a-cookie", "canary-in-the-session"
SECRETS = (KEY, PROMPT, PROMPT[9:30], CREDENTIALS, CREDENTIALS[7:], COOKIE, SESSION)
#: What says more of the inside than a client needs.
INSIDE = ("Traceback", "ValueError", "UpstreamError", ".py", "127.0.0.1:", "chat/completions")
BUILT_IN = [name for name in format_names() if name != "words"]
SAID = f"cannot read '{PROMPT}' with key {KEY} of {CREDENTIALS}"

#: What goes wrong upstream -> whether that is before the first byte.
FAULTS = {
    "key": [status(401, json={"error": {"message": f"Incorrect API key provided: {KEY}"}})],
    "prompt": [status(400, json={"error": {"message": SAID, "code": "invalid"}})],
    "page": [status(500, body=f"<title>{SAID}</title><pre>Traceback: {SAID}</pre>".encode())],
    "silence": [cut()],
    "error": [tokens("ok"), chunk({"error": {"message": SAID}})],
    "garbage": [tokens("ok"), raw(f"data: {{{SAID}\n\n".encode())],
    "end": [tokens("ok"), cut()],
}


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream(lambda exchange: FAULTS[exchange.json["model"]]) as upstream:
        yield upstream


@pytest.fixture
def app(model: ScriptedUpstream) -> Any:
    app = Flask(__name__)
    app.secret_key = "of the tests alone"
    LLMStream(app, event_log="memory://masking")
    messages = [{"role": "user", "content": PROMPT}]

    @app.route("/chat/<format>/<fault>", methods=["POST"])
    def chat(format: str, fault: str) -> Any:
        session["secret"] = SESSION
        return stream_response(
            openai_chat(fault, messages, base_url=model.url, api_key=KEY), format=format,
            resumable="resumable" in request.args,
        )

    @app.route("/own/<format>/<int:pieces>", methods=["POST"])
    def own(format: str, pieces: int) -> Any:
        def source() -> Iterator[str]:
            yield from ["ok"] * pieces
            raise ValueError(SAID)

        return stream_response(source(), format=format)

    @app.route("/json", methods=["POST"])
    def structured() -> Any:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        return stream_response(['{"a": "', SAID.replace('"', ""), '"}'], schema=schema, format="ndjson")

    @app.route("/relay/<fault>", methods=["POST"])
    def relayed(fault: str) -> Any:
        return relay(lambda: requests.post(
            model.url + "/chat/completions", json={"model": fault, "messages": messages}, stream=True,
            headers={"Authorization": "Bearer " + KEY}, timeout=10,
        ))

    return app


def ask(app: Any, path: str) -> Any:
    client = app.test_client()
    cookie = {"Cookie": f"token={COOKIE}", "Authorization": CREDENTIALS}
    return client.post(path, headers=cookie, data=PROMPT)


def everything_in(answer: Any) -> str:
    said: str = answer.data.decode("utf-8", "replace") + str(answer.headers)
    # The signature of a session is chance, and now and then the end of the name of a file.
    return re.sub(r"(session=[\w-]+\.[\w-]+)\.[\w-]+", r"\1 signed", said)


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_no_format_tells_what_the_provider_said(
    app: Any, fault: str, debug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the first byte and after it; and the log of the library knows no more than where and why."""
    app.debug = debug
    with caplog.at_level(logging.DEBUG):
        for name in BUILT_IN:
            for query in ("",) if debug else ("", "?resumable=1"):
                answer = ask(app, f"/chat/{name}/{fault}{query}")
                said = everything_in(answer)
                assert answer.status_code == 200 if b"ok" in answer.data else answer.status_code >= 400
                for secret in SECRETS + INSIDE:
                    assert secret not in said, (name, secret, said)
        logged = caplog.text
    assert "failed after" in logged
    for secret in SECRETS:
        assert secret not in logged, (secret, logged)


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_no_format_tells_the_text_of_an_exception(app: Any, debug: bool) -> None:
    """The log does: it is the app's own, and the exception, too."""
    app.debug = debug
    for name in BUILT_IN:
        for pieces in (0, 2):
            answer = ask(app, f"/own/{name}/{pieces}")
            said = everything_in(answer)
            assert answer.status_code == (200 if pieces else 500)
            for secret in SECRETS + INSIDE:
                assert secret not in said, (name, secret, said)


def test_broken_schema_names_the_place_and_not_the_value(app: Any) -> None:
    answer = ask(app, "/json")
    last = answer.data.splitlines()[-1].decode()
    assert "output_invalid" in last and "/a" in last
    assert PROMPT not in last and KEY not in last


def test_relay_tells_nothing_of_the_key_and_of_the_inside(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Other refusals are the provider's own words, for the client that has sent the prompt."""
    with caplog.at_level(logging.DEBUG):
        said = {fault: everything_in(ask(app, f"/relay/{fault}")) for fault in ("key", "silence", "end")}
    for fault, each in said.items():
        for secret in SECRETS + INSIDE:
            assert secret not in each, (fault, secret)
    assert "upstream_auth" in said["key"] and "upstream_interrupted" in said["end"]
    assert KEY not in caplog.text and PROMPT not in caplog.text


def test_nothing_shows_a_key_when_it_is_printed() -> None:
    """Trackers of errors write down the variables of each frame."""
    messages = [{"role": "user", "content": PROMPT}]
    shown: List[str] = [repr(Key.found(KEY)), str(Key.found(KEY)), f"{Key.found(KEY)}"]
    calls = [make("m", messages, api_key=KEY) for make in (openai_chat, gemini_chat, ollama_chat)]
    for call in [*calls, anthropic_messages("m", messages, max_tokens=5, api_key=KEY)]:
        shown += map(repr, [call, *vars(call).values()])
        call.close()
    log = open_log("memory://canary")
    shown += [repr(log), repr(Settings(event_log=f"redis://user:{KEY}@127.0.0.1/0"))]
    for each in shown:
        assert KEY not in each, each
    assert repr(Key.found(KEY)) == "<Key for Authorization>" and "none" in repr(Key(None))


def test_settings_command_prints_no_password() -> None:
    app = Flask(__name__)
    LLMStream(app, event_log=f"redis://user:{KEY}@127.0.0.1:6379/0?password={KEY}")
    printed = app.test_cli_runner().invoke(args=["llmstream", "settings"]).output
    assert "LLMSTREAM_EVENT_LOG = 'redis://127.0.0.1:6379/0'" in printed
    assert KEY not in printed
