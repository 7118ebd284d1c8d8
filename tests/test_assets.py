"""The files for browsers, as the blueprint serves them."""

from __future__ import annotations

import mimetypes
from typing import Any

import pytest
from flask import Flask

import flask_llmstream
from flask_llmstream import LLMStream
from flask_llmstream.assets import FOLDER

ALL = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())


@pytest.fixture
def client() -> Any:
    app = Flask("assets")
    LLMStream(app)
    return app.test_client()


@pytest.mark.parametrize("name", ALL)
def test_every_file_of_the_folder_is_served(client: Any, name: str, monkeypatch: Any) -> None:
    # As on systems where somebody else has registered the ending.
    monkeypatch.setitem(mimetypes.types_map, ".js", "text/plain")
    answer = client.get("/llmstream/" + name)
    assert answer.status_code == 200 and answer.data == (FOLDER / name).read_bytes()
    kinds = {"js": "text/javascript", "mjs": "text/javascript", "css": "text/css"}
    kind = kinds.get(name.rpartition(".")[2], "text/plain")
    assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-cache"


def test_files_are_asked_for_again_and_not_sent_again(client: Any) -> None:
    head = client.head("/llmstream/llmstream.js")
    assert (head.status_code, head.data) == (200, b"")
    assert int(head.headers["Content-Length"]) == (FOLDER / "llmstream.js").stat().st_size
    fresh = client.get("/llmstream/llmstream.js", headers={"If-None-Match": head.headers["ETag"]})
    assert (fresh.status_code, fresh.data) == (304, b"")
    assert fresh.headers["Cache-Control"] == "no-cache"
    stale = client.get("/llmstream/llmstream.js", headers={"If-None-Match": '"other"'})
    assert stale.status_code == 200


def test_with_the_version_it_is_kept_for_ever(client: Any) -> None:
    version = flask_llmstream.__version__
    answers = [client.get(f"/llmstream/llmstream.js?v={each}") for each in (version, "0.0")]
    assert [answer.headers["Cache-Control"] for answer in answers] == [
        "public, max-age=31536000, immutable", "no-cache"
    ]


@pytest.mark.parametrize("name", [
    "nothing.js", "vendor", "", "../assets.py", "%2e%2e/assets.py", "..%2fassets.py",
    "vendor/../llmstream.js", "..%5cassets.py", "./llmstream.js",
    "llmstream.js%00", "llmstream.js/", "%2fetc/passwd", "/etc/passwd",
    "LLMSTREAM.JS", "__pycache__/x.pyc", "C:%5cboot.ini",
])
def test_nothing_else_is_served(client: Any, name: str) -> None:
    answer = client.get("/llmstream/" + name, follow_redirects=True)
    assert answer.status_code == 404
    assert b"import" not in answer.data and b"root:" not in answer.data


def test_other_methods_and_the_streams_are_as_they_were(client: Any) -> None:
    assert client.post("/llmstream/llmstream.js").status_code == 405
    app = client.application
    app.secret_key = "x"
    assert client.get("/llmstream/streams/nobodys").data == b"There is no such stream."
