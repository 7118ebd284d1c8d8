"""The Python that docs/*.md show runs as it stands."""

from __future__ import annotations

import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from flask import Flask, request
from werkzeug.serving import make_server

from flask_llmstream import LLMStream, stream, stream_response, tracing
from flask_llmstream.client import StreamClient

DOCS = Path(__file__).resolve().parent.parent / "docs"
pytestmark = pytest.mark.checkout


def blocks() -> List[Tuple[str, str]]:
    found = []
    for page in sorted(DOCS.glob("*.md")):
        for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            found.append((page.stem, code))
    return found


def test_there_is_something_to_run() -> None:
    assert len(blocks()) >= 3


@pytest.fixture
def handlers() -> Iterator[None]:
    """A page may show how to handle a signal."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    tracing.switch_on(None)  # as a page may have done


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a stream, for pages that read one."""
    app = Flask("streaming")

    def answer() -> Any:
        structured = "structured" in request.args
        return stream_response([{"title": "Soup"}] if structured else ["Hel", "lo"])

    app.add_url_rule("/answer", "answer", answer, methods=["GET", "POST"])
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/answer"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("page, code", blocks(), ids=[page for page, _ in blocks()])
def test_block_runs(page: str, code: str, handlers: None, url: str, capsys: Any) -> None:
    def application(environ: Dict[str, Any], start_response: Any) -> List[bytes]:
        raise NotImplementedError

    # What the text around a block takes for granted.
    names: Dict[str, Any] = {
        "__name__": "__main__", "app": Flask(__name__), "application": application,
        "ask_the_model": lambda: ["a", "b"], "LLMStream": LLMStream, "stream": stream,
        "Session": SimpleNamespace(remove=lambda: None),
        "StreamClient": StreamClient, "url": url, "messages": [{"role": "user", "content": "Hello"}],
    }
    exec(compile(code, page, "exec"), names)
    if page == "client" and "print(piece" in code:
        assert capsys.readouterr().out.startswith("Hello")
    if page == "client" and "text" in names:
        assert names["text"] == "Hello"
    if page == "retrofit" and "answer" in names:
        answer = names["app"].test_client().get("/answer")
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert b"data: a\n\ndata: b\n\n" in answer.data
    if page == "shutdown":
        with pytest.raises(SystemExit):
            signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)  # type: ignore[operator, misc]
