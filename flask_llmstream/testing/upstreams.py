"""An LLM server that does as it is told: real HTTP on a real socket, for tests and load.

::

    with ScriptedUpstream([tokens("Hel", "lo"), silence()]) as upstream:
        for delta in openai_chat("any", [...], base_url=upstream.url):
            ...

As a process: ``python -m flask_llmstream.testing.upstreams --port 8081 --tokens 200 --interval 0.02``

Decisions
    1. It reads while it is silent, so it knows to the millisecond when its peer leaves: the
       question that most tests here ask.
    2. One thread, one event loop, thousands of connections. Not for a process that gevent has
       patched: there it belongs into one of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import ssl
import threading
import time
from typing import Any, Callable, Dict, List, Optional, TypeVar, Union

from flask_llmstream.testing.answer import Answer, Connection, Exchange, Peer
from flask_llmstream.testing.providers import speak
from flask_llmstream.testing.scripts import (
    Script,
    Step,
    chunk,
    close_delimited,
    cut,
    delay_headers,
    done,
    flood,
    headers,
    hold,
    invalid_utf8,
    raw,
    reset,
    silence,
    status,
    tokens,
    wait,
)

__all__ = [
    "Exchange",
    "Peer",
    "Script",
    "ScriptedUpstream",
    "Step",
    "chunk",
    "close_delimited",
    "cut",
    "delay_headers",
    "done",
    "flood",
    "headers",
    "hold",
    "invalid_utf8",
    "raw",
    "reset",
    "silence",
    "speak",
    "status",
    "tokens",
    "wait",
]

T = TypeVar("T")

#: Connections that may wait to be accepted: a thousand clients come at once.
_BACKLOG = 4096
#: A server that stops waits this long for its thread, in seconds.
_STOP_TIMEOUT = 10.0
_TURNS = 5


class ScriptedUpstream:
    """A context manager that serves scripts on a port of its own, until its block ends.

    :param script: a list of steps (see :mod:`flask_llmstream.testing.scripts`, and
        :mod:`flask_llmstream.testing.providers` for other providers than OpenAI), or a function
        that chooses one by the request, an :class:`Exchange`. May be replaced at any time;
        requests that run go on with theirs. Defaults to a short greeting.
    :param host: address to listen on. Defaults to 127.0.0.1.
    :param port: defaults to one that is free.
    :param ssl_context: makes it speak HTTPS.
    :param send_buffer: size of the sockets' send buffers in bytes, for tests of slow readers.
        Defaults to the system's.

    ``GET /stats`` answers with the counts, for other processes.
    """

    def __init__(
        self,
        script: Union[None, Script, Callable[[Exchange], Script]] = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: Optional[ssl.SSLContext] = None,
        send_buffer: Optional[int] = None,
    ) -> None:
        self.script = script if script is not None else [tokens("Hello", ", ", "world", "!"), done()]
        self.host = host
        self.port = port
        #: Every connection and every request so far, in the order of their arrival.
        self.peers: List[Peer] = []
        self.exchanges: List[Exchange] = []
        #: What went wrong inside the scripts themselves.
        self.errors: List[BaseException] = []
        self._open = 0
        self._ssl_context = ssl_context
        self._send_buffer = send_buffer
        self._changed = threading.Condition()
        self._loop: Any = None
        self._server: Any = None
        self._thread: Optional[threading.Thread] = None
        self._connections: List[Connection] = []

    @property
    def url(self) -> str:
        """What to give as ``base_url``."""
        return f"{'https' if self._ssl_context else 'http'}://{self.host}:{self.port}/v1"

    @property
    def origin(self) -> str:
        """The same without a path: what SDKs of other providers than OpenAI ask for."""
        return self.url[: -len("/v1")]

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return self._open

    @property
    def connections(self) -> int:
        """How many connections were ever accepted."""
        return len(self.peers)

    @property
    def requests(self) -> int:
        """How many requests have arrived."""
        return len(self.exchanges)

    def __enter__(self) -> ScriptedUpstream:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> ScriptedUpstream:
        """Listen, and return when connections are taken."""
        self._loop = asyncio.new_event_loop()
        listening = threading.Event()
        failed: List[BaseException] = []

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            try:
                self._loop.run_until_complete(self._listen())
            except BaseException as exc:
                failed.append(exc)
                self._loop.close()
                listening.set()
                return
            listening.set()
            self._loop.run_forever()
            self._loop.close()

        self._thread = threading.Thread(target=run, name="scripted-upstream", daemon=True)
        self._thread.start()
        listening.wait()
        if failed:
            self._thread = None
            raise failed[0]
        return self

    def stop(self) -> None:
        """Close every connection and stop listening."""
        if self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(_STOP_TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_TIMEOUT)
        self._thread = None

    def wait_for(self, predicate: Callable[[ScriptedUpstream], T], timeout: float = 5.0) -> T:
        """Wait until ``predicate(self)`` is true, and return what it returned.

        :raises AssertionError: if that takes longer than *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = predicate(self)
                if found:
                    return found
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(
                        f"waited {timeout:g} s in vain: {self.connections} connections,"
                        f" {self.open_connections} open, {self.requests} requests,"
                        f" last {self.exchanges[-3:]!r}"
                    )
                # Bytes and tokens change without a notice.
                self._changed.wait(min(left, 0.01))

    def wait_closed(self, timeout: float = 5.0) -> List[Peer]:
        """Wait until no connection is open any more, and return all there were.

        :raises AssertionError: if that takes longer than *timeout* seconds, or none ever came.
        """
        self.wait_for(lambda upstream: upstream.peers and not upstream.open_connections, timeout)
        return list(self.peers)

    def _notice(self, what: str, subject: Any) -> None:
        with self._changed:
            if what == "accepted":
                self.peers.append(subject.peer)
                self._connections.append(subject)
                self._open += 1
            elif what == "received":
                self.exchanges.append(subject)
            elif what == "closed" and subject.counted:
                self._open -= 1
            elif what == "lost":
                self._connections.remove(subject)
            self._changed.notify_all()

    def _connect(self) -> Connection:
        return Connection(self._serve, self._notice)

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(
            self._connect, self.host, self.port, backlog=_BACKLOG, ssl=self._ssl_context
        )
        sock = self._server.sockets[0]
        self.port = sock.getsockname()[1]
        if self._send_buffer is not None:
            # Inherited by what is accepted.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)

    async def _shut(self) -> None:
        # Whoever is just being accepted must be a connection before the server is closed, or
        # asyncio loses its socket.
        for sock in self._server.sockets:
            self._loop.remove_reader(sock.fileno())
        await _settle()
        self._server.close()
        # Also those whose end is not complete: half-closed, or waiting for a last word of TLS.
        for connection in list(self._connections):
            connection.end(reset=True)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _settle()  # transports close their sockets in callbacks of their own

    async def _serve(self, answer: Answer) -> None:
        exchange = answer.exchange
        try:
            if exchange.method == "GET" and exchange.path == "/stats":
                self._forget(exchange)
                script: Script = [status(200, json=self._stats())]
            else:
                script = self.script(exchange) if callable(self.script) else self.script
            for step in script:
                await step.run(answer)
            await answer.finish()
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            self.errors.append(exc)
            await answer.cut(reset=True)

    def _forget(self, exchange: Exchange) -> None:
        """Take back the notes on a request that asks about us, and its connection if it is new."""
        with self._changed:
            self.exchanges.remove(exchange)
            if exchange.peer.exchanges == [exchange]:
                exchange.peer.counted = False
                self.peers.remove(exchange.peer)
                self._open -= 1

    def _stats(self) -> Dict[str, Any]:
        return {
            "connections": self.connections,
            "open_connections": self.open_connections,
            "requests": self.requests,
            "completed": sum(each.completed for each in self.exchanges),
            "tokens_sent": sum(each.tokens_sent for each in self.exchanges),
            "closed_at": [each.closed_at for each in self.peers],
        }


async def _settle() -> None:
    """Let the loop do what it has put off, a few turns deep."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def main(arguments: Optional[List[str]] = None) -> None:
    """Serve one script until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m flask_llmstream.testing.upstreams",
        description="An OpenAI-compatible server that sends the same tokens to everybody.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="default: one that is free")
    parser.add_argument("--tokens", type=int, default=100, help="per answer (default: %(default)s)")
    parser.add_argument("--text", default=" token", help="of each token (default: %(default)r)")
    parser.add_argument(
        "--interval", type=float, default=0.02, help="seconds between writes (default: %(default)s)"
    )
    parser.add_argument("--burst", type=int, default=1, help="tokens per write (default: %(default)s)")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before the status")
    parser.add_argument("--silent", action="store_true", help="after the tokens send nothing more")
    chosen = parser.parse_args(arguments)
    steps = [flood(chosen.tokens, chosen.text, chosen.burst, chosen.interval)]
    if chosen.delay:
        steps.insert(0, delay_headers(chosen.delay))
    steps.append(silence() if chosen.silent else done())
    stopped = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stopped.set())
    with ScriptedUpstream(steps, host=chosen.host, port=chosen.port) as upstream:
        print(f"ready {upstream.url}", flush=True)
        stopped.wait()


if __name__ == "__main__":
    main()
