"""A real model, streamed by a synchronous view on a real gunicorn to real clients."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from asking import UNTRACED

from flask_llmstream.client import StreamClient
from flask_llmstream.testing import LiveServer, gunicorn_server, wait_until

pytestmark = [pytest.mark.live, pytest.mark.model]

APP = Path(__file__).parent / "apps" / "model_app.py"

#: The same call gives the same text: no chance in it, and nothing left over from the call before.
FIXED = {"temperature": 0, "seed": 1, "cache_prompt": False}


def call(question: str, **parameters: Any) -> Dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], **FIXED, **parameters}


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: Any, local_model: Any) -> Iterator[LiveServer]:
    environment = {"LLMSTREAM_UPSTREAM_URL": local_model.url}
    threads = 8 if request.param == "gthread" else None
    with gunicorn_server(APP, worker=request.param, threads=threads, env=environment) as server:
        yield server


@pytest.fixture(autouse=True)
def idle_model(local_model: Any) -> None:
    wait_until(lambda: local_model.busy_slots() == 0, 60, "the model to be idle")


def events(body: bytes) -> List[Tuple[str, Any]]:
    """Parse our native format the simple way: as little as possible in common with the library."""
    found: List[Tuple[str, Any]] = []
    for block in body.decode("utf-8").split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        if fields:
            found.append((fields.get("event", "text"), json.loads(fields["data"])))
    return found


def text_of(body: bytes) -> str:
    return "".join(data["text"] for name, data in events(body) if name == "text")


def last_end(server: LiveServer, number: int) -> Dict[str, Any]:
    """Wait until *number* streams have ended and return how the last one did."""
    def ended() -> Any:
        with server.request("/ended") as answer:
            return answer.json()

    wait_until(lambda: len(ended()) >= number, 10, "on_end")
    found: Dict[str, Any] = ended()[-1]
    return found


def count_ended(server: LiveServer) -> int:
    with server.request("/ended") as answer:
        return len(answer.json())


def test_first_token_arrives_before_the_last_is_generated(server: LiveServer, local_model: Any) -> None:
    question = call("Tell me a story.", max_tokens=120, ignore_eos=True)
    with server.request("/chat", json=question, timeout=60) as answer:
        first = answer.read_until(b'data: {"text":')
        # The client holds text, and the model is still at work: asked itself, not the clock.
        (slot,) = [slot for slot in local_model.get("/slots") if slot["is_processing"]]
        generated = slot["next_token"][0]["n_decoded"]
        rest = list(answer)
    assert generated < 120
    body = b"".join(data for _, data in first + rest)
    assert events(body)[-1] == ("done", {"reason": "length", "usage": usage_of(body)})
    assert usage_of(body)["output_tokens"] == 120
    # One by one, not in a heap at the end.
    arrivals = {when for when, _ in first + rest}
    assert len(arrivals) > 30


def usage_of(body: bytes) -> Any:
    return [data for name, data in events(body) if name == "usage"][-1]


@pytest.mark.parametrize(
    "question",
    [
        pytest.param(call("Write three sentences about rain.", max_tokens=80), id="prose"),
        pytest.param(
            call("Go", max_tokens=60, grammar='root ::= ("é" | "日本" | "🙂" | "\\n\\n" | "a\\"b" | " ")+'),
            id="characters of every length",
        ),
    ],
)
def test_text_equals_what_the_model_says(server: LiveServer, local_model: Any, question: Any) -> None:
    direct = local_model.get("/v1/chat/completions", question)
    said = direct["choices"][0]["message"]["content"]
    before = count_ended(server)
    with server.request("/chat", json=question, timeout=60) as answer:
        body = answer.read()
    assert answer.complete
    assert said and text_of(body) == said
    usage = direct["usage"]
    end = last_end(server, before + 1)
    assert end == {
        "reason": "finish",
        "text": said,
        "usage": {"input": usage["prompt_tokens"], "output": usage["completion_tokens"]},
    }


def test_killed_client_frees_the_slot(server: LiveServer, local_model: Any) -> None:
    """The model would write for a minute; whoever reads is killed after the first tokens."""
    question = json.dumps(call("Tell me a story.", max_tokens=1500, ignore_eos=True))
    seconds: List[float] = []
    for _ in range(5):
        before = count_ended(server)
        curl = subprocess.Popen(
            ["curl", "-sN", server.url + "/chat", "-H", "Content-Type: application/json", "-d", question],
            stdout=subprocess.PIPE,
        )
        assert curl.stdout is not None
        while b'"text"' not in curl.stdout.readline():
            pass
        assert local_model.busy_slots() == 1
        killed = time.monotonic()
        curl.kill()
        wait_until(lambda: local_model.busy_slots() == 0, 20, "the slot to be free")
        seconds.append(time.monotonic() - killed)
        curl.wait()
        curl.stdout.close()
        assert last_end(server, before + 1)["reason"] == "disconnect"
    print(f"slot free after {', '.join(f'{each:.3f}' for each in seconds)} s")
    # Every one where the machine is idle; somebody else's load may spoil one or two.
    assert statistics.median(seconds) <= 0.5, seconds


def test_script_that_breaks_off_frees_the_slot(server: LiveServer, local_model: Any) -> None:
    question = call("Tell me a story.", max_tokens=1500, ignore_eos=True)
    with StreamClient(server.url + "/chat", json=question) as answer:
        for _, text in zip(range(3), answer.text()):
            assert text
        assert local_model.busy_slots() == 1
    wait_until(lambda: local_model.busy_slots() == 0, 5, "the slot to be free")


def test_tail_prints_tokens_and_ctrl_c_frees_the_slot(server: LiveServer, local_model: Any) -> None:
    question = json.dumps(call("Tell me a story.", max_tokens=1500, ignore_eos=True))
    tail = subprocess.Popen(
        [sys.executable, "-m", "flask_llmstream.cli", "tail", server.url + "/chat", "--json", question],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A tracer may swallow what a signal raises.
        env={name: value for name, value in os.environ.items() if name not in UNTRACED},
    )
    assert tail.stdout is not None
    assert os.read(tail.stdout.fileno(), 100)
    assert local_model.busy_slots() == 1
    tail.send_signal(signal.SIGINT)
    _, errors = tail.communicate(timeout=20)
    assert (tail.returncode, errors) == (130, b"interrupted; the connection is closed\n")
    wait_until(lambda: local_model.busy_slots() == 0, 5, "the slot to be free")


def test_other_streams_go_on_when_one_reader_leaves(server: LiveServer, local_model: Any) -> None:
    question = call("Count from one to twenty in words.", max_tokens=40, ignore_eos=True)
    with server.request("/chat", json=question, timeout=60) as staying:
        with server.request("/chat", json=dict(question, max_tokens=1500), timeout=60) as leaving:
            leaving.read_until(b'"text"')
        body = staying.read()
    assert events(body)[-1][1]["usage"]["output_tokens"] == 40
    wait_until(lambda: local_model.busy_slots() == 0, 5, "the slot of the reader who left")


def test_refused_call_is_a_real_status(server: LiveServer) -> None:
    """A prompt that is longer than the model's context is refused before the first token."""
    with server.request("/chat", json=call("word " * 4000), timeout=60) as answer:
        assert answer.status == 502
        assert answer.json()["error"]["code"] == "upstream_rejected"
