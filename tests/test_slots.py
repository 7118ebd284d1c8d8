"""Counting streams: within a process, across processes, and what is left when one of them ends."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Set

import pytest
from costs import cost
from flask import Flask, jsonify, request

from flask_llmstream import LLMStream, LLMStreamMiddleware
from flask_llmstream import limits as limits_module
from flask_llmstream import stream, stream_response
from flask_llmstream.exceptions import ConfigurationError, LimitReached
from flask_llmstream.limits import Limits, Seat, Slots, current_limits
from flask_llmstream.settings import MOST_COUNTED, Settings
from flask_llmstream.signals import stream_refused
from flask_llmstream.testing import wait_until

#: Takes what it can of a name, and says how much that was.
TAKER = """
import sys
from flask_llmstream.limits import Slots
slots = Slots(sys.argv[1])
taken = [slots.take("owner:ada", 5) for _ in range(int(sys.argv[2]))]
print(sum(each is not None for each in taken), flush=True)
sys.stdin.read()
"""


def taker(folder: Path, wanted: int) -> Any:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    return subprocess.Popen(
        [sys.executable, "-c", TAKER, str(folder), str(wanted)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
    )


def take_all(slots: Slots, name: str, limit: int) -> List[Callable[[], None]]:
    taken = []
    while True:
        give_back = slots.take(name, limit)
        if give_back is None:
            return taken
        taken.append(give_back)


def test_places_are_shared_by_processes_and_free_when_one_is_killed(tmp_path: Path) -> None:
    slots = Slots(str(tmp_path))
    mine = [slots.take("owner:ada", 5) for _ in range(2)]
    assert all(mine)
    process = taker(tmp_path, 9)
    try:
        assert process.stdout.readline() == b"3\n"
        assert slots.take("owner:ada", 5) is None
        assert slots.take("owner:bob", 5) is not None, "others are not meant"
        assert slots.take("owner:ada", 6) is not None, "a limit may change while others run"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        # Two of ours are among the first five; the place beyond may be the third of ours.
        taken: List[Any] = []
        wait_until(lambda: taken.extend(take_all(slots, "owner:ada", 5)) or len(taken) == 3, 5.0, "three")
        assert not take_all(slots, "owner:ada", 5)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_place_is_given_back_once_and_only_the_own(tmp_path: Path) -> None:
    slots = Slots(str(tmp_path))
    first, second = slots.take("a", 2), slots.take("a", 2)
    assert first is not None and second is not None and slots.take("a", 2) is None
    first()
    assert len(take_all(slots, "a", 2)) == 1
    second()
    assert len(take_all(slots, "a", 2)) == 1


def test_forked_child_counts_for_itself_and_frees_nothing_of_its_parent(tmp_path: Path) -> None:
    script = """
import os, sys
from flask_llmstream.limits import Seat, Slots
slots, seat = Slots(sys.argv[1]), Seat()
seat.hold(slots.take("a", 1), source=True)
child = os.fork()
if not child:
    del seat
    os._exit(0 if Slots(sys.argv[1]).take("a", 1) is None else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60, env=environment
    )


def test_many_threads_get_as_many_places_as_there_are(tmp_path: Path) -> None:
    app, settings = Flask(__name__), Settings(max_streams=50, shared_dir=str(tmp_path / "shared"))
    limits = Limits()
    seats: List[Seat] = []

    def run() -> None:
        for _ in range(20):
            seat = Seat()
            try:
                limits.admit(seat, app, settings, route="r", route_limit=30)
            except LimitReached:
                continue
            seats.append(seat)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seats) == limits.running() == 30, "who finds the route full holds no place of the worker"
    for seat in seats:
        seat.source_ended()
    assert limits.running() == 30, "the connection is there until the server has let go of it"
    for seat in seats * 2:
        seat.leave()
    assert limits.running() == 0


def test_place_that_is_given_back_while_others_look_is_there_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "_REST", 1e9)
    slots = Slots(str(tmp_path))
    give_back: Any = slots.take("owner:ada", 1)

    class Crossing(Set[Any]):
        """What was found in it has just gone."""

        def __contains__(self, place: object) -> bool:
            found = super().__contains__(place)
            give_back()
            return found

    slots._held = Crossing(slots._held)
    assert slots.take("owner:ada", 1) is None
    slots._held = set(slots._held)
    assert slots.take("owner:ada", 1) is not None


def test_folder_that_cannot_be_used_is_said_and_each_worker_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    slots = Slots(str(tmp_path / "gone"))
    with caplog.at_level(logging.WARNING, "flask_llmstream"):
        assert len(take_all(slots, "a", 3)) == 3
    for give_back in take_all(slots, "b", 2):
        give_back()
    assert len(take_all(slots, "b", 2)) == 2
    app = Flask(__name__)
    settings = Settings(max_streams_per_owner=1, shared_dir=str(tmp_path / "file" / "below"))
    limits, seat = Limits(), Seat()
    with caplog.at_level(logging.WARNING, "flask_llmstream"):
        limits.admit(seat, app, settings, owner="ada")
        with pytest.raises(LimitReached):
            limits.admit(Seat(), app, settings, owner="ada")
    said = [record.getMessage() for record in caplog.records if "each worker alone" in record.getMessage()]
    assert len(said) == 2


def test_nothing_is_counted_where_nothing_is_limited() -> None:
    app = Flask(__name__)
    with app.test_request_context():
        assert stream_response(["a"]).llmstream_seat is None
    assert current_limits().running() == 0


def test_response_that_is_thrown_away_gives_its_place_back(tmp_path: Path) -> None:
    app = Flask(__name__)
    LLMStream(app, max_streams=2, shared_dir=str(tmp_path / "shared"))
    with app.test_request_context():
        kept = stream_response(["a"], max_streams=1)
        assert stream_response(["b"], max_streams=1).status_code == 503
        other = stream_response(["c"])
        assert current_limits().running() == 2
        refused = stream_response(["d"])
        assert (refused.status_code, refused.json["error"]["code"]) == (503, "busy")
        kept.close()
        del other
        gc.collect()
        assert current_limits().running() == 0
        with pytest.raises(ValueError, match="hop-by-hop"):
            stream_response(["e"], headers={"Connection": "close"})
        assert current_limits().running() == 0


def test_places_are_free_when_the_stream_is_over_though_somebody_has_it_still(tmp_path: Path) -> None:
    app = Flask(__name__)
    LLMStream(app, max_streams=2, max_streams_per_owner=1, shared_dir=str(tmp_path / "shared"), status_hold=0)
    ended = []

    def begin() -> Any:
        response = stream_response(["a", "b"])
        if response.status_code == 200:
            response.llmstream.on_end(lambda end: ended.append(current_limits().running()))
            return iter(response(dict(request.environ), lambda status, headers: None))
        return response.status_code

    with app.test_request_context(headers={"Authorization": "Bearer ada"}):
        body = begin()
        assert begin() == 429
        while b"event: done" not in next(body):
            assert begin() == 429
        assert current_limits().running() == 1, "its last bytes may still be on their way"
        left = begin()
        assert next(left) and begin() == 503, "the owner has a place, the worker has none"
        left.close()
        left.close()
        assert current_limits().running() == 1
        with pytest.raises(StopIteration):
            next(body)
        assert current_limits().running() == 0 and ended == [1, 0]
        body.close()
        response = begin()
        response.close()
        assert current_limits().running() == 0


def test_source_of_a_refused_stream_is_closed_and_not_begun(tmp_path: Path) -> None:
    class Source:
        closed = 0

        def __iter__(self) -> Any:
            raise AssertionError("was begun")

        def close(self) -> None:
            self.closed += 1

    app = Flask(__name__)
    LLMStream(app, max_streams=1)
    with app.test_request_context():
        kept, source = stream_response(["a"]), Source()
        assert stream_response(source).status_code == 503 and source.closed == 1
        kept.close()


@pytest.mark.skipif(
    importlib.util.find_spec("blinker") is None, reason="Flask before 2.3 comes without blinker"
)
def test_signal_says_which_limit_and_its_receivers_cannot_spoil_the_answer() -> None:
    app, refusals = Flask(__name__), []
    LLMStream(app, max_streams=1)

    def note(sender: Any, limit: str, retry_after: float) -> None:
        refusals.append((sender, limit))
        raise ValueError("a receiver that fails")

    stream_refused.connect(note)
    try:
        with app.test_request_context():
            kept = stream_response(["a"])
            assert stream_response(["b"]).status_code == 503
            kept.close()
    finally:
        stream_refused.disconnect(note)
    assert refusals == [(app, "worker")]


def test_app_of_another_framework_has_the_limit_of_its_worker() -> None:
    closed = []

    class Body:
        def __iter__(self) -> Any:
            return iter([b"data: a\n\n"])

        def close(self) -> None:
            closed.append(self)

    def returning(environ: Dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [("Content-Type", "text/event-stream"), ("ETag", "x"), ("X-Own", "y")])
        return Body()

    def yielding(environ: Dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        try:
            yield b"data: a\n\n"
        finally:
            closed.append("generator")

    started: List[Any] = []
    environ = {"REQUEST_METHOD": "GET"}

    def start(status: str, headers: Any) -> None:
        started.append((status, dict(headers)))

    for app, count in ((returning, 1), (yielding, 2)):
        outer = LLMStreamMiddleware(app, max_streams=1, max_streams_per_owner=1)
        running = LLMStreamMiddleware(returning, max_streams=1)(dict(environ), start)
        del closed[:], started[:]
        refused = outer(dict(environ), start)
        body = b"".join(refused)
        getattr(refused, "close", lambda: None)()
        (status, headers), = started
        assert status.startswith("503 ") and b'"busy"' in body and len(closed) == 1
        assert "ETag" not in headers and int(headers["Retry-After"]) >= 2
        assert headers.get("X-Own") == ("y" if app is returning else None)
        running.close()
    assert current_limits().running() == 0


@pytest.mark.parametrize("wrong", [-1, True, "3", 2.5, MOST_COUNTED + 1])
def test_limit_that_cannot_be_is_refused(wrong: Any) -> None:
    app = Flask(__name__)
    with app.test_request_context(), pytest.raises(ValueError, match="max_streams is"):
        stream_response([], max_streams=wrong)
    with pytest.raises(ConfigurationError, match="MAX_STREAMS_PER_OWNER is"):
        Settings(max_streams_per_owner=wrong)


def test_begin_of_a_stream_costs_microseconds_more(tmp_path: Path) -> None:
    """The figures are printed; the bound is only there to see what would be a mistake."""
    app = Flask(__name__)
    LLMStream(app, max_streams=2000, max_streams_per_owner=20, shared_dir=str(tmp_path / "shared"))
    bare = Flask(__name__)
    LLMStream(bare)

    def measure(app: Flask, headers: Optional[Dict[str, str]], **options: Any) -> float:
        with app.test_request_context(headers=headers):
            return min(cost(lambda: stream_response([], **options).close()) for _ in range(150)) * 1e6

    ada = {"Authorization": "Bearer ada"}
    without, worker = measure(bare, ada), measure(app, None)
    owner, both = measure(app, ada), measure(app, ada, max_streams=100)
    print(
        f"\n{without:.1f} us without limits; +{worker - without:.1f} us with the worker's,"
        f" +{owner - without:.1f} us with the owner's, too, +{both - without:.1f} us with all three"
    )
    assert both - without < 2000


def test_view_that_answers_itself_takes_nothing() -> None:
    app = Flask(__name__)
    LLMStream(app, max_streams=1)

    @app.route("/")
    @stream
    def view() -> Any:
        return jsonify(error="no")

    for _ in range(3):
        assert app.test_client().get("/").status_code == 200
    for _ in range(3):
        app.test_client().head("/")
    assert current_limits().running() == 0
