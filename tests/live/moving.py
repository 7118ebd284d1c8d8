"""Readers who follow their streams from worker to worker, and the server that they move about in."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional
from urllib.parse import quote

import requests
from asking import APPS

from flask_llmstream.client import StreamClient
from flask_llmstream.testing import LiveServer, StreamReader, gunicorn_server
from flask_llmstream.testing.upstreams import Exchange, Script, ScriptedUpstream, done, hold, tokens

__all__ = ["Reader", "address", "all_completed", "for_three_seconds", "held", "opened", "serve", "words"]


def serve(
    folder: Path, worker: str, lines: str = "", workers: int = 2, certificate: Any = (None, None),
    **settings: Any
) -> Any:
    """Run the app, with the settings of its extension."""
    env = {"LOG": f"sqlite:///{folder / 'log.db'}", "SETTINGS": json.dumps(settings)}
    threads = 64 if worker == "gthread" else None
    lines = f"graceful_timeout = 20\naccesslog = None\n{lines}"
    return gunicorn_server(
        APPS / "handover.py", worker, workers, threads, env=env, config_lines=lines,
        certfile=certificate[0], keyfile=certificate[1],
    )


def words(number: str, count: int = 50) -> List[str]:
    return [f"{number}.{each} " for each in range(count)]


def held(flag: threading.Event, count: int) -> Callable[[Exchange], Script]:
    """Ten words a second that only this request gets; the last two wait for *flag*.

    A busy machine takes as long to start workers as the others take to say it all.
    """

    def script(exchange: Exchange) -> Script:
        said = words(exchange.json["messages"][0]["content"], count)
        return [tokens(*said[:-2], interval=0.1), hold(flag), tokens(*said[-2:], interval=0.1), done()]

    return script


def for_three_seconds(exchange: Exchange) -> Script:
    number = exchange.json["messages"][0]["content"]
    return [tokens(*words(number, 30), interval=0.1), done()]


def all_completed(upstream: ScriptedUpstream) -> bool:
    """Return whether all scripts ran to their ends; who reads one to its end may know a moment earlier."""
    return all(exchange.completed for exchange in upstream.exchanges)


def address(upstream: ScriptedUpstream, number: object = 0, path: str = "/chat") -> str:
    return f"{path}?number={number}&url={quote(upstream.url)}"


class Reader:
    """Reads a stream in a thread, and comes back until it is complete.

    :param ca_file: the certificate of a server that speaks TLS.
    """

    def __init__(self, url: str, retries: int = 8, ca_file: Optional[str] = None) -> None:
        self.text = ""
        self.begun = threading.Event()
        self.failed: Optional[BaseException] = None
        #: The worker that has answered each of its requests.
        self.workers: List[str] = []
        self._session = requests.Session()
        self._session.trust_env = False  # what the environment says of certificates would win
        self._session.verify = ca_file or True
        self._session.hooks["response"].append(self._note)
        self._client = StreamClient(url, session=self._session, retries=retries, idle_timeout=15)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _note(self, response: requests.Response, **kwargs: Any) -> None:
        self.workers.append(response.headers.get("Worker", str(response.status_code)))

    def _run(self) -> None:
        try:
            with self._session, self._client as client:
                for piece in client.text():
                    self.text += piece
                    self.begun.set()
        except BaseException as error:
            self.failed = error

    @property
    def location(self) -> str:
        assert self._client.response is not None
        return self._client.response.headers["Content-Location"]

    def join(self) -> str:
        self._thread.join(30)
        assert not self._thread.is_alive(), self.text
        assert self.failed is None, (self.failed, self.workers, self.text)
        return self.text


@contextlib.contextmanager
def opened(server: LiveServer, path: str, **request: Any) -> Iterator[StreamReader]:
    reader = server.request(path, **request)
    with contextlib.closing(reader.sock):
        yield reader
