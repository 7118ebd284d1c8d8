"""What a message on a channel costs the nodes of a Redis Cluster: each is passed on to every node.

https://redis.io/docs/latest/develop/pubsub/#sharded-pubsub says so, and that sharded channels are not.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
from typing import Any, Iterator, List, NamedTuple, Tuple

from flask_llmstream.testing import wait_until

__all__ = ["Bus", "bus"]

_SLOTS = 16384
#: Messages in one pipeline.
_AT_ONCE = 250
_CHANNEL = "llmstream:{0123456789abcdef}:news"


class Bus(NamedTuple):
    """Microseconds of CPU for a message and another node: of who passes it on, and of that other."""

    sent_us: float
    received_us: float


def _free_port() -> int:
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        if port < 55000:  # that of the bus is 10,000 above it
            return port


@contextlib.contextmanager
def _node(*options: str) -> Iterator[Tuple[Any, int]]:
    """Run a node; give a client of it, and its port."""
    import redis

    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [
                "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder,
                *options,
            ],
            stdout=subprocess.DEVNULL,
        )
        client = redis.Redis(port=port)

        def answers() -> bool:
            with contextlib.suppress(redis.ConnectionError):
                return bool(client.ping())
            return False

        try:
            wait_until(answers, 10, "redis-server to start")
            yield client, port
        finally:
            client.close()
            process.terminate()
            process.wait()


def _us(node: Any) -> float:
    info = node.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"]) * 1e6


def _heard(node: Any) -> int:
    return int(node.execute_command("CLUSTER INFO").get("cluster_stats_messages_publish_received", 0))


def _publish(nodes: List[Any], count: int) -> List[float]:
    """Publish at the first of *nodes*; return the microseconds that each has taken for one message."""
    heard = _heard(nodes[-1]) if len(nodes) > 1 else 0
    before = [_us(node) for node in nodes]
    for _ in range(count // _AT_ONCE):
        pipeline = nodes[0].pipeline(transaction=False)
        for number in range(_AT_ONCE):
            pipeline.execute_command("PUBLISH", _CHANNEL, number)
        pipeline.execute()

    if len(nodes) > 1:
        wait_until(lambda: _heard(nodes[-1]) >= heard + count, 30, "all messages to arrive")
    return [(_us(node) - us) / count for node, us in zip(nodes, before)]


def bus(count: int) -> Bus:
    """Measure it with so many messages, between two nodes."""
    with _node() as (alone, _):
        (plain,) = _publish([alone], count)
    with _node("--cluster-enabled", "yes") as (first, _), _node("--cluster-enabled", "yes") as (second, port):
        first.execute_command("CLUSTER ADDSLOTSRANGE", 0, _SLOTS - 1)
        first.execute_command("CLUSTER MEET", "127.0.0.1", port)
        for node in (first, second):
            wait_until(
                lambda: node.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
                and int(node.execute_command("CLUSTER INFO")["cluster_known_nodes"]) == 2,
                20, "the cluster",
            )
        _publish([first, second], _AT_ONCE)
        sent, received = _publish([first, second], count)
    return Bus(max(0.0, sent - plain), received)
