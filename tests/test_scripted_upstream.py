"""The scripted upstream does as it is told, and takes notes that tests can rely on."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request

import pytest

from flask_llmstream.testing.upstreams import (
    ScriptedUpstream,
    chunk,
    close_delimited,
    cut,
    delay_headers,
    done,
    flood,
    headers,
    invalid_utf8,
    raw,
    reset,
    silence,
    status,
    tokens,
    wait,
)


class Client:
    """A bare socket that speaks to an upstream."""

    def __init__(self, upstream, rcvbuf=None):
        self.sock = socket.socket()
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.settimeout(5)
        try:
            self.sock.connect((upstream.host, upstream.port))
        except OSError:
            self.sock.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.sock.close()

    def ask(self, body=b"{}", head=b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"):
        self.sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return self

    def read_until(self, marker):
        data = b""
        while marker not in data:
            piece = self.sock.recv(65536)
            assert piece, data
            data += piece
        return data

    def read_all(self):
        pieces = []
        while not pieces or pieces[-1]:
            pieces.append(self.sock.recv(65536))
        return b"".join(pieces)


def answer_to(*script, **request):
    with ScriptedUpstream(list(script)) as upstream, Client(upstream) as client:
        client.ask(**request)
        return client.read_until(b"0\r\n\r\n"), upstream


def test_tokens_are_chunks_of_a_chat_completion_each_in_an_http_chunk():
    answer, upstream = answer_to(tokens("a", "ü"), done())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: text/event-stream" in head and b"Transfer-Encoding: chunked" in head
    sizes = [line for line in body.split(b"\r\n") if line and not line.startswith(b"data")]
    assert len(sizes) == 5  # two tokens, the finish reason, [DONE], the end
    frames = [json.loads(line[6:]) for line in body.split(b"\r\n") if line.startswith(b"data: {")]
    assert [frame["choices"][0]["delta"] for frame in frames] == [{"content": "a"}, {"content": "ü"}, {}]
    assert frames[-1]["choices"][0]["finish_reason"] == "stop"
    assert b"data: [DONE]\n\n" in body
    exchange = upstream.exchanges[0]
    assert exchange.completed and exchange.tokens_sent == 2
    assert exchange.bytes_sent == len(answer)
    assert "completed" in repr(exchange)


@pytest.mark.parametrize(
    "step, body, expected",
    [
        (done(), b'{"stream_options": {"include_usage": true}}', {"completion_tokens": 1}),
        (done(usage={"prompt_tokens": 1}), b"", {"prompt_tokens": 1}),
        (done(usage=True), b"", {"completion_tokens": 1}),
        (done(), b"{}", None),
        (done(usage=False), b'{"stream_options": {"include_usage": true}}', None),
    ],
)
def test_usage_is_reported_where_it_is_asked_for(step, body, expected):
    answer, _ = answer_to(tokens("a"), step, body=body)
    reports = [json.loads(line[6:]) for line in answer.split(b"\n") if b'"usage"' in line]
    if expected is None:
        assert reports == []
    else:
        assert reports[0]["choices"] == []
        assert expected.items() <= reports[0]["usage"].items()


def test_a_flood_is_the_same_token_many_times():
    answer, upstream = answer_to(flood(10, "x", burst=4), done(usage=False, finish_reason=None, marker=False))
    assert answer.count(b'{"content":"x"}') == 10
    assert upstream.exchanges[0].tokens_sent == 10


def test_single_steps():
    answer, _ = answer_to(headers({"X-A": "b"}, status=503), raw(b"hello"), raw(b""), chunk({"a": 1}))
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"X-A: b\r\n" in answer
    assert answer.endswith(b'5\r\nhello\r\nf\r\ndata: {"a":1}\n\n\r\n0\r\n\r\n')
    assert b"\xff\xfe" in answer_to(invalid_utf8())[0]


def test_steps_have_a_name():
    script = [tokens("a"), flood(3), wait(1), silence(), cut(), reset(), status(404), raw(b"ab")]
    assert repr(script) == (
        "[tokens(<1>), flood(3), wait(1), silence(), cut(), reset(), status(404), raw(<2 bytes>)]"
    )


@pytest.mark.parametrize("json_body, body", [(None, None), ({"a": 1}, None), (None, b"plain")])
def test_a_status_is_a_whole_answer_and_the_connection_goes_on(json_body, body):
    with ScriptedUpstream([status(429, headers={"Retry-After": "3"}, json=json_body, body=body)]) as upstream:
        with Client(upstream) as client:
            for _ in range(2):
                answer = client.ask().read_until(b"}" if body is None else body)
                assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
                assert b"Retry-After: 3\r\n" in answer
        assert (upstream.connections, upstream.requests) == (1, 2)


def test_an_unknown_status_has_a_phrase_too():
    with ScriptedUpstream([status(529)]) as upstream, Client(upstream) as client:
        assert client.ask().read_until(b"\r\n").startswith(b"HTTP/1.1 529 Scripted\r\n")


@pytest.mark.parametrize(
    "script, head",
    [
        ([close_delimited, raw(b"hello")], b"POST / HTTP/1.1\r\n"),
        ([raw(b"hello")], b"POST / HTTP/1.0\r\n"),
        ([raw(b"hello")], b"POST / HTTP/1.1\r\nConnection: close\r\n"),
    ],
)
def test_a_body_that_ends_with_the_connection(script, head):
    with ScriptedUpstream(script) as upstream, Client(upstream) as client:
        answer = client.ask(head=head).read_all()
        assert b"chunked" not in answer and answer.endswith(b"\r\n\r\nhello")
        (peer,) = upstream.wait_closed()
        assert peer.closed_by == "server"


def test_a_cut_is_a_fin_and_a_reset_a_rst():
    with ScriptedUpstream([raw(b"a"), cut()]) as upstream, Client(upstream) as client:
        assert client.ask().read_all().endswith(b"1\r\na\r\n")
        assert not upstream.wait_closed()[0].exchanges[0].completed
    with ScriptedUpstream([raw(b"a"), wait(0.05), reset()]) as upstream, Client(upstream) as client:
        client.ask().read_until(b"1\r\na\r\n")
        with pytest.raises(ConnectionResetError):
            client.sock.recv(1)


def test_pauses_are_kept():
    with ScriptedUpstream([delay_headers(0.1), tokens("a", "b", "c", interval=0.05), wait(0.1)]) as upstream:
        with Client(upstream) as client:
            started = time.monotonic()
            client.ask().read_until(b"HTTP/1.1")
            assert time.monotonic() - started >= 0.1
            client.read_until(b"0\r\n\r\n")
            assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("script", [[tokens("a"), silence()], [delay_headers()]])
@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
def test_a_peer_that_leaves_a_silent_upstream_is_seen_at_once(script, how):
    with ScriptedUpstream(script) as upstream, Client(upstream) as client:
        client.ask()
        upstream.wait_for(lambda upstream: upstream.requests)
        if len(script) == 2:
            client.read_until(b"\n\n")
        assert upstream.open_connections == 1
        left_at = time.monotonic()
        if how == "half-close":
            client.sock.shutdown(socket.SHUT_WR)
        else:
            if how == "rst":
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sock.close()
        (peer,) = upstream.wait_closed()
        assert left_at <= peer.closed_at < left_at + 2
        assert peer.closed_by == "peer"
        exchange = peer.exchanges[0]
        assert exchange.accepted_at <= exchange.received_at <= exchange.closed_at == peer.closed_at
        assert not exchange.completed
        assert "closed" in repr(exchange)


def test_a_slow_reader_holds_the_script_back():
    size = 50_000_000
    with ScriptedUpstream([flood(size // 100)], send_buffer=16384) as upstream:
        with Client(upstream, rcvbuf=16384) as client:
            client.ask().read_until(b"HTTP/1.1")
            # Nothing moves any more: what was sent stays the same from one look to the next.
            seen = []

            def stands_still(upstream):
                seen.append(upstream.exchanges[0].bytes_sent)
                return len(seen) > 20 and len(set(seen[-20:])) == 1

            upstream.wait_for(stands_still, 10)
            assert 0 < upstream.exchanges[0].bytes_sent < 2_000_000
            assert "open" in repr(upstream.exchanges[0])
            # And goes on when it reads.
            before = upstream.exchanges[0].bytes_sent
            for _ in range(100):
                client.sock.recv(65536)
            upstream.wait_for(lambda upstream: upstream.exchanges[0].bytes_sent > before)
        upstream.wait_closed()
        assert upstream.exchanges[0].bytes_sent < size


def test_requests_that_are_sent_together_are_answered_one_after_the_other():
    with ScriptedUpstream(lambda request: [status(200, json=request.path)]) as upstream:
        with Client(upstream) as client:
            client.sock.sendall(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
            answer = client.read_until(b'"/b"')
    assert answer.index(b'"/a"') < answer.index(b'"/b"')
    assert [each.json for each in upstream.exchanges] == [None, None]


def test_a_request_may_arrive_in_pieces():
    with ScriptedUpstream() as upstream, Client(upstream) as client:
        for byte in b"POST / HTTP/1.1\r\nContent-Length: 8\r\n\r\n[1,2,3]\n":
            client.sock.sendall(bytes([byte]))
        client.read_until(b"[DONE]")
    assert upstream.exchanges[0].json == [1, 2, 3]


def test_a_client_that_waits_for_a_continue_gets_one():
    """curl does that with every prompt that is longer than a kilobyte."""
    with ScriptedUpstream() as upstream, Client(upstream) as client:
        client.sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.sock.sendall(b"{}")
        client.read_until(b"[DONE]")


def test_what_is_no_http_is_refused():
    with ScriptedUpstream() as upstream, Client(upstream) as client:
        client.sock.sendall(b"\x16\x03\x01")
        assert client.read_all().startswith(b"HTTP/1.1 400")
        assert upstream.requests == 0


def test_the_script_can_be_replaced_and_chosen_by_the_request():
    with ScriptedUpstream([status(500)]) as upstream, Client(upstream) as client:
        assert b" 500 " in client.ask().read_until(b"}}")
        upstream.script = lambda request: [status(201, json={"model": request.json["model"]})]
        assert b'{"model": "m"}' in client.ask(b'{"model": "m"}').read_until(b"}")


def test_a_script_that_fails_is_noted():
    with ScriptedUpstream(lambda request: request.no_such_attribute) as upstream, Client(upstream) as client:
        client.ask()
        with pytest.raises(ConnectionResetError):
            client.sock.recv(1)
        upstream.wait_closed()
        assert [type(error) for error in upstream.errors] == [AttributeError]


def test_waiting_in_vain_says_what_was_there():
    with ScriptedUpstream() as upstream:
        with pytest.raises(AssertionError, match="0 connections, 0 open, 0 requests"):
            upstream.wait_closed(0.05)


def test_stop_ends_what_is_open_and_can_be_called_twice():
    upstream = ScriptedUpstream([silence()]).start()
    with Client(upstream) as client:
        client.ask()
        upstream.wait_for(lambda upstream: upstream.requests)
        upstream.stop()
        upstream.stop()
        assert upstream.open_connections == 0
        with pytest.raises(OSError):
            Client(upstream)


def test_a_port_that_is_taken_is_an_error():
    with ScriptedUpstream() as upstream:
        with pytest.raises(OSError):
            ScriptedUpstream(port=upstream.port).start()


def test_stats_are_for_other_processes_and_do_not_count_themselves():
    with ScriptedUpstream([tokens("a"), silence()]) as upstream, Client(upstream) as client:
        client.ask().read_until(b"\n\n")
        for _ in range(2):
            with urllib.request.urlopen(f"http://{upstream.host}:{upstream.port}/stats", timeout=5) as answer:
                stats = json.load(answer)
            assert stats == {
                "connections": 1,
                "open_connections": 1,
                "requests": 1,
                "completed": 0,
                "tokens_sent": 1,
                "closed_at": [None],
            }
        client.sock.close()
        upstream.wait_closed()
        assert (upstream.connections, upstream.open_connections) == (1, 0)


def test_two_thousand_connections():
    import resource

    count = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * count + 200:
        count = (hard - 200) // 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * count + 200), hard))
    clients = []
    try:
        with ScriptedUpstream([tokens("a"), silence()]) as upstream:
            for _ in range(count):
                clients.append(Client(upstream).ask())
            upstream.wait_for(lambda upstream: upstream.requests == count, 30)
            for client in clients:
                client.read_until(b"\n\n")
            assert upstream.open_connections == count
            left_at = time.monotonic()
            while clients:
                clients.pop().sock.close()
            peers = upstream.wait_closed(30)
            assert len(peers) == count
            assert all(left_at <= peer.closed_at for peer in peers)
    finally:
        for client in clients:
            client.sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_as_a_process(end):
    process = subprocess.Popen(
        [sys.executable, "-m", "flask_llmstream.testing.upstreams", "--tokens", "5", "--interval", "0.001"]
        + ["--text", "x", "--delay", "0.01"],
        stdout=subprocess.PIPE,
    )
    try:
        word, url = process.stdout.readline().split()
        assert word == b"ready"
        request = urllib.request.Request(url.decode() + "/chat/completions", data=b"{}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.read().count(b'{"content":"x"}') == 5
    finally:
        process.send_signal(end)
        process.communicate(timeout=10)
    assert process.returncode == 0


def test_as_a_silent_process():
    process = subprocess.Popen(
        [sys.executable, "-m", "flask_llmstream.testing.upstreams", "--tokens", "2", "--interval", "0"]
        + ["--burst", "2", "--silent"],
        stdout=subprocess.PIPE,
    )
    try:
        port = int(process.stdout.readline().rsplit(b":", 1)[1].split(b"/")[0])
        upstream = type("Address", (), {"host": "127.0.0.1", "port": port})
        with Client(upstream) as client:
            client.ask().read_until(b"\n\n\r\n")
            client.sock.settimeout(0.2)
            with pytest.raises(socket.timeout):
                client.read_until(b"[DONE]")
    finally:
        process.terminate()
        process.communicate(timeout=10)
