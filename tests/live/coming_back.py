"""Readers who lose their connection and come back, and the proxy that takes it from them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import struct
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple
from urllib.parse import urlencode

from untraced import untraced_threads

from flask_llmstream.client import StreamClient
from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.sse import SSEDecoder
from flask_llmstream.testing import read_stream, send_request
from flask_llmstream.testing.upstreams import Script, done, tokens

__all__ = [
    "Cuts", "CuttingProxy", "chat", "end_of", "event_source", "in_background", "script_for", "stream_client",
    "together", "words_of",
]

_PIECES = ["{}", "é{}", "\n{}", '"{}\\', "😀{}", " {} ", "data: {}", "{}\r\n"]
#: Seconds in which any answer must go on.
_PATIENCE = 30.0
_READER = re.compile(rb"(?i)\r\nx-reader: *([^\r\n]*)")


def words_of(model: str) -> List[str]:
    """Return what the upstream says: ``<name>-<count>-<milliseconds between two>`` are its model's parts."""
    name, count = model.split("-")[:2]
    return [_PIECES[number % len(_PIECES)].format(f"{name}.{number}") for number in range(int(count))]


def script_for(exchange: Any) -> Script:
    """Choose the script of a scripted upstream by the model that it is asked for."""
    model = exchange.json["model"]
    return [tokens(*words_of(model), interval=int(model.split("-")[2]) / 1000), done()]


def chat(model: str, path: str = "/chat", **options: Any) -> str:
    """Return the address of a resumable stream."""
    query = {"model": model, "models": model}
    if options:
        query["options"] = json.dumps(options)
    return f"{path}?{urlencode(query)}"


class Cuts:
    """Cuts each reader's answers a few times, at random.

    :param times: how often for each.
    :param least: bytes of a reader's first answer that get through.
    :param most: bytes that get through at most.
    """

    def __init__(self, times: int, least: int = 0, most: int = 700, seed: int = 0) -> None:
        self._chance = random.Random(seed)
        self._times, self._least, self._most = times, least, most
        self.made: Dict[str, int] = {}

    def __call__(self, reader: str) -> Optional[int]:
        """Return after how many bytes of the body to cut, ``None`` for not at all."""
        made = self.made.get(reader, 0)
        if made >= self._times:
            return None
        self.made[reader] = made + 1
        return self._chance.randint(0 if made else self._least, self._most)


class CuttingProxy:
    """Passes on connections, and cuts some in the middle of the answer, with a FIN or a RST.

    :param target: where to.
    :param plan: after how many bytes of the answer's body to cut, by the header ``X-Reader`` of the
        request or else by its target; ``None`` for not at all.
    """

    def __init__(self, target: Tuple[str, int], plan: Callable[[str], Optional[int]]) -> None:
        self.target = target
        self.address = ("127.0.0.1", 0)
        self._plan = plan
        self._resets = random.Random(1)
        #: asyncio itself knows tasks weakly only.
        self._tasks: Set[Any] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cutting-proxy")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024))
        self.address = self._server.sockets[0].getsockname()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _stop(self) -> None:
        self._server.close()
        for _ in range(100):  # some have begun but now, some have clean-up of their own
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)

    async def _serve(self, reader: Any, writer: Any) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        writers = [writer]
        # asyncio complains of servers whose connections are cancelled.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                found = _READER.search(head)
                cut = self._plan((found.group(1) if found else head.split()[1]).decode())
                up_reader, up_writer = await asyncio.open_connection(*self.target)
                writers.append(up_writer)
                up_writer.write(head)
                asking = asyncio.ensure_future(self._ask(reader, up_writer))
                try:
                    await self._answer(up_reader, writer, cut)
                finally:
                    asking.cancel()
            finally:
                reset = self._resets.random() < 0.5
                for each in writers:
                    if reset:
                        sock = each.get_extra_info("socket")
                        with contextlib.suppress(OSError):
                            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        each.transport.abort()
                    else:
                        each.close()
                self._tasks.discard(task)

    async def _ask(self, reader: Any, up_writer: Any) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = await reader.read(65536)
                if not data:
                    up_writer.close()
                    return
                up_writer.write(data)

    async def _answer(self, up_reader: Any, writer: Any, left: Optional[int]) -> None:
        writer.write(await up_reader.readuntil(b"\r\n\r\n"))
        while left is None or left > 0:
            data = await up_reader.read(65536)
            if not data:
                return
            if left is not None:
                data = data[:left]
                left -= len(data)
            writer.write(data)
            await writer.drain()


def event_source(
    address: Tuple[str, int], path: str, reader: str, headers: Optional[Dict[str, str]] = None
) -> Tuple[str, List[Event]]:
    """Read a stream as EventSource does, until 204; return its text and all events but those."""
    text, others, last = "", [], ""
    retry = 0.02
    while True:
        fields = dict(headers or {}, **{"X-Reader": reader})
        if last:
            fields["Last-Event-ID"] = last
        try:
            with socket.create_connection(address, _PATIENCE) as sock:
                send_request(sock, path, headers=fields)
                answer = read_stream(sock, _PATIENCE)
                if answer.status == 204:
                    return text, others
                assert answer.status == 200, (answer.status, answer.read())
                decoder = SSEDecoder()
                for _, data in answer:
                    for event in decoder.feed(data):
                        if event.event is None:
                            text += json.loads(event.data)["text"]
                        else:
                            others.append(event)
                        last = event.id or last
        except ConnectionError:
            pass
        time.sleep(retry)


def stream_client(
    url: str, reader: str, headers: Optional[Dict[str, str]] = None, post: bool = True, retries: int = 200
) -> Tuple[str, StreamClient]:
    """Read a stream with our client, which comes back by itself; return the text and the client."""
    client = StreamClient(
        url, json={} if post else None, headers=dict(headers or {}, **{"X-Reader": reader}),
        retries=retries, sleep=lambda seconds: time.sleep(min(seconds, 0.05)), idle_timeout=_PATIENCE,
    )
    with client:
        return "".join(client.text()), client


def end_of(events: List[Event]) -> Any:
    """Return the name and the data of the one event that ends a stream."""
    ends = [event for event in events if event.event in ("done", "failed")]
    assert len(ends) == 1, events
    return ends[0].event, json.loads(ends[0].data)


def together(functions: List[Callable[[], Any]], timeout: float = 90.0) -> List[Any]:
    """Call all *functions* at the same time; return what they return or raise."""
    results: List[Any] = [AssertionError("did not end")] * len(functions)

    def run(number: int) -> None:
        try:
            results[number] = functions[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(functions))]
    with untraced_threads():
        for thread in threads:
            thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return results


@contextlib.contextmanager
def in_background(function: Callable[[], Any]) -> Iterator[List[Any]]:
    """Call *function* in a thread; what it returns or raises is in the list when the block has ended."""
    found: List[Any] = []

    def run() -> None:
        try:
            found.append(function())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield found
    thread.join(60)
    assert found, "did not end"
