"""``flask llmstream check``: what follows from a deployment, from settings, and from libraries."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Dict, FrozenSet, Tuple

import pytest

from flask_llmstream.doctor.baseline import load_baseline, write_baseline
from flask_llmstream.doctor.checks import check
from flask_llmstream.doctor.facts import AppFacts, Deployment, Pool, Route, Use
from flask_llmstream.doctor.findings import Finding, as_json, as_text, exit_status
from flask_llmstream.doctor.serving import look_at_command, look_at_uwsgi
from flask_llmstream.settings import Settings

GEVENT = Deployment("gunicorn.conf.py", "gevent", worker_connections=2000, timeout=60)
USE = (Use("db.session.query(User)", "app.py:7"),)
RESUMABLE = Route("chat", "/chat", "app.py:3", own=True, resumable=True)
BEFORE = Route("chat", "/chat", "app.py:3", own=True, queries_before=USE)
INSIDE = Route("chat", "/chat", "app.py:3", own=True, queries_inside=USE)
#: Of uWSGI.
PATCHED = "gevent = 500\nsocket-timeout = 30\ngevent-monkey-patch = 1"
PSYCOPG2 = (("psycopg2", "psycogreen", "it is required in requirements.txt:4"),)


def facts(settings: Any = None, **known: Any) -> AppFacts:
    return AppFacts("app", settings=Settings(**(settings or {})), **known)


def served(**changed: Any) -> AppFacts:
    return facts(deployment=GEVENT._replace(**changed))


def pooled(route: Route, limit: int = 5, deployment: Any = GEVENT, **more: Any) -> AppFacts:
    known: Dict[str, Any] = dict({"ends_context_early": False}, **more)
    return facts(known.pop("settings", None), routes=(route,), pools=(Pool("the database", limit),),
                 deployment=deployment, **known)


def by_command(line: str) -> AppFacts:
    return facts(deployment=look_at_command(line, "--command"))


def by_uwsgi(lines: str) -> AppFacts:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "uwsgi.ini")
        file.write_text(f"[other]\nharakiri = 1\n[uwsgi]\n# threads = 9\n\n{lines}\n")
        return facts(deployment=look_at_uwsgi(str(file)))


CASES: Dict[str, Tuple[AppFacts, FrozenSet[str]]] = {
    name: (known, frozenset(expected.split()))
    for name, known, expected in [
        ("nothing known", facts(), ""),
        ("good", facts(deployment=GEVENT), ""),
        ("sync", served(worker="sync"), "worker-sync timeout-cuts-streams"),
        ("sync, no timeout", served(worker="sync", timeout=0), "worker-sync timeout-off"),
        ("few threads", served(worker="gthread", threads=4), "few-threads"),
        ("threads", served(worker="gthread", threads=64), ""),
        ("uWSGI", by_uwsgi("processes = 4\nenable-threads = true"), "worker-sync slow-readers-cut"),
        ("uWSGI, patient", by_uwsgi("threads = 64\nsocket-timeout = 60"), ""),
        ("uWSGI, few threads", by_uwsgi("threads = 4\nsocket-timeout = 60"), "few-threads"),
        ("uWSGI, harakiri", by_uwsgi("threads = 64\nharakiri = 30\nsocket-timeout = 30"),
         "timeout-cuts-streams"),
        ("uWSGI, no harakiri", by_uwsgi("threads = 64\nharakiri = 0\nsocket-timeout = 30"), ""),
        ("uWSGI, deaf", by_uwsgi("threads = 64\ndisable-write-exception = 1\nsocket-timeout = 30"),
         "departures-ignored"),
        ("uWSGI, not deaf",
         by_uwsgi("threads = 64\ndisable-write-exception = false\nsocket-timeout = 30"), ""),
        ("uWSGI, router", by_uwsgi("threads = 64\nhttp = :80\nsocket-timeout = 30"), "router-cuts-streams"),
        ("uWSGI, TLS", by_uwsgi("threads = 64\nhttps-socket = :443,a,b\nsocket-timeout = 30"),
         "no-heartbeats-possible"),
        ("uWSGI, chunks", by_uwsgi("threads = 64\nroute-run = chunked:\nsocket-timeout = 30"),
         "body-transformed"),
        ("uWSGI gevent", by_uwsgi("gevent = 500\ngevent-monkey-patch = true\nroute-run = gzip:\n"
                                  "https-socket = :443,a,b\nsocket-timeout = 30"), ""),
        ("uWSGI gevent, bare", by_uwsgi("gevent = 20\nsocket-timeout = 30"),
         "few-connections gevent-unpatched"),
        ("uWSGI gevent, patched by the app",
         by_uwsgi("gevent = 500\nsocket-timeout = 30")._replace(patched=True), ""),
        ("uWSGI gevent, blocked", by_uwsgi(PATCHED)._replace(blocking=PSYCOPG2), "blocks-gevent"),
        ("uWSGI gevent, pool", by_uwsgi(PATCHED)._replace(
            pools=(Pool("the database", 5),), routes=(INSIDE,)), "pool-too-small"),
        ("uWSGI gevent, late", by_uwsgi("gevent = 500\nsocket-timeout = 30")._replace(
            patched=True, late=("app.sleep",)), "patched-late"),
        ("uWSGI by its command", by_command(
            "exec uwsgi --master -p 4 --http-socket=:$PORT --threads 64 -T --socket-timeout 60"), ""),
        ("uWSGI before another command", by_command(
            "uwsgi --threads 64 --socket-timeout 60 && other --harakiri 5"), ""),
        ("uWSGI without threads",
         by_command("uwsgi --http :1 --enable-threads app.py --disable-write-exception"),
         "worker-sync slow-readers-cut router-cuts-streams departures-ignored"),
        ("waitress", by_command("waitress-serve --port=$PORT app:app"), "few-threads"),
        ("waitress, many", by_command("python -m waitress --threads ${THREADS:-64} --send-bytes=1 a:a"), ""),
        ("waitress gathers", by_command("env A=b waitress-serve --threads=64 --send-bytes=18000 app:app"),
         "server-gathers"),
        ("waitress in brackets", by_command("waitress-serve --threads=many a:a | tee log"), "few-threads"),
        ("flask", by_command("flask db upgrade && flask run --port 80"), "development-server"),
        ("tornado", served(worker="tornado"), "worker-cannot-stream"),
        ("a class of their own", served(worker="app.workers.Own"), ""),
        ("few connections", served(worker_connections=50), "few-connections"),
        ("no timeout", served(timeout=0), "timeout-off"),
        ("short stop", served(graceful_timeout=2), "stop-too-short"),
        ("recycled", served(max_requests=100, workers=2), "recycled-together"),
        ("recycled with jitter", served(max_requests=100, workers=2, max_requests_jitter=9), ""),
        ("preload", served(preload=True), "preload-unpatched"),
        ("preload, patched", served(preload=True, patched=True), ""),
        ("preload of threads", served(preload=True, worker="gthread", threads=64), ""),
        ("early imports", served(early=("urllib3",)), "config-imports-early"),
        ("early imports of threads", served(early=("urllib3",), worker="gthread", threads=64), ""),
        ("http2", served(http2=True), "http2-in-gunicorn"),
        ("refused", served(error="Error: no", worker=""), "gunicorn-refuses"),
        ("refused, and sync", served(error="Error: no", worker="sync"),
         "gunicorn-refuses worker-sync timeout-cuts-streams"),
        ("grace", facts({"grace": 60}, deployment=GEVENT, routes=(RESUMABLE,)), "grace-beyond-stop"),
        ("grace of nothing", facts({"grace": 60}, deployment=GEVENT), ""),
        ("log of one", facts({"event_log": "memory://"}, deployment=GEVENT, routes=(RESUMABLE,)), ""),
        ("log of many", facts({"event_log": "memory://"}, deployment=GEVENT._replace(workers=2),
                              routes=(RESUMABLE,)), "log-per-worker"),
        ("log of many without use", facts(
            {"event_log": "memory://"}, deployment=GEVENT._replace(workers=2)), ""),
        ("no driver", facts(missing=("redis",)), "log-driver-missing"),
        ("no secret", facts(has_secret_key=False, routes=(RESUMABLE,)), "no-secret-key"),
        ("no secret, no need", facts(has_secret_key=False, routes=(BEFORE,)), ""),
        ("no heartbeat", facts({"heartbeat_interval": 0}), "heartbeat-off"),
        ("slow heartbeat", facts({"heartbeat_interval": 40}), "heartbeat-too-slow"),
        ("slow heartbeat, patient proxy", facts({"heartbeat_interval": 40}, proxy_timeout=100.0), ""),
        ("hold", facts({"status_hold": 60}), "hold-too-long"),
        ("limits", facts({"max_duration": 10, "idle_timeout": 10}), "limit-without-effect"),
        ("release", facts({"release": True}), "release-without-session"),
        ("release with a session", facts({"release": True}, has_sqlalchemy=True), ""),
        ("prefix", facts(rules=(("/llmstream", "mine"),)), "prefix-collides"),
        ("no prefix", facts({"url_prefix": ""}, rules=(("/llmstream", "mine"),)), ""),
        ("blocks", facts(deployment=GEVENT, blocking=PSYCOPG2), "blocks-gevent"),
        ("blocks threads", facts(
            blocking=PSYCOPG2, deployment=GEVENT._replace(worker="gthread", threads=64)), ""),
        ("blocks, remedied", facts(
            deployment=GEVENT._replace(remedies=frozenset({"psycopg2"})), blocking=PSYCOPG2), ""),
        ("late", facts(patched=True, late=("app.sleep",)), "patched-late"),
        ("late, but the worker was first", facts(patched=True, late=("app.sleep",), deployment=GEVENT), ""),
        ("in time", facts(patched=True), ""),
        ("pool, before", pooled(BEFORE), "pool-too-small"),
        ("pool, unknown deployment", pooled(BEFORE, deployment=None), "pool-too-small"),
        ("pool, new Flask", pooled(BEFORE, ends_context_early=True), ""),
        ("pool, released", pooled(BEFORE, settings={"release": print}), ""),
        ("pool, released by the route", pooled(BEFORE._replace(release=True)), ""),
        ("pool, kept by the route", pooled(BEFORE._replace(release=False), settings={"release": print}),
         "pool-too-small"),
        ("pool, inside", pooled(INSIDE, ends_context_early=True, settings={"release": print}),
         "pool-too-small"),
        ("pool, large", pooled(INSIDE, 2000), ""),
        ("pool, few threads", pooled(INSIDE, 64, GEVENT._replace(worker="gthread", threads=64)), ""),
        ("pool, hook", pooled(RESUMABLE, queries_of_hooks=USE), "pool-too-small"),
        ("pool, no queries", pooled(RESUMABLE), ""),
    ]
}


@pytest.mark.parametrize("name", CASES)
def test_what_follows(name: str) -> None:
    known, expected = CASES[name]
    found = check(known)
    assert {each.code for each in found} == expected
    assert all(each.seen and each.why and each.change for each in found)


def test_severity_follows_from_the_figures() -> None:
    severities = [check(facts({"heartbeat_interval": beat}))[0].severity for beat in (40, 60)]
    assert severities == ["warning", "problem"]
    severities = [check(served(http2=True, http2_streams=able))[0].severity for able in (True, False)]
    assert severities == ["note", "problem"]


def test_library_is_named_with_the_line_that_requires_it() -> None:
    (finding,) = check(facts(deployment=GEVENT, blocking=PSYCOPG2))
    assert finding.where == "requirements.txt:4"


# -- findings --------------------------------------------------------------------------------------

NOTE = Finding("a-note", "note", "thing", "seen", "why", "change")
PROBLEM = Finding("a-problem", "problem", "thing", "seen it", "why so", "first line\nsecond line", "app.py:3")


def test_text_has_the_worst_first_and_counts() -> None:
    assert as_text([NOTE, PROBLEM, PROBLEM]).startswith(
        "PROBLEM a-problem: thing\n    where   app.py:3\n    seen    seen it\n    why     why so\n"
        "    change  first line\n            second line\n\n"
    )
    assert as_text([NOTE, PROBLEM, PROBLEM]).endswith("\n\n2 problems, 1 note.\n")
    assert as_text([]) == "Nothing found.\n"
    assert "\x1b[31;1mPROBLEM\x1b[0m" in as_text([PROBLEM], colour=True)


def test_json_says_the_same() -> None:
    answer = json.loads(as_json([NOTE, PROBLEM], app="app"))
    assert [each["code"] for each in answer["findings"]] == ["a-problem", "a-note"]
    assert answer["findings"][0]["where"] == "app.py:3"
    assert (answer["problems"], answer["warnings"], answer["notes"]) == (1, 0, 1)
    assert (answer["app"], answer["exit_status"]) == ("app", 1)


def test_notes_do_not_count() -> None:
    assert exit_status([NOTE]) == exit_status([]) == 0
    assert exit_status([NOTE, PROBLEM]) == 1


def test_baseline_leaves_out_what_was_accepted_wherever_its_line_is(tmp_path: Path) -> None:
    file = str(tmp_path / "baseline.json")
    assert write_baseline(file, [PROBLEM, NOTE]) == 1
    baseline = load_baseline(file)
    assert baseline.new([PROBLEM._replace(where="app.py:9", seen="other figures"), NOTE]) == [NOTE]
    elsewhere = PROBLEM._replace(where="other.py:3")
    assert baseline.new([elsewhere]) == [elsewhere]
    assert (baseline.gone([PROBLEM]), baseline.gone([])) == (0, 1)


def test_what_is_no_baseline_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    for content in (b"[]", b"{bad", b"\xff\xfe", b'{"accepted": [1]}', b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="baseline.json is no baseline.*--write-baseline makes one"):
            load_baseline(str(file))


# -- what is collected -----------------------------------------------------------------------------


def test_requirements_are_read_where_nothing_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flask_llmstream.doctor.libraries import blocking_libraries

    monkeypatch.chdir(tmp_path)
    (tmp_path / "requirements.txt").write_text("flask\nconfluent_kafka>=2\n# pyodbc\nmysqlclient\n")
    found = {what: seen for what, _, seen in blocking_libraries()}
    assert found["confluent_kafka"] == "it is required in requirements.txt:2"
    assert found["mysqlclient (MySQLdb)"] == "it is required in requirements.txt:4"
    assert "pyodbc" not in found


def test_pools_of_flask_sqlalchemy_are_read_without_a_connection(tmp_path: Path) -> None:
    flask_sqlalchemy: Any = pytest.importorskip("flask_sqlalchemy")
    from flask import Flask
    from sqlalchemy.pool import QueuePool

    from flask_llmstream import LLMStream, stream
    from flask_llmstream.doctor.collect import collect

    app = Flask("pooled")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/a.db", SQLALCHEMY_TRACK_MODIFICATIONS=False
    )
    LLMStream(app, release=True)
    options = {"poolclass": QueuePool, "pool_size": 2, "max_overflow": 1}
    db: Any = flask_sqlalchemy.SQLAlchemy(app, engine_options=options)

    @app.route("/inside")
    @stream
    def inside() -> Any:
        yield db.session.execute("SELECT 1").scalar()

    @app.route("/given-back")
    @stream
    def given_back() -> Any:
        text = db.session.execute("SELECT 1").scalar()
        db.session.remove()
        yield text

    known = collect(app, GEVENT)
    assert known.pools == (Pool("the database", 3),) and known.has_sqlalchemy
    assert [each.subject for each in check(known) if each.code == "pool-too-small"] == ["the view inside"]
    assert not (tmp_path / "a.db").exists()
