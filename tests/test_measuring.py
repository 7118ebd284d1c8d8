"""What counts streams: its numbers, its files, and what it finds wrong."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
from flask import Flask, Response

from flask_llmstream import LLMStream, LLMStreamMiddleware, current, stream
from flask_llmstream.exceptions import ConfigurationError
from flask_llmstream.gunicorn import child_exit
from flask_llmstream.settings import Settings
from flask_llmstream.testing import wait_until

pytest.importorskip("prometheus_client", reason="the extra 'metrics' is not installed")

from flask_llmstream.metrics import files  # noqa: E402
from flask_llmstream.metrics.files import FolderValues  # noqa: E402
from flask_llmstream.metrics.library import LibraryValues  # noqa: E402
from flask_llmstream.metrics.meter import GAPS, Meter  # noqa: E402
from flask_llmstream.metrics.table import LEAKS, METRICS, metric  # noqa: E402
from flask_llmstream.metrics.tally import Tally, is_open  # noqa: E402

Numbers = Dict[Tuple[str, Tuple[Tuple[str, str], ...]], float]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tmp_path.chmod(0o700)
    return str(tmp_path)


@pytest.fixture(autouse=True)
def not_multiprocess(monkeypatch: Any) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


@pytest.fixture
def app(folder: str) -> Iterator[Any]:
    app = Flask("measured")
    LLMStream(app, metrics=True, shared_dir=folder, status_hold=0)
    yield app
    tally = app.extensions["llmstream"].tallies.get()
    tally.values.close()


def numbers(metrics: Any) -> Numbers:
    return {
        (sample[0], tuple(sorted(sample[1].items()))): sample[2]
        for each in metrics for sample in each.samples
    }


def of_app(app: Any) -> Numbers:
    return numbers(app.extensions["llmstream"].tallies.collect())


def counter(values: FolderValues) -> Any:
    row = metric("streams_refused_total")
    return values.make(row.type, row.family, row.name, ["limit"], ["route"], row.help)


REFUSED = ("llmstream_streams_refused_total", (("limit", "route"),))


def start(app: Any, path: str) -> Any:
    """Return what a server would iterate."""
    from werkzeug.test import EnvironBuilder

    builder = EnvironBuilder(path=path)
    environ = builder.get_environ()
    builder.close()
    return app.wsgi_app(environ, lambda *head: lambda data: None)


def run(app: Any, path: str) -> bytes:
    body = start(app, path)
    try:
        return b"".join(body)
    finally:
        body.close()


def test_table_follows_the_rules_of_prometheus() -> None:
    assert len({row.name for row in METRICS}) == len(METRICS)
    for row in METRICS:
        assert row.name.startswith("llmstream_") and row.help.endswith(".")
        assert row.name.endswith("_total") == (row.type == "counter")
        assert row.name.endswith("_seconds") == (row.type == "histogram")
        assert bool(row.bounds) == (row.type == "histogram") and list(row.bounds) == sorted(row.bounds)
        assert not {"id", "owner", "user", "path"} & set(row.labels)


def test_gaps_are_sorted_into_their_buckets() -> None:
    meter = Meter(None, "a", "sse")
    for at in (5.0, 5.004, 5.084, 99.0):
        meter.deliver(1, at)
    meter.deliver(3, 99.0)
    counted = meter.counted()
    assert counted.events == 7 and counted.coalesced == 3 and counted.gap_sum == 94.0
    buckets = {bound: number for bound, number in zip((*GAPS, "inf"), counted.gaps) if number}
    assert buckets == {0.005: 2, 0.1: 1, "inf": 1}


def test_process_that_has_gone_leaves_its_counters_and_no_files(folder: str) -> None:
    first, second = FolderValues(folder), FolderValues(folder)
    counter(first).inc(3)
    counter(second).inc(4)
    row = metric("leaks")
    second.make(row.type, row.family, row.name, ["kind"], ["unclosed"], row.help).set(2)
    leaks = "llmstream_leaks", (("kind", "unclosed"),)
    found = numbers(first.collect())
    assert found[REFUSED] == 7 and found[leaks] == 2
    second.close()
    for _ in range(3):
        found = numbers(first.collect())
        assert found[REFUSED] == 7 and leaks not in found
    assert len([name for name in os.listdir(folder) if name.endswith(".alive")]) == 1
    third = FolderValues(folder)
    counter(third).inc(5)
    first.close()
    assert numbers(third.collect())[REFUSED] == 12
    third.close()
    fourth = FolderValues(folder)
    assert numbers(fourth.collect())[REFUSED] == 12
    assert sorted(os.listdir(folder))[-2:] == ["histogram_" + fourth._name + ".db", "lock"]
    fourth.close()


@pytest.mark.parametrize("call", range(1, 13))
def test_sweep_that_is_interrupted_anywhere_counts_everything_once(folder: str, call: int) -> None:
    """As a process does that is killed in it: what it was about to do next is not done."""
    gone = [FolderValues(folder) for _ in range(2)]
    for values in gone:
        counter(values).inc(5)
        row = metric("stream_duration_seconds")
        values.make(row.type, row.family, row.family + "_sum", ["route"], ["a"], row.help).inc(1.5)
    gone[0].close()
    reader = FolderValues(folder)  # adds up the first
    gone[1].close()
    calls = [0]

    class Killed(Exception):
        pass

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == call:
                raise Killed
            return real(*args, **kwargs)

        return wrapped

    class Disk:
        """The module os, of which what changes something may be the last that is done."""

        unlink, replace = staticmethod(killing(os.unlink)), staticmethod(killing(os.replace))

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

    files.os = Disk()  # type: ignore[attr-defined]
    try:
        reader.collect()
        interrupted = False
    except Killed:
        interrupted = True
    finally:
        files.os = os  # type: ignore[attr-defined]
    assert interrupted or call > 8
    for _ in range(2):
        found = numbers(reader.collect())
        assert found[REFUSED] == 10
        assert found["llmstream_stream_duration_seconds_sum", (("route", "a"),)] == 3.0
    reader.close()


def test_process_that_is_killed_is_gone(folder: str) -> None:
    script = (
        "import sys\n"
        "from flask_llmstream.metrics.files import FolderValues\n"
        "from flask_llmstream.metrics.table import metric\n"
        "row = metric('streams_refused_total')\n"
        "values = FolderValues(sys.argv[1])\n"
        "values.make(row.type, row.family, row.name, ['limit'], ['route'], row.help).inc(6)\n"
        "print('counted', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"counted\n"
        reader = FolderValues(folder)
        assert len([name for name in os.listdir(folder) if name.endswith(".alive")]) == 2
        process.kill()
        process.wait()
    assert numbers(reader.collect())[REFUSED] == 6
    assert len([name for name in os.listdir(folder) if name.endswith(".alive")]) == 1
    reader.close()


def test_process_that_is_killed_while_it_makes_its_files_is_gone(folder: str) -> None:
    for name in ("dead.alive", "counter_dead.db"):
        (Path(folder) / name).touch()
    values = FolderValues(folder)
    counter(values).inc(2)
    assert numbers(values.collect())[REFUSED] == 2
    assert not [name for name in os.listdir(folder) if "dead" in name]
    values.close()


def test_folder_that_somebody_holds_is_waited_for_and_not_for_ever(folder: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(files, "_PATIENCE", 0.05)
    values = FolderValues(folder)
    held = values._open_locked("lock")
    with pytest.raises(TimeoutError, match="locked by another process"):
        values.collect()
    assert held is not None
    os.close(held)
    values.collect()
    values.close()


def test_only_so_many_routes_are_told_apart(folder: str) -> None:
    tally = Tally(FolderValues(folder))
    assert {tally.route(f"r{number}") for number in range(300)} == {f"r{n}" for n in range(200)} | {"other"}
    assert tally.route("r7") == "r7"
    tally.values.close()


def test_stream_that_is_measured_is_what_it_was_else(app: Any) -> None:
    ends: List[Any] = []

    @app.route("/a")
    @stream
    def a() -> Iterator[str]:
        from flask_llmstream import current_stream

        current_stream.on_end(ends.append)
        yield "x"

    body = start(app, "/a")
    assert type(body).__name__ == "MeteredStream" and repr(body).startswith("<Stream ")
    data = b"".join(body)
    body.close()
    assert [end.reason for end in ends] == ["finish"] and b"done" in data
    found = of_app(app)
    assert found["llmstream_sent_bytes_total", (("route", "a"),)] == len(data)
    ended = ("format", "sse"), ("reason", "finish"), ("route", "a")
    assert found["llmstream_streams_ended_total", ended] == 1


def test_stream_that_never_begins_is_not_counted(app: Any) -> None:
    app.add_url_rule("/a", "a", stream(lambda: ["x"]))
    start(app, "/a").close()
    with app.test_client() as client:
        client.head("/a")
    assert not [key for key in of_app(app) if key[0] != "llmstream_leaks"]


def leak(found: Numbers, kind: str) -> float:
    return found["llmstream_leaks", (("kind", kind),)]


def test_stream_that_is_collected_before_its_end_is_a_leak(app: Any) -> None:
    view = lambda: Response(iter([b"data: x\n\n"] * 3), content_type="text/event-stream")  # noqa: E731
    app.add_url_rule("/a", "a", view)
    active = "llmstream_streams_active", (("format", "adopted-sse"), ("route", "a"))

    def forget() -> None:
        body = start(app, "/a")
        next(body)
        found = of_app(app)
        assert found[active] == 1 and leak(found, "abandoned") == 0
        # What else knows it: nobody who forgets to close a stream would get this far.
        current.leave(body._ident, body)
        body._entry.ticked = None

    forget()
    gc.collect()
    found = of_app(app)
    assert found[active] == 0 and leak(found, "abandoned") == 1


def test_stream_that_goes_on_after_its_request_is_a_leak_until_it_ends(app: Any) -> None:
    app.add_url_rule("/a", "a", stream(lambda: iter(["x", "y"])))
    body = start(app, "/a")
    next(body)
    over = type(body)._over
    type(body)._over = lambda self, reason: None
    try:
        body.close()
    finally:
        type(body)._over = over
    assert leak(of_app(app), "lingering") == 1
    body.close()
    assert leak(of_app(app), "lingering") == 0


@pytest.mark.parametrize("name", ["closed", "is_closed", "raw"])
def test_what_says_that_it_is_open_is_open(name: str) -> None:
    class Thing:
        pass

    thing = Thing()
    assert not is_open(None) and not is_open(thing)
    for closed in (False, True):
        value: Any = closed
        if name == "raw":
            value = Thing()
            value.closed = closed
        setattr(thing, name, value)
        assert is_open(thing) != closed


def test_leaks_can_be_read_before_there_is_any_stream(app: Any) -> None:
    assert of_app(app) == {("llmstream_leaks", (("kind", kind),)): 0.0 for kind in LEAKS}


def test_metrics_are_not_there_until_they_are_switched_on(folder: str) -> None:
    app = Flask("off")
    LLMStream(app, shared_dir=folder)
    app.add_url_rule("/a", "a", stream(lambda: ["x"]))
    with app.test_client() as client:
        answer = client.get("/llmstream/metrics")
        assert answer.status_code == 404 and b"LLMSTREAM_METRICS" in answer.data
    body = start(app, "/a")
    assert type(body).__name__ == "Stream" and not hasattr(body, "_meter")
    body.close()
    assert os.listdir(folder) == []


def test_only_those_who_may_see_them_do(folder: str) -> None:
    asked: List[str] = []
    app = Flask("asking")
    LLMStream(app, metrics=True, shared_dir=folder, authorize=lambda what: bool(asked.append(what)))
    with app.test_client() as client:
        answer = client.get("/llmstream/metrics")
    assert answer.status_code == 403 and answer.headers["Cache-Control"] == "no-store"
    assert asked == ["metrics"]


def test_folder_that_cannot_be_read_is_an_answer_and_not_a_traceback(app: Any, monkeypatch: Any) -> None:
    tally = app.extensions["llmstream"].tallies.get()
    monkeypatch.setattr(files, "_PATIENCE", 0.05)
    held = tally.values._open_locked("lock")
    with app.test_client() as client:
        assert client.get("/llmstream/metrics").status_code == 503
        os.close(held)
        assert client.get("/llmstream/metrics").status_code == 200


def test_folder_that_cannot_be_written_costs_no_stream(folder: str, caplog: Any) -> None:
    app = Flask("unwritable")
    LLMStream(app, metrics=True, shared_dir=folder)
    app.add_url_rule("/a", "a", stream(lambda: ["x"]))
    (place,) = Path(folder).iterdir()
    place.rmdir()
    assert b"done" in run(app, "/a")
    assert "nothing is measured in this process" in caplog.text
    assert of_app(app) == {}


def test_hook_of_gunicorn_removes_the_gauges_of_the_dead_alone(tmp_path: Path, monkeypatch: Any) -> None:
    child_exit(None, SimpleNamespace(pid=7))  # nothing to do
    for name in ("gauge_livesum_7", "gauge_liveall_7", "gauge_livesum_77", "gauge_all_7", "counter_7"):
        (tmp_path / f"{name}.db").touch()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    child_exit(None, SimpleNamespace(pid=7))
    assert sorted(os.listdir(str(tmp_path))) == ["counter_7.db", "gauge_all_7.db", "gauge_livesum_77.db"]


@pytest.mark.parametrize("remove_gauges", [
    pytest.param(lambda pid, folder: LibraryValues(folder).collect(), id="scrape"),
    pytest.param(lambda pid, folder: child_exit(None, SimpleNamespace(pid=pid)), id="hook of gunicorn"),
])
def test_gauges_that_somebody_else_removes_at_the_same_time_are_gone(
    tmp_path: Path, monkeypatch: Any, remove_gauges: Callable[[int, str], Any]
) -> None:
    """Raised in the hook it would end gunicorn, and in a worker spoil a scrape."""

    def second(path: Any) -> None:
        os.rename(path, str(path) + ".gone")
        remove(path)

    remove = os.remove
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    gauge = tmp_path / f"gauge_livesum_{process.pid}.db"
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(os, "remove", second)
    monkeypatch.setattr(os, "unlink", second)
    gauge.touch()
    remove_gauges(process.pid, str(tmp_path))
    assert not gauge.exists()


def test_missing_library_names_the_extra(folder: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(RuntimeError, match=r"pip install 'flask-llmstream\[metrics\]'"):
        LLMStream(Flask("without"), metrics=True, shared_dir=folder)


def test_settings_are_checked() -> None:
    for name, value in (("metrics", "yes"), ("authorize", "guest")):
        with pytest.raises(ConfigurationError):
            Settings(**{name: value})
    with pytest.raises(ConfigurationError, match="outside of a Flask app"):
        LLMStreamMiddleware(lambda environ, start_response: [], metrics=True)


def test_route_of_an_unmodified_view_is_known(app: Any) -> None:
    view = lambda: Response(iter([b"data: 1\n\n"]), content_type="text/event-stream")  # noqa: E731
    app.add_url_rule("/old", "old", view)
    assert run(app, "/old").endswith(b"data: 1\n\n")
    found = of_app(app)
    assert found["llmstream_sent_events_total", (("route", "old"),)] == 1
    assert found["llmstream_streams_started_total", (("format", "adopted-sse"), ("route", "old"))] == 1


def test_child_of_a_fork_counts_for_itself(app: Any) -> None:
    app.add_url_rule("/a", "a", stream(lambda: ["x"]))
    run(app, "/a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this process has threads
        child = os.fork()
    if not child:
        try:
            run(app, "/a")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    started = "llmstream_streams_started_total", (("format", "sse"), ("route", "a"))
    wait_until(lambda: of_app(app)[started] == 2, 5.0)
    run(app, "/a")
    assert of_app(app)[started] == 3
