"""``flask-llmstream tail``, as a real process: what it prints, when, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Iterator, List, Optional

import click
import pytest
from click.testing import CliRunner
from scripted import PATIENCE, Exchange, Serve, wait_for

from flask_llmstream import cli
from flask_llmstream.sansio.events import Event, ReasoningDelta, Usage
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.terminal import Output

WIRE = SSEFormat()
DONE = WIRE.done("stop", Usage(1, 2))

Run = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def tail() -> Iterator[Run]:
    """Return a function that starts ``tail`` with the given arguments; what still runs is ended."""
    started: List["subprocess.Popen[bytes]"] = []

    def start(*args: str, **options: Any) -> "subprocess.Popen[bytes]":
        environ = dict(os.environ, **options.pop("environ", {}))
        for name in ("stdin", "stdout", "stderr"):
            options.setdefault(name, subprocess.PIPE)
        command = [sys.executable, "-m", "flask_llmstream.cli", "tail", *args]
        started.append(subprocess.Popen(command, env=environ, **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def finished(process: "subprocess.Popen[bytes]", stdin: Optional[bytes] = None) -> Any:
    """Return (exit code, stdout, stderr) of *process*."""
    out, err = process.communicate(stdin, timeout=30)
    return process.returncode, out.decode(), err.decode()


def answering(data: bytes, **headers: str) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(data, **headers)


def texts(*pieces: str) -> bytes:
    return b"".join(WIRE.encode(piece) for piece in pieces)


def test_tail_prints_the_text_and_ends_the_line(serve: Serve, tail: Run) -> None:
    data = texts("Hel", "lo\n") + WIRE.encode(ReasoningDelta("hm")) + b": hb\n" + texts("w\u00f6rld") + DONE
    server = serve(answering(data))
    assert finished(tail(server.url)) == (0, "Hello\nw\u00f6rld\n", "")
    assert server.requests[0].method == "GET"


@pytest.mark.parametrize(
    "data, out",
    [
        pytest.param(texts("a\n") + DONE, "a\n", id="a line that has ended"),
        pytest.param(DONE, "", id="no text"),
    ],
)
def test_tail_adds_no_blank_line(serve: Serve, tail: Run, data: bytes, out: str) -> None:
    assert finished(tail(serve(answering(data)).url)) == (0, out, "")


def test_tail_prints_each_piece_at_once_into_a_pipe(serve: Serve, tail: Run) -> None:
    seen = threading.Semaphore(0)

    def script(exchange: Exchange) -> None:
        exchange.head()
        for number in range(5):
            exchange.body(texts(str(number)))
            assert seen.acquire(timeout=PATIENCE), f"piece {number} was held back"
        exchange.body(DONE)
        exchange.end()

    process = tail(serve(script).url)
    assert process.stdout is not None
    for number in range(5):
        assert os.read(process.stdout.fileno(), 100) == b"%d" % number
        seen.release()
    assert finished(process) == (0, "\n", "")


def test_events_are_printed_as_lines_of_json(serve: Serve, tail: Run) -> None:
    data = texts("\u00f6") + WIRE.encode(Event("b\nc", event="x", id="7")) + WIRE.done("stop")
    code, out, err = finished(tail(serve(answering(data)).url, "--events"))
    assert (code, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == [
        {"data": '{"text":"\u00f6"}'},
        {"event": "x", "id": "7", "data": "b\nc"},
        {"event": "done", "id": "7", "data": '{"reason":"stop","usage":null}'},
    ]


def test_raw_prints_the_bytes_of_the_wire(serve: Serve, tail: Run) -> None:
    data = b": open\n" + texts("a") + b": hb\n" + DONE
    assert finished(tail(serve(answering(data)).url, "--raw")) == (0, data.decode(), "")


def test_foreign_streams_may_just_end(serve: Serve, tail: Run) -> None:
    server = serve(answering(b"data: [DONE]\n\n"))
    assert finished(tail(server.url, "--events", "--foreign")) == (0, '{"data": "[DONE]"}\n', "")
    assert finished(tail(server.url, "--events"))[0] == 1


def test_json_is_posted(serve: Serve, tail: Run, tmp_path: Any) -> None:
    server = serve(answering(DONE))
    file = tmp_path / "body.json"
    file.write_bytes('{"q": "\u00f6"}'.encode())
    assert finished(tail(server.url, "--json", '{"q": 1}'))[0] == 0
    assert finished(tail(server.url, "--json", f"@{file}"))[0] == 0
    assert finished(tail(server.url, "--json", "-"), b"[1, 2]")[0] == 0
    assert {request.method for request in server.requests} == {"POST"}
    assert [json.loads(one.body.decode()) for one in server.requests] == [{"q": 1}, {"q": "\u00f6"}, [1, 2]]


def test_headers_are_sent(serve: Serve, tail: Run) -> None:
    server = serve(answering(DONE))
    arguments = ["--header", "Authorization: Bearer a:b", "-H", "X-Empty:"]
    assert finished(tail(server.url, *arguments))[0] == 0
    assert server.requests[0].headers["authorization"] == "Bearer a:b"
    assert server.requests[0].headers["x-empty"] == ""


def test_a_terminal_that_knows_only_ascii_gets_question_marks(serve: Serve, tail: Run) -> None:
    server = serve(answering(texts("w\u00f6rld \ud83d") + DONE))
    process = tail(server.url, environ={"PYTHONIOENCODING": "ascii"})
    assert finished(process) == (0, "w?rld ?\n", "")


def failing(message: str) -> bytes:
    return texts("some") + WIRE.failed(message, "upstream_error", False)


def refusing(exchange: Exchange) -> None:
    exchange.head("503 Service Unavailable", Content_Type="application/json", Retry_After="7")
    exchange.body(b'{"error":\n "full"}')
    exchange.end()


def refusing_with_a_page(exchange: Exchange) -> None:
    exchange.head("404 Not Found", Content_Type="text/html")
    exchange.body(b"<!doctype html><title>no</title>")
    exchange.end()


@pytest.mark.parametrize(
    "script, out, words",
    [
        pytest.param(answering(failing("it\nbroke\x1b[2J")), "some\n", "upstream_error: it broke [2J\n",
                     id="failed"),
        pytest.param(answering(texts("some")), "some\n", "the answer is not complete\n", id="cut"),
        pytest.param(refusing, "", "answered 503 Service Unavailable; it asks to come back after 7 s:"
                     ' {"error":  "full"}\n', id="refused"),
        pytest.param(refusing_with_a_page, "", "answered 404 Not Found\n", id="refused with a page"),
        pytest.param(lambda exchange: None, "", "closed the connection without an answer\n", id="no answer"),
    ],
)
def test_what_goes_wrong_is_one_line_on_stderr(
    serve: Serve, tail: Run, script: Any, out: str, words: str
) -> None:
    code, found, err = finished(tail(serve(script).url + "?key=secret", "--retries", "0"))
    assert (code, found) == (1, out)
    assert err.startswith("Error: ") and err.endswith(words) and err.count("\n") == 1
    assert "secret" not in err


def test_a_silent_server_is_given_up(serve: Serve, tail: Run) -> None:
    def script(exchange: Exchange) -> None:
        assert exchange.wait_closed()

    code, _, err = finished(tail(serve(script).url, "--idle-timeout", "0.2"))
    assert code == 1 and "not a byte in 0.2 s" in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        pytest.param(["http://127.0.0.1:1/", "--json", "{"], "--json is not JSON: Expecting prop", id="JSON"),
        pytest.param(["http://127.0.0.1:1/", "--json", "@/nowhere"], "cannot read /nowhere: No", id="file"),
        pytest.param(["http://127.0.0.1:1/", "--json", "-"], "stdin is not UTF-8", id="stdin"),
        pytest.param(["http://127.0.0.1:1/", "--json", "NaN"], "NaN", id="NaN"),
        pytest.param(["http://127.0.0.1:1/", "-H", "secret"], "--header takes 'Name: value'", id="no colon"),
        pytest.param(["http://127.0.0.1:1/", "-H", ": x"], "--header takes 'Name: value'", id="no name"),
        pytest.param(["127.0.0.1"], "127.0.0.1", id="no scheme"),
        pytest.param(
            ["http://127.0.0.1:1/", "--raw", "--events"], "events and raw exclude each other", id="two forms"
        ),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(tail: Run, arguments: List[str], words: str) -> None:
    code, out, err = finished(tail(*arguments), b"\xff")
    assert (code, out) == (2, "")
    assert err.startswith("Error: ") and words in err and err.count("\n") == 1
    assert "secret" not in err


@pytest.mark.parametrize("started", [True, False], ids=["after some text", "before the head"])
def test_ctrl_c_closes_the_connection_at_once(serve: Serve, tail: Run, started: bool) -> None:
    asked = threading.Event()
    left: List[float] = []

    def script(exchange: Exchange) -> None:
        if started:
            exchange.head()
            exchange.body(texts("some"))
        asked.set()
        if exchange.wait_closed():
            left.append(time.monotonic())

    process = tail(serve(script).url)
    assert asked.wait(PATIENCE)
    assert process.stdout is not None
    if started:
        assert os.read(process.stdout.fileno(), 100) == b"some"
    time.sleep(0.1)
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    wait_for(lambda: left)
    assert left[0] - pressed < 5.0
    assert finished(process) == (130, "\n" if started else "", "interrupted; the connection is closed\n")


def test_a_busy_server_is_waited_for_and_ctrl_c_ends_the_wait(serve: Serve, tail: Run) -> None:
    process = tail(serve(refusing).url, "--json", "{}")
    assert process.stderr is not None
    told = process.stderr.readline().decode()
    assert "come back after 7 s" in told and told.endswith("trying again in 7.0 s (attempt 1)\n")
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert finished(process) == (130, "", "interrupted; the connection is closed\n")
    assert time.monotonic() - pressed < 5.0


def test_a_closed_pipe_ends_it_without_a_word(serve: Serve, tail: Run) -> None:
    """``tail URL | head -c 1``: the generation ends with its reader."""
    left = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.head()
        try:
            while True:
                exchange.body(texts("token "))
                time.sleep(0.01)
        except OSError:
            left.set()

    process = tail(serve(script).url)
    assert process.stdout is not None and process.stderr is not None
    assert os.read(process.stdout.fileno(), 1) == b"t"
    process.stdout.close()
    assert left.wait(PATIENCE)
    assert process.stderr.read() == b""
    assert process.wait(PATIENCE) == 141


def test_a_closed_pipe_at_the_end_of_a_failed_stream_is_quiet_too(serve: Serve, tail: Run) -> None:
    go_on = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(texts("some"))
        assert go_on.wait(PATIENCE)
        exchange.end()

    process = tail(serve(script).url)
    assert process.stdout is not None and process.stderr is not None
    assert os.read(process.stdout.fileno(), 4) == b"some"
    process.stdout.close()
    go_on.set()
    assert process.stderr.read().decode().endswith("the answer is not complete\n")
    assert process.wait(PATIENCE) == 1


def test_help_names_the_commands() -> None:
    result = CliRunner().invoke(cli.main, ["--help"])
    assert result.exit_code == 0
    assert "tail" in result.output and "demo" in result.output


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        pytest.param(["--help"], 0, "--port", id="help"),
        pytest.param(["--port", "x"], 2, "invalid int value: 'x'", id="a wrong value"),
        pytest.param(["--nonsense"], 2, "--nonsense", id="an unknown option"),
    ],
)
def test_demo_reads_its_own_options(arguments: List[str], code: int, words: str) -> None:
    command = [sys.executable, "-m", "flask_llmstream.cli", "demo", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
    assert done.returncode == code
    assert words in done.stdout.decode()


def test_tail_can_be_invoked_in_the_same_process(serve: Serve) -> None:
    """As a test of an app does it: standard output is no file there."""
    server = serve(answering(texts("a") + DONE))
    result = CliRunner().invoke(cli.main, ["tail", server.url])
    assert (result.exit_code, result.output) == (0, "a\n")


def test_what_cannot_be_redirected_is_left_alone() -> None:
    def run() -> None:
        Output().abandon()

    main = click.command("x")(run)
    assert CliRunner().invoke(main).exit_code == 0
