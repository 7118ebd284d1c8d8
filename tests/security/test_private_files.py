"""What is written to a disk is for its owner only, and nobody else can say where it is written."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any, Iterator

import pytest
from flask import Flask

from flask_llmstream import LLMStream, stream_response
from flask_llmstream.eventlog.peers import Ears, directory_for, tell
from flask_llmstream.folders import app_folder, private_folder
from flask_llmstream.journal import current_journals
from flask_llmstream.runtime import current_runtime


@pytest.fixture
def generous() -> Iterator[None]:
    """With the umask of a careless deployment."""
    before = os.umask(0)
    yield
    os.umask(before)


def others_may(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode) & 0o077


def test_everything_that_a_stream_leaves_is_private(tmp_path: Path, generous: None) -> None:
    """The log holds what was said: its file, its write-ahead log, its sockets."""
    folder = tmp_path / "open to all"
    folder.mkdir(0o777)
    url = f"sqlite:///{folder}/streams.db"
    app = Flask(__name__)
    app.secret_key = "of the tests alone"
    LLMStream(app, event_log=url)

    @app.route("/ask")
    def ask() -> Any:
        return stream_response(["the answer"], resumable=True)

    client = app.test_client()
    answer = client.get("/ask")
    assert b"the answer" in answer.data
    assert b"the answer" in client.get(answer.headers["Content-Location"]).data
    left = sorted(folder.rglob("*"))
    assert {path.name for path in left} >= {"streams.db", "streams.db-wal", "streams.db-shm"}
    for path in left:
        inside = path.parent != folder and not others_may(path.parent)
        assert inside or not others_may(path), f"{path.name}: {oct(path.lstat().st_mode)}"
    current_journals()[url].log.close()


def test_folders_are_private_and_only_ours_are_taken(
    tmp_path: Path, generous: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was faster in the temporary directory gains nothing by it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = Path(app_folder(Flask(__name__), "", "slots"))
    while made != tmp_path:
        assert not others_may(made), made
        made = made.parent
    target = tmp_path / "target"
    target.mkdir(0o700)
    link, wide, lost = tmp_path / "link", tmp_path / "wide", tmp_path / "lost"
    link.symlink_to(target)
    wide.mkdir(0o777)
    lost.symlink_to(tmp_path / "nowhere")
    for taken in (link, wide, lost):
        with pytest.raises(RuntimeError, match="belongs to somebody else or is open to others"):
            private_folder(str(taken))
    assert not list(target.iterdir()) and not list(wide.iterdir())
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(RuntimeError, match="belongs to somebody else"):
        private_folder(str(target))


@pytest.mark.parametrize("kind", ["wide", "link", "file"])
def test_sockets_are_bound_in_no_directory_of_others(tmp_path: Path, kind: str) -> None:
    """The log looks by itself then, and neither sends nor believes a word."""
    place = Path(directory_for(str(tmp_path / "log.db")))
    target = tmp_path / "target"
    target.mkdir(0o700)
    if kind == "wide":
        place.mkdir()
        place.chmod(0o777)
    elif kind == "link":
        place.symlink_to(target)
    else:
        place.write_text("")
    ears = Ears(str(place), current_runtime())
    assert ears.path is None
    tell(str(place), b"stop " + b"a" * 16)
    assert not list(target.iterdir())
    ears.close()


def test_log_is_not_made_through_a_link(tmp_path: Path) -> None:
    """``O_EXCL`` follows none; where one leads to a file it is that file which the app was told to use."""
    from flask_llmstream.eventlog.database import _create

    link = tmp_path / "streams.db"
    link.symlink_to(tmp_path / "elsewhere")
    _create(str(link))
    assert not (tmp_path / "elsewhere").exists()
