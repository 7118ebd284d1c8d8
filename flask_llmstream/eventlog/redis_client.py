"""Connections to Redis that survive whatever interrupts them, and one kind of error for all that fails.

Decisions
    1. A client with one connection for each call that is under way, and not a pool of redis-py's:
       those of some versions give a connection back with half a reply in it when a cancellation
       passes through. Here a client that did not finish its call is closed.
    2. Calls are sent again once when a connection turns out to be dead, never after a timeout: a
       server that hangs costs its callers one timeout. So every call must bear being repeated.
    3. No back-off in the client: whoever asks decides whether to come again.
"""

from __future__ import annotations

from collections import deque
from importlib.util import find_spec
from typing import Any, Deque, Dict, List, Sequence, Tuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from flask_llmstream.eventlog.base import public_url
from flask_llmstream.exceptions import ConfigurationError, LogUnavailable
from flask_llmstream.runtime import current_runtime

__all__ = ["Command", "RedisClients", "RedisOptions", "is_error"]

#: A command and its arguments.
Command = Tuple[Any, ...]

#: Idle connections that are kept, and calls at a time, per process.
CONNECTIONS = 16

#: What an error of the server says -> what to do.
_HINTS = (
    ("'maxmemory'", "Redis is out of memory; raise maxmemory, or keep fewer entries"),
    ("read only replica", "this is a replica; name the primary in the URL"),
    ("MOVED", "this is a cluster; add ?cluster=1 to the URL"),
    ("Invalid stream ID", "Redis 6.2 or newer is needed"),
    ("WRONGTYPE", "something else uses its keys; choose another ?prefix="),
    ("wrong kind of value", "something else uses its keys; choose another ?prefix="),
)


class RedisOptions:
    """What the URL of a log says."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        self.name = public_url(url)
        #: Seconds to wait for an answer.
        self.timeout = self._number(query.pop("timeout", "2"), "timeout")
        #: Calls at a time.
        self.connections = int(self._number(query.pop("connections", str(CONNECTIONS)), "connections"))
        #: What all keys begin with.
        self.prefix = query.pop("prefix", "llmstream")
        self.cluster = query.pop("cluster", "0").lower() in ("1", "true", "yes")
        if "{" in self.prefix or "}" in self.prefix:
            raise ConfigurationError("LLMSTREAM_EVENT_LOG", self.name, "a prefix= without braces")
        # Bytes are bytes here, and messages are read in the older of the two protocols.
        for key in ("decode_responses", "protocol"):
            query.pop(key, None)
        #: What redis-py shall connect to.
        self.url = "?".join(filter(None, [url.partition("?")[0], urlencode(query)]))
        self.unix = parts.scheme == "unix"
        if find_spec("redis") is None:
            raise ConfigurationError(
                "LLMSTREAM_EVENT_LOG", self.name, "redis-py; pip install 'flask-llmstream[redis]'"
            )

    def _number(self, text: str, key: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0.01 <= number < 3600:
            raise ConfigurationError("LLMSTREAM_EVENT_LOG", self.name, f"a positive number as {key}=")
        return number


class RedisClients:
    """Runs commands; any thread or greenlet may call it. For one process."""

    def __init__(self, options: RedisOptions) -> None:
        # Not with this module: it takes a tenth of a second.
        import redis

        self._redis: Any = redis
        self._options = options
        self._runtime = current_runtime()
        # Not a semaphore: giving one back may block, where a cancellation strikes and it is lost.
        self._free = deque(range(options.connections))
        self._waiting: Deque[Any] = deque()
        self._idle: List[Any] = []
        self._closed = False

    def run(self, commands: Sequence[Command]) -> List[Any]:
        """Send all *commands* at once and return the replies; errors of the server are among them.

        :raises LogUnavailable: if Redis cannot be reached or does not answer.
        """
        place = self._place()
        try:
            try:
                return self._send(commands)
            except self._redis.ConnectionError:
                # What is idle has most likely died with it.
                self._drop_idle()
                return self._send(commands)
        except (self._redis.RedisError, OSError) as error:
            raise self.failure(error) from error
        finally:
            self._free.append(place)
            if self._waiting:
                self._wake()

    def _place(self) -> int:
        """Wait until there are fewer calls than there may be."""
        deadline = self._runtime.now() + self._options.timeout
        while True:
            flag = self._runtime.flag() if not self._free else None
            if flag is not None:
                self._waiting.append(flag)
            try:
                return self._free.popleft()
            except IndexError:
                left = deadline - self._runtime.now()
            if left <= 0:
                raise LogUnavailable(
                    self._options.name,
                    f"all {self._options.connections} connections are busy; raise ?connections=",
                )
            if flag is not None:
                # Now and then, because whoever was woken may have been cancelled since.
                flag.wait(min(left, 0.25))

    def _wake(self) -> None:
        try:
            self._waiting.popleft().set()
        except IndexError:  # pragma: no cover - another thread was faster
            pass

    def _send(self, commands: Sequence[Command]) -> List[Any]:
        try:
            client = self._idle.pop()
        except IndexError:
            client = self._make()
        try:
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            replies: List[Any] = pipeline.execute(raise_on_error=False)
        except BaseException:
            # Also what is no error: a greenlet that is cancelled leaves half a reply behind.
            self.drop(client)
            raise
        if any(isinstance(reply, self._redis.ReadOnlyError) for reply in replies):
            self.drop(client)  # its name may lead to the new primary the next time
        else:
            self._idle.append(client)
            if self._closed:
                self._drop_idle()
        return replies

    def listen(self) -> Tuple[Any, Any]:
        """Return a new client and a connection of it, for its caller alone; connected.

        :raises redis.RedisError: if Redis cannot be reached.
        """
        client = self._make()
        source = client
        try:
            if self._options.cluster:
                source = client.get_redis_connection(client.get_random_node())
            connection = source.connection_pool.make_connection()
            connection.connect()
        except BaseException:
            self.drop(client)
            raise
        return client, connection

    def failure(self, error: BaseException) -> LogUnavailable:
        """Return the error to raise for *error*."""
        text = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, (self._redis.TimeoutError, TimeoutError)):
            text = f"no answer within {self._options.timeout:g} s ({text})"
        hints = [hint for sign, hint in _HINTS if sign in text or sign in type(error).__name__]
        return LogUnavailable(self._options.name, ": ".join([text] + hints[:1]))

    @property
    def errors(self) -> Tuple[Any, ...]:
        """What :meth:`listen` and its connection may raise."""
        return (self._redis.RedisError, OSError)

    def close(self) -> None:
        """Close what is idle, and what is in use as soon as it is idle."""
        self._closed = True
        self._drop_idle()

    def _drop_idle(self) -> None:
        while self._idle:
            try:
                self.drop(self._idle.pop())
            except IndexError:  # pragma: no cover - another thread was faster
                return

    def drop(self, client: Any) -> None:
        """Close *client* and its connection, whatever state they are in."""
        try:
            if self._options.cluster:
                client.disconnect_connection_pools()
            else:
                client.connection_pool.disconnect()
            client.close()
        except Exception:  # pragma: no cover - closing what is broken may break
            pass

    def _make(self) -> Any:
        redis, options = self._redis, self._options
        given: Dict[str, Any] = dict(socket_timeout=options.timeout, decode_responses=False)
        if not options.unix:
            given.update(socket_connect_timeout=min(1.0, options.timeout), socket_keepalive=True)
        major = int(redis.__version__.split(".")[0])
        if major >= 5:
            given["protocol"] = 2
        if major >= 4:
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            given["retry"] = Retry(NoBackoff(), 1 if options.cluster else 0)
        try:
            if not options.cluster:
                return redis.Redis(connection_pool=redis.ConnectionPool.from_url(options.url, **given))
            if major < 6:
                given["cluster_error_retry_attempts"] = 1
            return redis.RedisCluster.from_url(options.url, **given)
        except AttributeError:
            raise ConfigurationError("redis", redis.__version__, "4.1 or newer for a cluster") from None
        except (TypeError, ValueError) as error:
            expected = f"a URL for redis-py: {error}"
            raise ConfigurationError("LLMSTREAM_EVENT_LOG", options.name, expected) from None


def is_error(reply: Any) -> bool:
    """Whether *reply*, of a pipeline, is an error of the server."""
    return isinstance(reply, Exception)
