"""The test kit itself, on an app that does not use the library."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import pytest

from flask_llmstream import testing
from flask_llmstream.testing import (
    LiveServer,
    ManualClock,
    gunicorn_server,
    read_stream,
    send_request,
    wait_until,
)
from flask_llmstream.testing.live import running_servers

pytestmark = pytest.mark.live

PLAIN = Path(__file__).parent / "apps" / "plain.py"
WORKERS = ["gevent", "gthread", "sync", "gevent_pywsgi"]


@pytest.fixture(scope="module", params=WORKERS)
def server(request: Any) -> Iterator[LiveServer]:
    threads = 4 if request.param == "gthread" else None
    with gunicorn_server(PLAIN, worker=request.param, threads=threads) as server:
        yield server


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_stream_is_read_chunk_by_chunk_as_it_arrives(server: LiveServer) -> None:
    answer = server.request("/ticks?count=5&pause=0.1")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    pairs = list(answer)
    answer.close()
    assert [data for _, data in pairs] == [b"data: %d\n\n" % number for number in range(5)]
    # 0.4 s lie between the first and the last write; a reader that buffers would show none of it, and one
    # that the machine keeps waiting shows less.
    assert pairs[-1][0] - pairs[0][0] >= 0.1
    assert answer.complete


def test_one_connection_carries_one_response_after_the_other(server: LiveServer) -> None:
    with server.connect() as sock:
        for path, expected in (("/ticks?count=1", b"data: 0\n\n"), ("/environment/NO_SUCH", b"unset")):
            send_request(sock, path)
            answer = read_stream(sock)
            assert answer.read() == expected
            assert answer.complete and answer.rest == b""
            if answer.headers.get("connection") == "close":
                break  # the sync worker closes every connection


def test_crash_after_the_first_bytes_is_not_complete(server: LiveServer) -> None:
    answer = server.request("/crash")
    assert answer.read() == b"first"
    assert not answer.complete
    assert answer.closed_by_peer
    server.wait_for_log("RuntimeError: told to")
    answer.close()


def test_large_body_survives(server: LiveServer) -> None:
    payload = os.urandom(1_500_000)
    answer = server.request("/echo", body=payload)
    assert answer.read() == payload
    answer.close()


def test_head_of_a_stream_has_no_body(server: LiveServer) -> None:
    answer = server.request("/ticks", method="HEAD")
    assert (answer.status, answer.read()) == (200, b"")
    answer.close()


def test_leaving_client_ends_the_generator(server: LiveServer) -> None:
    answer = server.request("/ticks?count=1000&pause=0.01")
    next(iter(answer))
    before = server.log().count("ticks ended")
    answer.reset()
    wait_until(lambda: server.log().count("ticks ended") > before, 5, server.log)


def test_slow_reader_has_a_small_window(server: LiveServer) -> None:
    sock = server.connect(receive_buffer=4096)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 16384
    sock.close()


@pytest.mark.parametrize("worker", WORKERS)
def test_stop_leaves_no_process(worker: str) -> None:
    with gunicorn_server(PLAIN, worker=worker, workers=2) as server:
        pids = server.worker_pids()
        assert len(set(pids)) == 2 and server.pid not in pids
        assert server in running_servers()
    assert server.process.returncode == 0
    assert server not in running_servers()
    # One that took too long was killed, and that takes a moment.
    wait_until(lambda: not any(is_alive(pid) for pid in [server.pid, *pids]), 5, "them to be gone")
    with pytest.raises(ConnectionRefusedError):
        server.connect()


def test_replaced_worker_is_reported() -> None:
    with gunicorn_server(PLAIN) as server:
        (first,) = server.worker_pids()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: server.worker_pids() not in ([], [first]), 10, server.log)
        with server.request("/environment/NO_SUCH") as answer:
            assert answer.read() == b"unset"


def test_killed_master_takes_its_workers_along() -> None:
    with gunicorn_server(PLAIN, workers=2) as server:
        pids = server.worker_pids()
        os.kill(server.pid, signal.SIGKILL)
        assert server.stop() == -signal.SIGKILL
        wait_until(lambda: not any(is_alive(pid) for pid in pids), 5, "the workers to be gone")


def test_stop_without_grace_is_quick_though_a_stream_is_open() -> None:
    with gunicorn_server(PLAIN, config_lines="graceful_timeout = 60") as server:
        answer = server.request("/ticks?count=1000&pause=0.01")
        next(iter(answer))
        started = time.monotonic()
        server.stop(graceful=False)
        assert time.monotonic() - started < 10
        answer.close()


def test_app_that_cannot_be_imported_shows_why(tmp_path: Path, capfd: Any) -> None:
    app = tmp_path / "broken.py"
    app.write_text("raise RuntimeError('broken on purpose')\n")
    before = running_servers()
    with pytest.raises(AssertionError, match="broken on purpose"):
        with gunicorn_server(app):
            pass
    assert running_servers() == before


def test_failure_in_the_block_shows_the_log(capfd: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        with gunicorn_server(PLAIN):
            1 / 0
    assert "Booting worker" in capfd.readouterr().err


def test_missing_log_line_shows_the_log() -> None:
    with gunicorn_server(PLAIN) as server:
        with pytest.raises(AssertionError, match="Booting worker"):
            server.wait_for_log("never written", timeout=0.05)


def test_environment_and_configuration_reach_the_server(tmp_path: Path) -> None:
    config = tmp_path / "conf.py"
    config.write_text(
        "raw_env = ['FROM_FILE=yes']\ndef when_ready(server): print('hook of ours', flush=True)\n"
    )
    with gunicorn_server(
        PLAIN, env={"FROM_TEST": "1", "PATH": os.environ["PATH"], "HOME": None},
        config=config, config_lines="proc_name = 'named'",
    ) as server:
        for name, value in (("FROM_TEST", "1"), ("FROM_FILE", "yes"), ("HOME", "unset")):
            with server.request(f"/environment/{name}") as answer:
                assert answer.read().decode() == value
        assert "hook of ours" in server.log()


def test_tls_is_spoken_and_checked(certificate: Tuple[str, str]) -> None:
    cert, key = certificate
    with gunicorn_server(PLAIN, certfile=cert, keyfile=key) as server:
        assert server.url.startswith("https://")
        answer = server.request("/ticks?count=2&pause=0")
        assert answer.read() == b"data: 0\n\ndata: 1\n\n"
        answer.close()


def test_module_name_is_found_in_the_working_directory() -> None:
    with gunicorn_server("plain:app", cwd=PLAIN.parent) as server:
        with server.request("/environment/NO_SUCH") as answer:
            assert answer.status == 200


def test_coverage_of_workers_is_written(tmp_path: Path) -> None:
    pytest.importorskip("coverage")
    settings = tmp_path / "rc"
    settings.write_text(
        "[run]\nparallel = true\nconcurrency = thread,greenlet\npatch = subprocess,fork,_exit\n"
        f"include = *plain.py\ndata_file = {tmp_path}/.coverage\n"
    )
    # The second one is what measures this very test run; it would win.
    variables = {"COVERAGE_PROCESS_START": str(settings), "COVERAGE_PROCESS_CONFIG": None}
    # Time enough to write it also where the machine is busy: it is not waited for.
    with gunicorn_server(PLAIN, env=variables, config_lines="graceful_timeout = 20") as server:
        # Left open, as a browser does.
        answer = server.request("/ticks?count=2&pause=0")
        answer.read()
    answer.close()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    for action in ("combine", "report"):
        done = subprocess.run(
            [sys.executable, "-m", "coverage", action, f"--rcfile={settings}"],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        assert done.returncode == 0, done.stdout
    assert "plain.py" in done.stdout
    # The import alone covers less: the route has run, and its generator.
    assert int(done.stdout.split()[-1].rstrip("%")) > 60


class Scripted:
    """Both ends of a connection, to play responses byte by byte."""

    def __init__(self) -> None:
        self.client, self.peer = socket.socketpair()

    def read(self, wire: bytes, **options: Any) -> Any:
        self.peer.sendall(wire)
        self.peer.close()
        return read_stream(self.client, **options)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    pair = Scripted()
    yield pair
    pair.client.close()
    pair.peer.close()


def pieces(answer: Any) -> List[bytes]:
    return [data for _, data in answer]


@pytest.mark.parametrize(
    "wire, expected, complete",
    [
        pytest.param(b"5\r\nhello\r\n0\r\n\r\n", [b"hello"], True, id="chunk"),
        pytest.param(b"1\r\na\r\n2;ext=1\r\nbc\r\n0\r\nT: x\r\n\r\n", [b"a", b"bc"], True, id="trailer"),
        pytest.param(b"5\r\nhello\r\n", [b"hello"], False, id="no last chunk"),
        pytest.param(b"5\r\nhello\r\n0\r\n", [b"hello"], False, id="cut in the last chunk"),
        pytest.param(b"5\r\nhel", [b"hel"], False, id="cut in a chunk"),
        pytest.param(b"5\r\nhello", [b"hello"], False, id="cut before the end of a chunk"),
        pytest.param(b"", [], False, id="nothing"),
    ],
)
def test_chunked_body(scripted: Scripted, wire: bytes, expected: List[bytes], complete: bool) -> None:
    answer = scripted.read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire)
    assert pieces(answer) == expected
    assert answer.complete is complete


def test_sized_body_leaves_the_rest(scripted: Scripted) -> None:
    answer = scripted.read(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 204 No Content\r\n\r\n")
    assert answer.read() == b"hi" and answer.complete
    following = read_stream(scripted.client, buffered=answer.rest)
    assert following.status == 204 and following.read() == b"" and following.complete


def test_short_sized_body_is_not_complete(scripted: Scripted) -> None:
    answer = scripted.read(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort")
    assert answer.read() == b"short" and not answer.complete


def test_body_until_close_is_complete(scripted: Scripted) -> None:
    answer = scripted.read(b"HTTP/1.0 200 OK\r\nX-A: 1\r\nx-a: 2\r\n\r\nall of it")
    assert answer.read() == b"all of it" and answer.complete
    assert answer.headers == {"x-a": "1, 2"}


def test_interim_answer_is_skipped(scripted: Scripted) -> None:
    answer = scripted.read(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    assert answer.status == 200 and answer.json() == {}


def test_cut_head_is_an_error(scripted: Scripted) -> None:
    with pytest.raises(ConnectionError, match="inside the head"):
        scripted.read(b"HTTP/1.1 200 OK\r\nContent-")


def test_read_until_stops_at_the_marker(scripted: Scripted) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = scripted.read(head + b"2\r\nab\r\n2\r\ncd\r\n2\r\nef\r\n0\r\n\r\n")
    assert [data for _, data in answer.read_until(b"bc")] == [b"ab", b"cd"]
    with pytest.raises(AssertionError, match="without b'zz'"):
        answer.read_until(b"zz")


def test_reset_is_no_end() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
        peer.sendall(b"HTTP/1.0 200 OK\r\n\r\nhalf")
        answer = read_stream(client)
        assert next(iter(answer))[1] == b"half"
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        assert answer.read() == b""
        assert answer.reset_by_peer and not answer.complete
        answer.close()


def test_silence_is_a_timeout() -> None:
    client, peer = socket.socketpair()
    with client, peer, pytest.raises(socket.timeout):
        read_stream(client, timeout=0.05)


def test_wait_until_returns_what_became_true() -> None:
    answers = iter([0, "", "found"])
    assert wait_until(lambda: next(answers)) == "found"


def test_wait_until_says_what_did_not_happen() -> None:
    with pytest.raises(AssertionError, match="waited 0.01 s for rain, last seen 0"):
        wait_until(lambda: 0, 0.01, "rain")
    with pytest.raises(AssertionError, match="for snow"):
        wait_until(lambda: 0, 0.01, lambda: "snow")


def test_python_that_cannot_be_run_leaves_nothing() -> None:
    before = running_servers()
    with pytest.raises(FileNotFoundError):
        with gunicorn_server(PLAIN, python="/no/such/python"):
            pass
    assert running_servers() == before


def test_names_of_the_kit() -> None:
    assert set(testing.__all__) <= set(dir(testing))
    for name in testing.__all__:
        assert getattr(testing, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        testing.nothing


def test_manual_clock_moves_only_by_hand() -> None:
    clock = ManualClock(10)
    assert (clock(), clock.advance(2.5), clock()) == (10, 12.5, 12.5)
    assert repr(clock) == "ManualClock(12.5)"
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1)
