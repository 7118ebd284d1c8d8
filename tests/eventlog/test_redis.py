"""The log in Redis keeps the contract, on threads, on greenlets and on a cluster, wherever its URL leads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
from redis_servers import SLOTS, Server, begin

from flask_llmstream.eventlog import open_log, redis_client
from flask_llmstream.eventlog.redis import RedisEventLog
from flask_llmstream.exceptions import ConfigurationError
from flask_llmstream.testing import wait_until
from flask_llmstream.testing.eventlog import EventLogContract

pytest.importorskip("redis", reason="needs the extra redis")

HERE = Path(__file__).parent


class TestRedisEventLog(EventLogContract):
    """On the threads, or greenlets, of this interpreter."""

    @pytest.fixture(autouse=True)
    def store(self, redis_server: Any) -> None:
        self.url = redis_server.url

    def make_log(self) -> RedisEventLog:
        return RedisEventLog(f"{self.url}?prefix=contract")

    def other_process(self) -> str:
        return f"{self.url}?prefix=contract"


PATCHED = """
from gevent import monkey
monkey.patch_all()
import sys, pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_contract_is_kept_on_greenlets() -> None:
    pytest.importorskip("gevent")
    names = "TestRedisEventLog or thousand or server_that_is_gone or cancelled or wake_up"
    options = ["-q", "-s", "-x", "-p", "no:cacheprovider", "-p", "no:cov", "-k", f"({names}) and not cluster"]
    done = subprocess.run(
        [sys.executable, "-c", PATCHED, *options, *map(str, sorted(HERE.glob("test_redis*.py")))],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=110, cwd=str(HERE.parent.parent),
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
    )
    said = done.stdout.decode()
    print(said)
    assert done.returncode == 0 and " passed" in said, said


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: Any) -> Iterator[Server]:
    """A cluster of one."""
    import redis

    if not hasattr(redis, "RedisCluster"):
        pytest.skip("this redis-py knows no clusters")
    server = Server(tmp_path_factory.mktemp("cluster"), "--cluster-enabled", "yes")
    try:
        server.start()
        server.say("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        wait_until(lambda: "cluster_state:ok" in _text(server.say("CLUSTER", "INFO")), 10, "the cluster")
        yield server
    finally:
        server.kill()


def _text(answer: Any) -> str:
    if isinstance(answer, dict):
        return " ".join(f"{key}:{value}" for key, value in answer.items())
    return answer.decode() if isinstance(answer, bytes) else str(answer)


@pytest.mark.slow
class TestRedisClusterEventLog(EventLogContract):
    """On a cluster."""

    @pytest.fixture(autouse=True)
    def store(self, cluster: Server) -> None:
        self.url = f"{cluster.url}?cluster=1"

    def make_log(self) -> RedisEventLog:
        return RedisEventLog(self.url)


def test_unix_socket(server: Server, make: Any) -> None:
    log = make(f"unix://{server.folder}/s?db=1&timeout=1")
    stream = begin(log)
    assert log.append(stream, 1, [b"x"])
    page = log.read(stream, 0)
    assert page is not None and page.entries == [b"x"]


@pytest.mark.parametrize("query", ["timeout=soon", "timeout=0", "connections=-1", "prefix={x}"])
def test_option_that_cannot_work(query: str) -> None:
    with pytest.raises(ConfigurationError):
        open_log(f"redis://user:secret@localhost/0?{query}")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_client, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'flask-llmstream\[redis\]'"):
        open_log("redis://localhost/0")
