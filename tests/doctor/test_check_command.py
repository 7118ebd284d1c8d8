"""``flask llmstream check`` as a command: a legacy app with every fault, its fixed twin, and healthy apps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from flask import Flask

import flask_llmstream.doctor.checks as checks
from flask_llmstream import LLMStream
from flask_llmstream.doctor.gunicorn_facts import look_at_gunicorn

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"
BROKEN = EXAMPLES / "broken"
PAGE = ROOT / "docs" / "check.md"


def written_codes() -> List[str]:
    """Return every code that a check can find."""
    folder = Path(checks.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    return sorted(set(re.findall(r'(?:Finding\(|known,)\s*"([a-z0-9-]+)"', text)))


def run_check(folder: Path, app: str, *arguments: str) -> Tuple[int, Any, str]:
    """Run the command in *folder*; return its status, its JSON and its errors."""
    done = subprocess.run(
        [sys.executable, "-m", "flask", "llmstream", "check", "--json", *arguments], cwd=str(folder),
        env=dict(os.environ, FLASK_APP=app, GUNICORN_CMD_ARGS="", FLASK_SKIP_DOTENV="1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
    )
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout.decode()), done.stderr.decode()


def codes(answer: Any, *severities: str) -> List[str]:
    return [each["code"] for each in answer["findings"] if not severities or each["severity"] in severities]


def needs_what_the_broken_app_needs() -> None:
    for module in ("flask_compress", "gevent", "gunicorn", "psycogreen", "psycopg2", "sqlalchemy"):
        pytest.importorskip(module)


@pytest.mark.checkout
def test_every_fault_of_the_legacy_app_is_found() -> None:
    needs_what_the_broken_app_needs()
    status, answer, _ = run_check(BROKEN, "app.py")
    # These exclude one another, or need another deployment; test_check_facts.py has each of them.
    not_there = {
        "body-transformed", "departures-ignored", "development-server", "few-threads", "gevent-unpatched",
        "grace-beyond-stop", "gunicorn-refuses", "heartbeat-off", "http2-in-gunicorn",
        "log-driver-missing", "middleware-lost", "middleware-not-tried", "setting-not-in-force",
        "timeout-cuts-streams", "worker-cannot-stream", "worker-sync",
        "no-heartbeats-possible", "router-cuts-streams", "server-gathers", "slow-readers-cut",
    }
    assert status == answer["exit_status"] == 1
    assert set(codes(answer)) == set(written_codes()) - not_there
    where = {each["code"]: each["where"] for each in answer["findings"]}
    lines = (BROKEN / "app.py").read_text().splitlines()
    for code, words in [
        ("session-written-late", 'session["answered"] ='), ("hook-adds-etag", "add_etag()"),
        ("pool-too-small", "database.execute("), ("middleware-hides-write", "def __call__"),
    ]:
        file, _, line = where[code].rpartition(":")
        assert file == "app.py" and words in lines[int(line) - 1]


@pytest.mark.checkout
def test_fixed_app_has_nothing() -> None:
    needs_what_the_broken_app_needs()
    status, answer, _ = run_check(BROKEN, "fixed.py", "--gunicorn-config", "fixed.conf.py")
    assert (status, answer["findings"]) == (0, [])
    assert answer["served"] == "gunicorn with gevent workers (fixed.conf.py)"


MANY = """
import json, sys
from flask_llmstream.doctor.checks import check
from flask_llmstream.doctor.collect import collect
from flask_llmstream.doctor.gunicorn_facts import look_at_gunicorn
deployment = look_at_gunicorn(sys.argv[1])
found = {}
for path in sys.argv[2:]:
    names = {"__name__": "checked", "__file__": path}
    exec(compile(open(path).read(), path, "exec"), names)
    for key, app in names.get("mounts", {"": names["app"]}).items():
        state = app.extensions["llmstream"]
        # Tests want no heartbeats; and text that is not opted in is held back by hooks indeed.
        retrofit = ["text/event-stream", "text/plain"]
        state.settings = state.settings.replace(heartbeat_interval=15.0, retrofit=retrofit)
        found[path + key] = [
            [each.code, each.severity, each.where, each.seen] for each in check(collect(app, deployment))
        ]
print("found: " + json.dumps(found))
"""


def check_many(*paths: Path) -> Dict[str, Any]:
    """Check apps with the gunicorn.conf.py that is shipped, all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(ROOT / "gunicorn.conf.py"), *map(str, paths)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=110,
    )
    assert done.returncode == 0, done.stderr.decode()
    answer: Dict[str, Any] = json.loads(done.stdout.decode().rpartition("found: ")[2])
    return answer


@pytest.mark.checkout
def test_healthy_apps_raise_no_alarm() -> None:
    pytest.importorskip("gunicorn")
    examples = [
        path for path in sorted(EXAMPLES.glob("*/app.py")) + [EXAMPLES / "retrofit" / "after.py"]
        if path.parent != BROKEN
    ]
    assert len(examples) > 3
    neighbours = ROOT / "tests" / "neighbours" / "apps" / "many.py"
    found = check_many(*examples, neighbours)
    loud = {
        name: each for name, findings in found.items() for each in findings if each[1] != "note"
    }
    # Two neighbours do collect bodies, and the tests there show it.
    collecting = {name: each for name, each in loud.items() if re.search("/(joining|profiler)/", name)}
    assert {each[0] for each in collecting.values()} <= {"middleware-collects"}
    assert len(collecting) == 4
    assert {name: each for name, each in loud.items() if name not in collecting} == {}
    assert len(found) > 40


# -- the command -----------------------------------------------------------------------------------


def make(**settings: Any) -> Flask:
    app = Flask("commanded")
    LLMStream(app, **settings)
    return app


def invoke(app: Flask, *arguments: str) -> Any:
    return app.test_cli_runner().invoke(args=["llmstream", "check", *arguments])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)


def test_status_says_whether_something_was_found() -> None:
    healthy = invoke(make())
    assert healthy.exit_code == 0 and "Nothing found." in healthy.output
    assert "how it is served is not known" in healthy.output
    found = invoke(make(heartbeat_interval=0))
    assert found.exit_code == 1 and "WARNING heartbeat-off" in found.output


@pytest.mark.parametrize(
    "option, value",
    [
        ("--gunicorn-config", "missing.py"), ("--baseline", "missing.json"), ("--proxy", "1"),
        ("--proxy-timeout", "nan"), ("--proxy-timeout", "-1"), ("--baseline", "."), ("--uwsgi", "."),
        ("--write-baseline", "."),
    ],
)
def test_status_says_that_there_was_no_looking(option: str, value: str) -> None:
    assert invoke(make(), option, value).exit_code == 2


def test_what_is_in_the_baseline_is_accepted() -> None:
    app = make(heartbeat_interval=0)
    written = invoke(app, "--write-baseline", "accepted.json")
    assert written.exit_code == 0 and "1 accepted" in written.output
    accepted = invoke(app, "--baseline", "accepted.json")
    assert accepted.exit_code == 0 and "1 accepted in accepted.json." in accepted.output
    worse = invoke(make(heartbeat_interval=0, status_hold=100), "--baseline", "accepted.json", "--json")
    answer = json.loads(worse.output)
    assert (worse.exit_code, codes(answer), answer["accepted"]) == (1, ["hold-too-long"], 1)
    better = invoke(make(), "--baseline", "accepted.json")
    assert better.exit_code == 0 and "1 of what was accepted is gone" in better.output


def test_proxy_timeout_is_what_heartbeats_are_held_against() -> None:
    assert invoke(make(heartbeat_interval=40), "--proxy-timeout", "100").exit_code == 0
    assert invoke(make(heartbeat_interval=40)).exit_code == 1


def test_way_of_serving_is_read_where_it_is_written(tmp_path: Path) -> None:
    """In a Procfile, in uWSGI's configuration, also one that a command names."""
    pytest.importorskip("gunicorn")
    (tmp_path / "Procfile").write_text(
        "release: flask db upgrade\n"
        "web: ddtrace-run gunicorn -k gthread --threads=4 -w $((2 * $(nproc))) -b :$PORT app:app\n"
    )
    found = invoke(make(), "--procfile", "Procfile", "--json")
    answer = json.loads(found.output)
    assert (codes(answer), answer["findings"][0]["where"]) == (["few-threads"], "Procfile")
    assert answer["served"] == "gunicorn with gthread workers (Procfile)"
    (tmp_path / "own.ini").write_text("[uwsgi]\nthreads = 64\nharakiri = 30\nsocket-timeout = 60\n")
    ways = [("--uwsgi", "own.ini"), ("--command", "uwsgi --ini own.ini"), ("--command", "uwsgi own.ini")]
    for arguments in ways:
        found = invoke(make(), *arguments)
        assert found.exit_code == 1 and "harakiri = 30" in found.output and "uWSGI (" in found.output
    (tmp_path / "gunicorn.conf.py").write_text("worker_class = 'sync'\n")
    found = invoke(make(), "--command", "gunicorn -c gunicorn.conf.py app:app", "--json")
    assert codes(json.loads(found.output), "problem") == ["worker-sync", "timeout-cuts-streams"]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("--uwsgi", "missing.ini"), "missing.ini"), (("--procfile", "empty"), "begins with 'web:'"),
        (("--uwsgi", "empty"), "no section [uwsgi]"),
        (("--command", "uwsgi --ini missing.ini"), "missing.ini"),
        (("--command", "daphne app:app"), "starts none of gunicorn"),
        (("--command", "gunicorn 'app"), "taken apart"), (("--command", "flask"), "starts none"),
        (("--uwsgi", "a", "--command", "b"), "name one thing"),
        (("--command", "waitress-serve a:a", "--worker-class", "gevent"), "name one thing"),
    ],
)
def test_what_says_nothing_of_a_server_is_no_looking(
    tmp_path: Path, arguments: Any, complaint: str
) -> None:
    (tmp_path / "empty").write_text("")
    found = invoke(make(), *arguments)
    assert found.exit_code == 2 and complaint in found.output and "Traceback" not in found.output


# -- gunicorn --------------------------------------------------------------------------------------


def test_configuration_is_taken_as_gunicorn_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gunicorn")
    assert look_at_gunicorn() is None
    # A program, not a list of values.
    (tmp_path / "gunicorn.conf.py").write_text(
        "from gevent import monkey; monkey.patch_all()\n"
        "worker_class = 'gev' + 'ent'\npreload_app = True\nworker_connections = 10 * 7\n"
        "def post_fork(server, worker):\n    import psycogreen.gevent; psycogreen.gevent.patch_psycopg()\n"
        "print('a word of its own')\n"
    )
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workers 3")
    found = look_at_gunicorn(None, None)
    assert found is not None and found.error == ""
    assert (found.worker, found.workers, found.worker_connections) == ("gevent", 3, 70)
    assert found.preload and found.patched and found.remedies == {"psycopg2"} and found.early == ()
    assert found.source == "gunicorn.conf.py and GUNICORN_CMD_ARGS"
    assert found.capacity == 70


def test_configuration_that_gunicorn_refuses_is_a_finding(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "own.py").write_text("workers = 'many'\n")
    found = look_at_gunicorn("own.py", "gthread")
    assert found is not None and found.error and (found.worker, found.capacity) == ("gthread", 1)
    unknown = look_at_gunicorn(None, "gevnt")
    assert unknown is not None and "there is no worker_class 'gevnt'" in unknown.error


# -- the page --------------------------------------------------------------------------------------


@pytest.mark.checkout
def test_page_lists_every_code_and_no_other() -> None:
    listed = re.findall(r"^\| `([a-z][a-z0-9-]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(listed) == written_codes()
    assert len(listed) == len(set(listed))
