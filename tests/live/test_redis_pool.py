"""A Redis connection that a cancelled stream was using answers the next request, and only that."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest

from flask_llmstream.testing import LiveServer, gunicorn_server, wait_until

pytestmark = pytest.mark.live

APP = Path(__file__).with_name("apps_faults") / "redis_pool.py"

#: A redis-py that gives a connection back to its pool whatever exception passes through a reply, as
#: all between 4.4 and 4.5.4 do. Others close the connection when that happens.
CARELESS = "4.5.4"

ROUNDS = 8
#: Keys, and the sizes of their values.
KEYS = 6
SMALLEST, LARGEST = 1_000_000, 5_000_000


class Trickle:
    """Passes on what goes to and from a server, its answers in small pieces with pauses.

    A reply that takes a while can be left in the middle.
    """

    def __init__(self, port: int, piece: int = 262144, pause: float = 0.005) -> None:
        self.port = 0
        self._target = port
        self._piece, self._pause = piece, pause
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="trickle")
        self._tasks: List[Any] = []

    def __enter__(self) -> Trickle:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result(5)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: Any, writer: Any) -> None:
        self._tasks.append(asyncio.ensure_future(self._both(reader, writer)))

    async def _both(self, reader: Any, writer: Any) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            await asyncio.gather(
                self._pump(reader, to_there, 0.0),
                self._pump(there, writer, self._pause),
                return_exceptions=True,
            )
        finally:
            writer.close()
            to_there.close()

    async def _pump(self, reader: Any, writer: Any, pause: float) -> None:
        try:
            while True:
                data = await reader.read(self._piece)
                if not data:
                    break
                writer.write(data)
                await writer.drain()
                if pause:
                    await asyncio.sleep(pause)
        except ConnectionError:
            pass
        writer.close()


@pytest.fixture(scope="module")
def redis_port(redis_server: Any) -> Iterator[int]:
    with Trickle(redis_server.port) as trickle:
        yield trickle.port


@pytest.fixture(scope="module")
def digests(redis_server: Any) -> Dict[str, str]:
    """Fill the server, and return the checksum of each value by its key."""
    import redis

    chance = random.Random(1)
    sums: Dict[str, str] = {}
    with contextlib.closing(redis.Redis(host="127.0.0.1", port=redis_server.port)) as client:
        for number in range(KEYS):
            value = f"value {number} ".encode() * (chance.randint(SMALLEST, LARGEST) // 8)
            small = f"small {number}".encode()
            client.set(f"big:{number}", value)
            client.set(f"small:{number}", small)
            sums[f"big:{number}"] = hashlib.sha256(value).hexdigest()
            sums[f"small:{number}"] = hashlib.sha256(small).hexdigest()
    return sums


@pytest.fixture(scope="session")
def careless_redis(tmp_path_factory: Any) -> str:
    """A folder with that redis-py."""
    folder = str(tmp_path_factory.mktemp("careless-redis"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--target", folder, f"redis=={CARELESS}"], check=True)
    return folder


@contextlib.contextmanager
def app_server(
    redis_port: int, worker: str, python_path: Optional[str], unprotected: bool = False
) -> Iterator[LiveServer]:
    env: Dict[str, Optional[str]] = {"REDIS_PORT": str(redis_port)}
    if unprotected:
        env["UNPROTECTED"] = "1"
    # The folder with the other version goes before everything else.
    lines = f"import sys\nsys.path.insert(0, {python_path!r})\n" if python_path else ""
    with gunicorn_server(APP, worker, threads=8, env=env, config_lines=lines) as running:
        yield running


def digest(server: LiveServer, key: str, seconds: float = 8.0) -> Any:
    """Ask until the connection is free, and return what it answered."""

    def ask() -> Any:
        reader = server.request("/digest/" + key)
        with contextlib.closing(reader.sock):
            body = reader.read()
        if reader.status == 503:
            return None
        return json.loads(body.decode()) if reader.status == 200 else {"sha256": f"status {reader.status}"}

    return wait_until(ask, seconds, "the connection to be free")


def leave(server: LiveServer, path: str, after: float, how: str) -> None:
    """Ask for a stream and leave it *after* so many seconds of its second item."""
    reader = server.request(path)
    reader.read_until(b"begin")
    time.sleep(after)
    getattr(reader, how)()


def play(server: LiveServer, digests: Dict[str, str], rounds: int, chance: random.Random) -> List[str]:
    """Leave streams in the middle of replies; return what went wrong in the requests that followed."""
    wrong: List[str] = []
    for number in range(rounds):
        key, other = f"big:{chance.randrange(KEYS)}", f"small:{chance.randrange(KEYS)}"
        command = chance.choice(["get", "get", "pipeline", "xread"])
        path = f"/stream/{command}/{key}?seconds=0.2"
        leave(server, path, chance.random() * 0.08, chance.choice(["close", "reset"]))
        for each in (other, chance.choice(sorted(digests))):
            found = digest(server, each)["sha256"]
            if found != digests[each]:
                wrong.append(f"round {number}: {command} {key} was left, then {each} gave {found}")
    return wrong


def test_without_protection_a_careless_client_answers_the_wrong_request(
    redis_port: int, digests: Dict[str, str], careless_redis: str
) -> None:
    """The control: what the other tests look for does happen, and is seen."""
    with app_server(redis_port, "gevent", careless_redis, unprotected=True) as server:
        assert digest(server, "small:0")["version"] == CARELESS
        leave(server, "/stream/blpop/big:0?seconds=2", 0.1, "reset")
        found = digest(server, "small:0")["sha256"]
        assert found != digests["small:0"]
        chance = random.Random(1)
        for number in range(1, 60):
            wrong = play(server, digests, 1, chance)
            if wrong:
                break
        print(f"small:0 gave {found}; in round {number}: {wrong}")
        assert wrong


@pytest.fixture(scope="module", params=["gevent-newest", "gevent-careless", "gthread-careless"])
def server(request: Any, redis_port: int, careless_redis: str) -> Iterator[LiveServer]:
    worker, version = request.param.split("-")
    with app_server(redis_port, worker, careless_redis if version == "careless" else None) as running:
        assert (digest(running, "small:0")["version"] == CARELESS) == (version == "careless")
        yield running
        assert "Traceback" not in running.log()


def test_request_after_a_cancelled_stream_gets_its_own_answer(
    server: LiveServer, digests: Dict[str, str]
) -> None:
    seed = random.SystemRandom().randint(1, 1 << 30)
    begun = time.monotonic()
    assert play(server, digests, ROUNDS, random.Random(seed)) == []
    print(f"seed {seed}: {ROUNDS} rounds in {time.monotonic() - begun:.1f} s")


def test_idle_connection_of_a_cancelled_stream_serves_on(
    server: LiveServer, digests: Dict[str, str]
) -> None:
    """A reply that comes soon is waited for, and its connection is used again."""
    leave(server, "/stream/get/big:0", 0.01, "reset")
    begun = time.monotonic()
    assert digest(server, "small:2")["sha256"] == digests["small:2"]
    assert time.monotonic() - begun < 1.5


@pytest.mark.parametrize(
    "server,command", [("gevent-newest", "xread"), ("gevent-careless", "blpop")], indirect=["server"]
)
def test_long_wait_is_broken_off_and_its_connection_not_used_again(
    server: LiveServer, digests: Dict[str, str], command: str
) -> None:
    """A command that blocks a greenlet for a minute is not waited for."""
    ended = digest(server, "small:1")["ended"].get("big:1", 0)
    begun = time.monotonic()  # not behind it, when some of what is waited may be over
    leave(server, f"/stream/{command}/big:1?seconds=60", 0.1, "reset")
    assert digest(server, "small:1")["sha256"] == digests["small:1"]
    waited = time.monotonic() - begun
    found = digest(server, "big:1")
    assert found["sha256"] == digests["big:1"]
    assert found["ended"]["big:1"] == ended + 1
    print(f"{command}: free after {waited:.2f} s")
    assert 1.5 < waited < 10


@pytest.mark.parametrize("server", ["gthread-careless"], indirect=True)
def test_long_wait_in_a_thread_does_no_harm(server: LiveServer, digests: Dict[str, str]) -> None:
    """A thread in such a client cannot be interrupted, and is left to its end."""
    leave(server, "/stream/blpop/big:2?seconds=1", 0.1, "close")
    for key in ("small:3", "big:3"):
        assert digest(server, key)["sha256"] == digests[key]
