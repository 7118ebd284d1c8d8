"""``tail --record`` and ``--replay``, and the forms in which a stream is printed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, List

import pytest
from click.testing import CliRunner
from scripted import PATIENCE, Exchange, Serve, wait_for
from tailing import COMMAND, finished

from flask_llmstream import cli
from flask_llmstream.client import StreamClient, recorded
from flask_llmstream.client.recorded import Recording, RecordingError
from flask_llmstream.sansio.events import JsonDelta
from flask_llmstream.sansio.frames import FramesFormat
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.sansio.ndjson import NDJSONFormat

WIRE = SSEFormat()
DONE = WIRE.done("stop")
HEADER = b'{"llmstream_recording":1,"method":"GET","url":"http://127.0.0.1/chat"}\n'
OPEN = b'{"t":0.0,"open":200,"headers":{"Content-Type":"text/event-stream"}}\n'


def tail(*arguments: str) -> Any:
    """Run ``tail`` in this process; return (exit code, what it printed, errors included)."""
    result = CliRunner().invoke(cli.main, ["tail", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def said(text: str) -> bytes:
    return WIRE.encode(text)


def lines_of(path: Path) -> List[Any]:
    return [json.loads(line) for line in path.read_bytes().decode().splitlines()]


def test_a_recording_is_replayed_in_each_form(serve: Serve, tmp_path: Path) -> None:
    data = WIRE.opening(0) + said("H\u00e9") + WIRE.encode({"a": [1]}) + b": hb\n" + DONE
    cut = data.index(b"\xc3") + 1  # inside a character

    file = tmp_path / "stream.jsonl"

    def script(exchange: Exchange) -> None:
        exchange.head(X_Other="not kept")
        exchange.body(data[:cut])
        wait_for(lambda: b"base64" in file.read_bytes())  # or two pieces could be read as one
        exchange.wait_closed(0.1)
        exchange.body(data[cut:])
        exchange.end()

    server = serve(script)
    assert tail(server.url + "?key=secret", "--record", str(file)) == (0, "H\u00e9\n")
    first, opened, *pieces, end = lines_of(file)
    assert (first["llmstream_recording"], first["method"], first["url"]) == (1, "GET", server.url)
    assert (opened["open"], opened["headers"]) == (200, {"Content-Type": "text/event-stream"})
    assert "base64" in pieces[0] and len(pieces) >= 2 and end["end"] is None
    assert 0.09 < pieces[1]["t"] - pieces[0]["t"] < 5
    server.stop()  # no network from here on
    expected = {"text": "H\u00e9\n", "raw": data.decode(), "json": '{"a": [1]}\n'}
    for form in expected:
        replayed = tail("--replay", str(file), "--speed", "0", "--format", form)
        assert replayed == (0, expected[form])
    code, events = tail("--replay", str(file), "--speed", "0", "--events")
    assert code == 0
    assert [json.loads(line).get("event") for line in events.splitlines()] == [None, "json", "done"]


def test_forms_have_short_names_and_json_says_its_channel(serve: Serve) -> None:
    of = NDJSONFormat()
    data = of.encode(JsonDelta("", "add", {})) + of.encode(JsonDelta("/a", "add", "\u00e9")) + of.done("stop")
    server = serve(lambda exchange: exchange.answer(data, Content_Type="application/x-ndjson"))
    assert tail(server.url, "--format", "json") == (0, '{}\n{"a": "\u00e9"}\n')
    assert tail(server.url, "--events") == tail(server.url, "--format", "events")
    assert tail(server.url, "--raw", "--format", "raw") == (0, data.decode())
    tagged = b'{"type":"json","channel":"x","path":"","op":"replace","value":1}\n' + of.done("stop")
    server = serve(lambda exchange: exchange.answer(tagged, Content_Type="application/x-ndjson"))
    assert tail(server.url, "--format", "json") == (0, '{"channel": "x", "value": 1}\n')


def test_frames_are_asked_for_printed_and_replayed(serve: Serve, tmp_path: Path) -> None:
    of = FramesFormat()
    data = of.opening(0) + of.encode("H\u00e9") + of.encode({"a": [1]}) + of.done("stop")
    server = serve(lambda exchange: exchange.answer(data, Content_Type=of.content_type))
    file = str(tmp_path / "stream.jsonl")
    events = tail(server.url, "-H", "accept: */*", "--wire", "frames", "--events", "--record", file)
    assert server.requests[0].headers["accept"] == of.content_type
    assert events[0] == 0 and [json.loads(line).get("event") for line in events[1].splitlines()] == [
        None, "json", "done"
    ]
    assert tail("--replay", file, "--speed", "0", "--events") == events
    assert tail("--replay", file, "--speed", "0") == (0, "H\u00e9\n")
    assert tail("--replay", file, "--wire", "sse")[0] == 2


class Clock:
    """Takes the place of the module ``time``; who sleeps is woken in the very moment that was meant."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_it_is_replayed_in_its_own_time_or_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(recorded, "time", clock)
    pieces = [said("0"), said("1"), said("2"), DONE]
    file = tmp_path / "stream.jsonl"
    noted = [{"t": 0.5 + n / 10, "data": piece.decode()} for n, piece in enumerate(pieces)]
    lines = "".join(json.dumps(each) + "\n" for each in [*noted, {"t": 0.9, "end": None}])
    file.write_bytes(HEADER + OPEN + lines.encode())
    for speed in (1.0, 2.0, 0.0):
        started = clock.now
        with open(str(file), "rb") as opened:
            recording = Recording(opened, "it", speed)
            moments = []
            with StreamClient(recording.url, session=recording.session) as stream:
                for _ in stream.text():
                    moments.append(clock.now - started)
        expected = [0.5 / speed, 0.6 / speed, 0.7 / speed] if speed else [0.0, 0.0, 0.0]
        assert moments == pytest.approx(expected)


def test_what_was_lost_and_found_is_replayed_so(serve: Serve, tmp_path: Path) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.number == 1:
            exchange.head("503 Service Unavailable", Content_Length="2", Retry_After="0")
            exchange.body(b"no")
            exchange.keep_alive = True  # it is whole, and what is closed behind it may be in use again
            return
        exchange.head(Content_Location="/llmstream/streams/x")
        exchange.body(b"retry: 1\nid: %d\n" % exchange.number + said(str(exchange.number)))
        if exchange.number == 0:
            exchange.reset()
        elif exchange.number == 2:
            exchange.body(DONE)
            exchange.end()

    file = tmp_path / "stream.jsonl"
    live = finished(serve(script).url, "--json", "{}", "--record", str(file))
    assert live[:2] == (0, "02\n")
    notices = live[2].splitlines()
    assert len(notices) == 2 and "attempt 1" in notices[0] and "503" in notices[1]
    marks = [name for each in lines_of(file) for name in ("open", "lost", "end") if name in each]
    assert marks == ["open", "lost", "open", "lost", "open", "end"]
    replayed = finished("--replay", str(file), "--speed", "0")
    assert replayed[:2] == live[:2]
    assert ["503" in line for line in replayed[2].splitlines()] == [False, True]


@pytest.mark.parametrize(
    "script, words",
    [
        (lambda exchange: exchange.answer(said("a")), "without one of done, failed"),
        (lambda exchange: exchange.answer(said("a") + WIRE.failed("no", "busy", True)), "busy: no"),
        (lambda exchange: (exchange.head(), exchange.body(said("a"))), "broke off after 1 events"),
        (lambda exchange: exchange.answer(b"<p>", Content_Type="text/html"), "Content-Type 'text/html'"),
        (lambda exchange: None, "it closed the connection without an answer"),
        (lambda exchange: (
            exchange.head("503 Service Unavailable", Retry_After="61"),
            exchange.body(b"x" * 2000), exchange.end(),
        ), "come back after 61 s"),
    ],
    ids=["ended", "failed", "broken", "refused", "no answer", "busy"],
)
def test_a_failure_is_replayed_as_it_was(serve: Serve, tmp_path: Path, script: Any, words: str) -> None:
    file = str(tmp_path / "stream.jsonl")
    code, output = tail(serve(script).url, "--record", file)
    assert code == 1 and words in output
    assert tail("--replay", file, "--speed", "0") == (code, output)


def test_ctrl_c_leaves_a_recording_that_says_so(serve: Serve, tmp_path: Path) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(said("some"))
        exchange.wait_closed()

    file = tmp_path / "stream.jsonl"
    process = subprocess.Popen(
        [*COMMAND, serve(script).url, "--record", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 100) == b"some"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    code, output = tail("--replay", str(file), "--speed", "0")
    assert code == 1 and output.startswith("some\n") and "broke off after 1 events: interrupted" in output


def test_it_is_written_as_it_comes_and_a_cut_leaves_what_there_is(serve: Serve, tmp_path: Path) -> None:
    go_on = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(said("some"))
        go_on.wait(PATIENCE)

    file = tmp_path / "stream.jsonl"
    process = subprocess.Popen(
        [*COMMAND, serve(script).url, "--record", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 100) == b"some"
    process.kill()  # as a machine that is switched off
    process.communicate(timeout=30)
    go_on.set()
    assert [line.get("data") for line in lines_of(file)][-1] == said("some").decode()
    number = len(lines_of(file))
    code, output = tail("--replay", str(file), "--speed", "0")
    words = f"{file}: line {number} is the last one, but says no end: the recording was cut there"
    assert (code, output) == (1, f"some\nError: {words}\n")
    file.write_bytes(file.read_bytes()[:-4])
    code, output = tail("--replay", str(file), "--speed", "0")
    assert code == 1 and f"line {number} is cut" in output


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "line 0 is the last one"),
        (b"\x89PNG\r\n", "line 1 is not JSON"),
        (b"data: x\n", "line 1 is not JSON"),
        (b"[1]\n", "line 1 is not a JSON object"),
        (b'{"data":"x"}\n', 'line 1 is not the first line of a recording: it has no "llmstream_recording"'),
        (b'{"llmstream_recording":2}\n', "of version 2; this reads version 1"),
    ],
    ids=["empty", "picture", "stream", "list", "other JSON", "newer"],
)
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "other"
    file.write_bytes(content)
    code, output = tail("--replay", str(file))
    assert code == 2 and output.startswith(f"Error: {file}: line ") and words in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    "rest, words",
    [
        (b'{"t":0}\n', "line 2 is none that a recording has here"),
        (b'{"open":"x","headers":{}}\n', 'line 2 has no number as "open"'),
        (OPEN + b'{"t":"x"}\n', 'line 3 has no number of seconds as "t"'),
        (OPEN + b'{"t":-1,"data":"x"}\n', 'line 3 has no number of seconds as "t"'),
        (OPEN + b'{"base64":"?"}\n', 'line 3 has something else than Base64 as "base64"'),
        (OPEN + b'{"t":0,"open":200}\n', "line 3 is none that a recording has here"),
        (OPEN + b"\xff\n", "line 3 is not JSON"),
        (b'{"t":0,"end":null}\n', "the recording has no further connection"),
    ],
)
def test_a_line_that_a_recording_does_not_have_is_named(tmp_path: Path, rest: bytes, words: str) -> None:
    file = tmp_path / "stream.jsonl"
    file.write_bytes(HEADER + rest)
    code, output = tail("--replay", str(file), "--speed", "0")
    assert code == 1 and words in output and output.count("\n") == 1


def test_a_recording_is_a_session_for_a_client_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "stream.jsonl"
    piece = json.dumps({"t": 9, "data": (said("a") + DONE).decode()})
    file.write_bytes(HEADER + OPEN + piece.encode() + b"\n")
    with open(str(file), "rb") as lines:
        recording = Recording(lines, "it", speed=0)
        with StreamClient(recording.url, session=recording.session) as stream:
            assert list(stream.text()) == ["a"]
        recording.session.close()
        with pytest.raises(RecordingError, match="it: line 3 is the last one"):
            StreamClient(recording.url, session=recording.session).open()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "give a URL, or --replay FILE"),
        (["http://127.0.0.1:1/", "--speed", "2"], "--speed is for --replay"),
        (["http://127.0.0.1:1/", "--replay", "x"], "--replay sends nothing"),
        (["--replay", "x", "--json", "{}"], "--replay sends nothing"),
        (["--replay", "/nowhere/x"], "cannot read /nowhere/x: No such file"),
        (["--replay", "x", "--speed", "-1"], "--speed is -1.0, expected a number of 0 or more"),
        (["--replay", "x", "--speed", "nan"], "--speed is nan"),
        (["http://127.0.0.1:1/", "--record", "/nowhere/x"], "cannot write /nowhere/x: No such file"),
        (["127.0.0.1"], "127.0.0.1"),
    ],
)
def test_wrong_arguments_end_with_2(arguments: List[str], words: str) -> None:
    code, output = tail(*arguments)
    assert code == 2 and words in output


def test_a_disk_that_is_full_is_said(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(said("a") + DONE))
    code, output = tail(server.url, "--record", "/dev/full")
    assert code == 2 and output == "Error: cannot write /dev/full: No space left on device\n"
    assert not server.requests


def test_a_disk_that_is_full_later_is_said_too(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda exchange: exchange.answer(said("a" * 100000) + DONE))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000));"
    code = f"{limit} import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    code += "import sys; from flask_llmstream.cli import main; main()"
    command = [sys.executable, "-c", code, "tail", server.url, "--record", str(tmp_path / "x")]
    # What is measured of the process would go over the limit, too.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30, env=environ)
    assert (done.returncode, done.stderr) == (1, b"Error: cannot write on: File too large\n")
