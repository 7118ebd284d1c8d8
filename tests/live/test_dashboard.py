"""The dashboard for Grafana shows what there is, and all of it."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set

import pytest
from asking import APPS
from scraping import fetch, scrape_when

from flask_llmstream.metrics.table import METRICS
from flask_llmstream.testing import LiveServer, ScriptedUpstream, gunicorn_server, wait_until
from flask_llmstream.testing.scripts import done, silence, tokens

pytestmark = [pytest.mark.live, pytest.mark.checkout]

ROOT = Path(__file__).resolve().parent.parent.parent
FILE = ROOT / "deploy" / "grafana-dashboard.json"
# A copy of the tests alone has none, and collects these to leave them out.
DASHBOARD = json.loads(FILE.read_text()) if FILE.exists() else {}
#: Metrics that no panel needs.
UNUSED: Set[str] = set()
#: What Grafana would put in their places.
VARIABLES = (("job", "chat"), ("route", ".*"), ("__rate_interval", "1m"), ("__range", "5m"))
_NAME = re.compile(r"llmstream_[a-z_]+")


def expressions() -> List[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def queries() -> List[str]:
    return [
        each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: Any) -> Iterator[LiveServer]:
    """A server that has had traffic of each kind."""
    folder = tmp_path_factory.mktemp("shared")
    folder.chmod(0o700)
    env = {"SETTINGS": json.dumps({"shared_dir": str(folder)}), "PROMETHEUS_MULTIPROC_DIR": None}
    with gunicorn_server(APPS / "measured.py", env=env, config_lines="accesslog = None") as server:
        make_traffic(server)
        scrape_when(server, lambda now: now.sum("streams_active") == 0)
        yield server


def make_traffic(server: LiveServer) -> None:
    for path in ("/say/3", "/burst/100", "/fails"):
        with server.request(path) as reader:
            reader.read()
    for script, marker in (([tokens(*"abcde"), done()], None), ([tokens("a"), silence()], b'"a"')):
        with ScriptedUpstream(script) as model:
            with server.request("/ask", json={"url": model.url}) as reader:
                reader.read_until(marker) if marker else reader.read()
            if marker:
                model.wait_closed()
    with server.request("/one") as reader:
        reader.read_until(b'"a"')
        assert fetch(server, "/one")[0] == 503


def test_dashboard_names_what_a_scrape_has_and_nothing_else(server: LiveServer) -> None:
    text = fetch(server)[2].decode()
    exported = {line.split("{")[0] for line in text.splitlines() if line and line[0] != "#"}
    used = {name for each in expressions() + queries() for name in _NAME.findall(each)}
    assert used <= exported, used - exported
    families = {re.sub("_bucket$", "", name) for name in used}
    assert {row.name for row in METRICS} - families == UNUSED
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in exported} == {row.name for row in METRICS}


def test_dashboard_has_what_grafana_needs_and_nothing_of_a_machine() -> None:
    assert DASHBOARD["uid"] and DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD and "__inputs" not in DASHBOARD
    first, *others = DASHBOARD["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert all(each["datasource"] == source and each["includeAll"] for each in others)
    places: Set[Any] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"] == source and panel["title"] and panel["description"]
        assert all(target["datasource"] == source for target in panel["targets"])
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & places, panel["title"]
        places |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def alerts() -> str:
    """Return the rules that docs/metrics.md shows."""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    (rules,) = re.findall(r"```yaml\n(groups:.*?)```", page, re.S)
    return str(rules)


def test_alerts_name_metrics_that_there_are() -> None:
    used = {re.sub("_bucket$", "", name) for name in _NAME.findall(alerts())}
    assert used and used <= {row.name for row in METRICS}


def get(url: str) -> Dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        found: Dict[str, Any] = json.loads(answer.read().decode())
    return found


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.slow
def test_prometheus_reads_the_metrics_and_answers_each_panel(server: LiveServer, tmp_path: Path) -> None:
    text = fetch(server)[2]
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert checked.returncode == 0 and not checked.stdout, checked.stdout.decode()
    rules = tmp_path / "rules.yml"
    rules.write_text(alerts())
    subprocess.run(["promtool", "check", "rules", str(rules)], check=True, stdout=subprocess.PIPE)
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: [{rules}]\n"
        "scrape_configs:\n"
        "  - job_name: chat\n"
        "    metrics_path: /llmstream/metrics\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{server.port}']}}]\n"
    )
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={url[7:]}", "--log.level=warn",
    ]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            def ask(expression: str) -> List[Any]:
                answer = get(f"{url}/api/v1/query?query=" + urllib.parse.quote(expression))
                assert answer["status"] == "success", answer
                result: List[Any] = answer["data"]["result"]
                return result

            def scraped(times: int) -> bool:
                try:
                    found = ask("count_over_time(llmstream_leaks{kind='unclosed'}[5m])")
                except OSError:
                    return False
                return bool(found) and int(found[0]["value"][1]) >= times

            wait_until(lambda: scraped(2), 30.0)
            make_traffic(server)
            wait_until(lambda: scraped(8), 30.0)
            # A scrape that takes longer than a second has failed, and all is gone until the next.
            wait_until(lambda: [each["value"][1] for each in ask("up")] == ["1"], 10.0, "a scrape")
            for expression in expressions():
                for name, value in VARIABLES:
                    expression = expression.replace(f"${name}", value)
                assert "$" not in expression

                def answers(expression: str = expression) -> bool:
                    result = ask(expression)
                    return bool(result) and all(each["value"][1] not in ("NaN", "+Inf") for each in result)

                wait_until(answers, 10.0, lambda: f"{expression}, which gives {ask(expression)}")
            (started,) = ask("sum(increase(llmstream_streams_started_total[5m]))")
            assert float(started["value"][1]) > 0
            groups = get(f"{url}/api/v1/rules")["data"]["groups"]
            states = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
            assert len(states) == 7 and set(states.values()) <= {"ok", "unknown"}
        finally:
            process.terminate()
