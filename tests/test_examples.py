"""Each example runs, and answers the curl line of its own docstring as it says."""

from __future__ import annotations

import ast
import contextlib
import difflib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest
import requests

from flask_llmstream.testing import ScriptedUpstream, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import chunk, cut, done, raw, silence, status, tokens, wait

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parent.parent
CHAT = ROOT / "examples" / "chat" / "app.py"
PAGE = ROOT / "examples" / "chat" / "templates" / "index.html"
FORM = ROOT / "examples" / "form_copilot" / "app.py"
DASHBOARD = ROOT / "examples" / "dashboard" / "app.py"
BEFORE = ROOT / "examples" / "retrofit" / "before.py"
AFTER = ROOT / "examples" / "retrofit" / "after.py"
GATEWAY = ROOT / "examples" / "gateway" / "app.py"
CONFIG = ROOT / "gunicorn.conf.py"


def curl_line(example: Path) -> str:
    """Return the curl command of an example's docstring."""
    text = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8")), clean=False) or ""
    (line,) = re.findall(r"^ +(curl (?:.*\\\n)*.*)$", text, re.M)
    return str(line)


def run(command: str, port: int) -> "subprocess.Popen[bytes]":
    """Run a curl line of a docstring against the server of this test, in a shell as a reader would."""
    assert "http://127.0.0.1:8000/" in command
    command = command.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("curl ", "exec curl -sS ", 1)
    return subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def printed(command: str, port: int) -> bytes:
    output, _ = run(command, port).communicate(timeout=60)
    return output


def environment(upstream: ScriptedUpstream) -> Any:
    return {
        "LLMSTREAM_UPSTREAM_URL": upstream.url,
        "LLMSTREAM_UPSTREAM_KEY": "not-a-key",
        "LLMSTREAM_MODEL": "tiny",
        "OPENAI_API_KEY": "of-somebody-else",
    }


def test_chat_answers_its_curl_line() -> None:
    with ScriptedUpstream([tokens("Hel", "lo ", "wörld"), done()]) as upstream:
        with gunicorn_server(CHAT, config=CONFIG, env=environment(upstream)) as server:
            output = printed(curl_line(CHAT), server.port).decode()
    assert output.startswith('data: {"text":"Hel"}\n\n')
    assert 'data: {"text":"wörld"}\n\n' in output
    assert re.search(r"\n\nevent: done\ndata: \{.*\}\n\n$", output), output
    (exchange,) = upstream.exchanges
    assert exchange.headers["authorization"] == "Bearer not-a-key"
    assert exchange.json["model"] == "tiny"
    assert [message["role"] for message in exchange.json["messages"]] == ["system", "user"]
    assert exchange.json["messages"][-1]["content"] == "Hello"


def test_chat_closes_the_upstream_when_curl_is_killed() -> None:
    with ScriptedUpstream([tokens("Hel"), silence()]) as upstream:
        with gunicorn_server(CHAT, config=CONFIG, env=environment(upstream)) as server:
            curl = run(curl_line(CHAT), server.port)
            assert curl.stdout is not None
            assert curl.stdout.readline() == b'data: {"text":"Hel"}\n'
            curl.kill()
            curl.wait()
            curl.stdout.close()
            upstream.wait_closed()


def test_chat_refusal_of_the_provider_is_a_status_without_its_words() -> None:
    with ScriptedUpstream([status(401)]) as upstream:
        with gunicorn_server(CHAT, config=CONFIG, env=environment(upstream)) as server:
            with server.request("/chat", json={"messages": []}) as answer:
                assert answer.status == 502
                body = answer.read()
    assert b"scripted" not in body and b"not-a-key" not in body


def test_chat_serves_its_page() -> None:
    with gunicorn_server(CHAT, config=CONFIG) as server:
        with server.request("/") as answer:
            assert answer.status == 200
            assert answer.read().decode() == PAGE.read_text(encoding="utf-8").rstrip("\n")


def test_chat_is_short() -> None:
    assert len(CHAT.read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.parametrize("example", [CHAT, FORM, DASHBOARD], ids=lambda path: path.parent.name)
def test_page_never_makes_html_of_text(example: Path) -> None:
    page = (example.parent / "templates" / "index.html").read_text(encoding="utf-8")
    for risk in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "setHTML"):
        assert risk not in page
    assert "://" not in page, "the page works offline"


def test_form_copilot_answers_its_curl_line_with_changes() -> None:
    ticket = {
        "customer": "Jo", "product": "Export", "severity": "High", "subject": "S", "summary": "A",
        "reply": "B",
    }
    with ScriptedUpstream([tokens(*json.dumps(ticket).split(" ")), done()]) as upstream:
        with gunicorn_server(FORM, config=CONFIG, env=environment(upstream)) as server:
            output = printed(curl_line(FORM), server.port).decode()
            with server.request("/") as answer:
                page = answer.read().decode()
            upstream.script = [tokens('{"customer": "Jo", "product": "Sofas"'), silence()]
            refused = printed(curl_line(FORM), server.port).decode()
            upstream.wait_closed()
    assert 'event: json\ndata: {"path":"/customer","op":"add","value":"Jo"}\n' in output
    for name in ticket:
        assert f'{{"path":"/{name}","op":"complete","value":null}}' in output
        assert f'<label for="{name}">' in page and f'id="{name}" name="{name}"' in page
    assert "\n\nevent: done\n" in output
    assert '"code":"output_invalid"' in refused and '{"path":"/product","op":"complete"' not in refused
    assert upstream.exchanges[0].headers["authorization"] == "Bearer not-a-key"
    assert upstream.exchanges[0].json["messages"][1]["content"].startswith("The export has been empty")


def test_dashboard_answers_its_curl_line_with_four_channels() -> None:
    with ScriptedUpstream([tokens("One", " two"), done()]) as upstream:
        with gunicorn_server(DASHBOARD, config=CONFIG, env=environment(upstream)) as server:
            output = printed(curl_line(DASHBOARD), server.port).decode()
            with server.request("/") as answer:
                page = answer.read().decode()
    for name in ("summary", "for", "against", "next"):
        assert f'data: {{"channel":"{name}","text":"One"}}\n' in output
        assert re.search(f'event: done\ndata: {{"channel":"{name}",', output)
        assert f'<llm-stream id="{name}"' in page
    assert len(upstream.exchanges) == 4
    asked = {each.json["messages"][1]["content"] for each in upstream.exchanges}
    assert asked == {"Should we open on Sundays?"}


@pytest.mark.parametrize("example", [FORM, DASHBOARD], ids=lambda path: path.parent.name)
def test_form_and_dashboard_are_short(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 65
    assert len((example.parent / "templates" / "index.html").read_text(encoding="utf-8").splitlines()) <= 150


def test_before_is_silent_and_then_says_it_all() -> None:
    def whole(exchange: Any) -> Any:
        assert "stream" not in exchange.json
        return [wait(0), status(200, json={"choices": [{"message": {"content": "Scattering."}}]})]

    with ScriptedUpstream(whole) as upstream:
        with gunicorn_server(BEFORE, worker="sync", env=environment(upstream)) as server:
            output = printed(curl_line(BEFORE), server.port)
    assert json.loads(output.decode()) == {"answer": "Scattering."}


def test_after_streams_and_closes_the_upstream() -> None:
    with ScriptedUpstream([tokens("Scat", "tering."), silence()]) as upstream:
        with gunicorn_server(AFTER, env=environment(upstream)) as server:
            curl = run(curl_line(AFTER), server.port)
            assert curl.stdout is not None
            lines = [curl.stdout.readline() for _ in range(4)]
            assert lines == [b'data: {"text":"Scat"}\n', b"\n", b'data: {"text":"tering."}\n', b"\n"]
            curl.kill()
            curl.wait()
            curl.stdout.close()
            wait_until(lambda: upstream.open_connections == 0, 5, "the upstream to be closed")


def test_after_ends_with_done() -> None:
    with ScriptedUpstream([tokens("Scat", "tering."), done()]) as upstream:
        with gunicorn_server(AFTER, env=environment(upstream)) as server:
            output = printed(curl_line(AFTER), server.port)
    assert b"event: done\n" in output


def test_retrofit_changes_few_lines() -> None:
    def code(example: Path) -> List[str]:
        text = example.read_text(encoding="utf-8")
        return [line for line in text.split('"""', 2)[2].splitlines() if line]

    changes = list(difflib.ndiff(code(BEFORE), code(AFTER)))
    added = [line for line in changes if line.startswith("+ ")]
    removed = [line for line in changes if line.startswith("- ")]
    assert len(added) <= 8, added
    assert len(removed) <= 4, removed


def gateway(upstream: ScriptedUpstream, folder: Path) -> Any:
    """Start the gateway in front of *upstream*."""
    names = {"GATEWAY_KEYS": "search:gw-one,support:gw-two", "GATEWAY_LEDGER": str(folder / "usage.sqlite")}
    return gunicorn_server(GATEWAY, config=CONFIG, env=dict(environment(upstream), **names))


def used(server: Any) -> Any:
    with contextlib.closing(server.request("/usage", headers={"Authorization": "Bearer gw-two"})) as reader:
        return reader.json()


def test_gateway_answers_its_curl_line_with_the_bytes_of_the_provider(tmp_path: Path) -> None:
    with ScriptedUpstream([tokens("Hel", "lo ", "wörld"), done(usage=False)]) as upstream:
        with gateway(upstream, tmp_path) as server:
            output = printed(curl_line(GATEWAY), server.port)
            call = {"model": "default", "stream": True, "messages": []}
            direct = requests.post(upstream.url + "/chat/completions", json=call).content
            assert output == direct
            assert output.endswith(b"data: [DONE]\n\n")
            first = upstream.exchanges[0]
            assert first.headers["authorization"] == "Bearer not-a-key"
            # What it said was not enough to say what it cost: its events are counted, at its end.
            wait_until(lambda: used(server), 5, server.log)
            (row,) = used(server)
            assert (row["team"], row["calls"], row["estimated_calls"]) == ("search", 1, 1)
            assert 4 <= row["output_tokens"] <= 5


def test_gateway_serves_the_unmodified_sdk(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    tool = {"index": 0, "id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    call = {"choices": [{"index": 0, "delta": {"tool_calls": [tool]}, "finish_reason": None}]}
    request = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}

    def said(client: Any, **options: Any) -> Any:
        return [chunk.model_dump() for chunk in client.chat.completions.create(**request, **options)]

    with ScriptedUpstream([tokens("Hel", "lo"), chunk(call), done()]) as upstream, gateway(
        upstream, tmp_path
    ) as server:
        address = server.url + "/v1"
        with openai.OpenAI(base_url=address, api_key="gw-one", max_retries=0) as client, openai.OpenAI(
            base_url=upstream.url, api_key="none"
        ) as direct:
            # Whether it asks for its usage or not, it gets what the provider would have sent.
            for options in ({}, {"stream_options": {"include_usage": True}}):
                assert said(client, **options) == said(direct, **options)
        # It is written down at the end of a call, which comes behind the last word of it.
        wait_until(lambda: [row["calls"] for row in used(server)] == [2], 5, server.log)
        assert used(server) == [
            {"team": "search", "calls": 2, "input_tokens": 14, "output_tokens": 4, "estimated_calls": 0}
        ]
        with openai.OpenAI(base_url=address, api_key="guessed", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError, match="ask for one"):
                said(client)
        upstream.script = [status(429, headers={"Retry-After": "7"})]
        with openai.OpenAI(base_url=address, api_key="gw-one", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError, match="scripted 429") as caught:
                said(client)
            assert caught.value.response.headers["retry-after"] == "7"
            upstream.script = [status(401, json={"error": {"message": "Incorrect API key: not-a-key"}})]
            with pytest.raises(openai.APIStatusError) as refused:
                said(client)
            assert refused.value.status_code == 502 and "not-a-key" not in str(refused.value)
            upstream.script = [tokens("Hel"), raw(b'data: {"cho'), cut()]
            with pytest.raises(openai.APIError, match="cut off"):
                said(client)


def test_gateway_closes_the_provider_and_counts_what_it_cost(tmp_path: Path) -> None:
    script = [tokens("Hel", "lo"), silence()]
    with ScriptedUpstream(script) as upstream, gateway(upstream, tmp_path) as server:
        curl = run(curl_line(GATEWAY), server.port)
        assert curl.stdout is not None
        assert b"Hel" in curl.stdout.readline()
        upstream.wait_for(lambda u: u.exchanges[0].tokens_sent == 2)
        curl.kill()
        curl.wait()
        curl.stdout.close()
        upstream.wait_closed()
        wait_until(lambda: used(server), 5, server.log)
        (row,) = used(server)
        assert row["team"] == "search" and row["output_tokens"] in (1, 2) and row["estimated_calls"] == 1


def run_script(name: str, *arguments: str) -> Any:
    """Run a script of examples/scripts; return (exit code, stdout, stderr)."""
    command = [sys.executable, str(ROOT / "examples" / "scripts" / name), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_scripts_read_the_chat(tmp_path: Path) -> None:
    target = tmp_path / "today.md"
    with ScriptedUpstream([tokens("Hel", "lo ", "world"), done()]) as upstream:
        with gunicorn_server(CHAT, config=CONFIG, env=environment(upstream)) as server:
            code, out, err = run_script("notebook.py", server.url)
            assert (code, err) == (0, "")
            assert re.fullmatch(r"Hello world\n3 tokens, \d+ per second, stop\n", out), out
            code, out, err = run_script("nightly.py", server.url + "/chat", str(target))
            assert (code, err) == (0, "") and out.startswith("3 tokens in ")
            assert target.read_text() == "Hello world"
            target.unlink()
            upstream.script = [tokens("Hel"), cut()]
            code, out, err = run_script("nightly.py", server.url + "/chat", str(target))
            assert (code, out) == (1, "") and err.startswith("no report: upstream_")
            assert not target.exists(), "half a report is none"
