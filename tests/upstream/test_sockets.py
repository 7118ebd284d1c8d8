"""From any response to its socket; shut down, its reader wakes and its peer knows."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
import threading
import urllib.request

import pytest
import requests
import urllib3

from flask_llmstream.testing.upstreams import ScriptedUpstream, close_delimited, done, silence, tokens
from flask_llmstream.upstream import adapt, openai_chat
from flask_llmstream.upstream.sockets import find_socket, sever

MESSAGES = [{"role": "user", "content": "Hello"}]
BODY = {"model": "scripted", "messages": MESSAGES, "stream": True}


def by_requests(url):
    response = requests.post(url + "/chat/completions", json=BODY, stream=True, verify=False)
    return response, response.iter_content(1), response.close


def by_adapted_requests(url):
    source = adapt(by_requests(url)[0])
    return source, source, source.close


def by_urllib3(url):
    pool = urllib3.PoolManager(cert_reqs="NONE")
    response = pool.request("GET", url + "/chat/completions", preload_content=False)
    return response, response.stream(1), response.close


def by_http_client(url):
    host = url.split("/")[2]
    kind = http.client.HTTPConnection
    options = {}
    if url.startswith("https"):
        kind, options = http.client.HTTPSConnection, {"context": ssl._create_unverified_context()}
    connection = kind(host, **options)
    connection.request("GET", "/v1/chat/completions")
    response = connection.getresponse()
    return response, iter(lambda: response.read(1), b""), lambda: (response.close(), connection.close())


def by_urllib(url):
    response = urllib.request.urlopen(
        url + "/chat/completions", context=ssl._create_unverified_context()
    )
    return response, iter(lambda: response.read(1), b""), response.close


def httpx_of_openai():
    try:
        import httpx2 as httpx
    except ImportError:  # openai 1 and 2
        httpx = pytest.importorskip("httpx")
    return httpx


def by_httpx(url):
    client = httpx_of_openai().Client(verify=False, timeout=60)
    response = client.send(client.build_request("POST", url + "/chat/completions", json=BODY), stream=True)
    return response, response.iter_raw(), lambda: (response.close(), client.close())


def client_of_openai(url):
    openai = pytest.importorskip("openai")
    http_client = httpx_of_openai().Client(verify=False, timeout=60)
    return openai.OpenAI(base_url=url, api_key="none", http_client=http_client)


def by_openai(url):
    client = client_of_openai(url)
    stream = client.chat.completions.create(**BODY)
    return stream, iter(stream), lambda: (stream.close(), client.close())


def by_adapted_openai(url):
    stream, _, close = by_openai(url)
    source = adapt(stream)
    return source, source, close


def by_openai_stream_helper(url):
    client = client_of_openai(url)
    helper = getattr(client.chat.completions, "stream", None)
    if helper is None:
        pytest.skip("this SDK is older than its stream helper")
    manager = helper(model="scripted", messages=MESSAGES)
    stream = manager.__enter__()
    return stream, iter(stream), lambda: (manager.__exit__(None, None, None), client.close())


def by_openai_raw(url):
    client = client_of_openai(url)
    manager = client.chat.completions.with_streaming_response.create(**BODY)
    response = manager.__enter__()
    return response, response.iter_bytes(1), lambda: (manager.__exit__(None, None, None), client.close())


def by_openai_chat(url):
    session = requests.Session()
    session.verify = False
    session.trust_env = False  # a CA bundle in the environment would count for more
    source = openai_chat("scripted", MESSAGES, base_url=url, session=session)
    return source, source, lambda: (source.close(), session.close())


WAYS = [value for name, value in sorted(globals().items()) if name.startswith("by_")]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        + ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(folder / "cert.pem"), str(folder / "key.pem"))
    return context


@pytest.fixture(params=["plain", "close-delimited", "tls"])
def silent(request):
    """Return an upstream that goes silent after a token, over each kind of connection."""
    context = request.getfixturevalue("certificate") if request.param == "tls" else None
    script = [tokens("a"), silence()]
    if request.param == "close-delimited":
        script.insert(0, close_delimited)
    with ScriptedUpstream(script, ssl_context=context) as upstream:
        yield upstream


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("way", WAYS)
def test_sever_wakes_a_blocked_reader_and_the_peer_sees_it(silent, way):
    handle, pieces, close = way(silent.url)
    ended = threading.Event()
    got = []
    outcome = []

    def read():
        try:
            for piece in pieces:
                got.append(piece)
        except Exception as exc:
            outcome.append(exc)
        ended.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        silent.wait_for(lambda upstream: got and upstream.exchanges[-1].written_at)
        assert isinstance(find_socket(handle), socket.socket)
        assert sever(handle)
        assert ended.wait(5), "the reader was not woken"
        silent.wait_closed()
    finally:
        if not ended.is_set():
            silent.stop()
        reader.join()
        close()
    assert not sever(handle), "there is nothing left to break"


@pytest.mark.parametrize("way", [by_requests, by_httpx, by_openai, by_openai_chat])
def test_a_connection_that_went_back_to_its_pool_is_not_found(upstream, way):
    """Somebody else may be using it."""
    upstream.script = [tokens("a"), done()]
    handle, pieces, close = way(upstream.url)
    list(pieces)
    assert find_socket(handle) is None
    assert not sever(handle)
    close()


class Hostile:
    """Raises whatever is asked of it."""

    def __getattr__(self, name):
        raise RuntimeError(name)


class Endless:
    """Always has one more inside."""

    @property
    def response(self):
        return Endless()


class Shared:
    """Looks like httpx's response on an HTTP/2 connection."""

    is_closed = False

    def __init__(self, sock):
        stream = type("Stream", (), {"get_extra_info": lambda self, name: sock})()
        self.extensions = {"network_stream": stream, "http_version": b"HTTP/2"}


@pytest.mark.parametrize(
    "make", [lambda: None, int, str, bytes, list, dict, object, Hostile, Endless, requests.Response]
)
def test_strangers_have_no_socket(make):
    assert find_socket(make()) is None
    assert sever(make()) is False


def test_a_connection_of_http_client(upstream):
    connection = http.client.HTTPConnection(upstream.host, upstream.port)
    assert find_socket(connection) is None
    connection.connect()
    assert find_socket(connection) is connection.sock
    connection.close()


def test_a_socket_itself():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert find_socket(ours) is ours
        assert find_socket(Shared(ours)) is None, "other streams share that connection"
        assert sever(ours)
        assert theirs.recv(1) == b""
    assert not sever(ours), "it is closed"


def test_a_generator_is_looked_into():
    """Ollama's client gives nothing else away."""

    def chunks():
        with requests.post(upstream.url, json=BODY, stream=True) as r:
            yield from r.iter_content(1)

    with ScriptedUpstream([tokens("a"), silence()]) as upstream:
        generator = chunks()
        assert find_socket(generator) is None, "it has not begun"
        next(generator)
        assert sever(generator)
        upstream.wait_closed()
        generator.close()
    assert not sever(generator)
