"""Logs are opened by their URL, and what is no URL of a log is refused."""

from __future__ import annotations

import os
from typing import Any, List, Sequence

import pytest

from flask_llmstream import eventlog
from flask_llmstream.eventlog import EventLog, open_log
from flask_llmstream.eventlog.base import Batch, public_url
from flask_llmstream.eventlog.memory import MemoryEventLog
from flask_llmstream.eventlog.sqlite import SQLiteEventLog
from flask_llmstream.exceptions import ConfigurationError, LLMStreamError, LogUnavailable


@pytest.mark.parametrize(
    "url, kind, name",
    [
        ("memory://", MemoryEventLog, "memory://"),
        ("memory://mine", MemoryEventLog, "memory://mine"),
        ("sqlite:////var/lib/app/log.db", SQLiteEventLog, "sqlite:////var/lib/app/log.db"),
        ("sqlite:///log.db?timeout=2.5", SQLiteEventLog, f"sqlite:///{os.getcwd()}/log.db"),
        ("sqlite:////a%20b/%C3%BC.db", SQLiteEventLog, "sqlite:////a b/ü.db"),
    ],
)
def test_log_is_opened_by_its_url(url: str, kind: type, name: str) -> None:
    log = open_log(url)
    assert type(log) is kind and log.name == name
    assert repr(log) == f"<{kind.__name__} {name}>"
    assert not os.path.exists("log.db"), "nothing is opened yet"


@pytest.mark.parametrize(
    "url, message",
    [
        ("", "memory://, sqlite:///path"),
        ("log.db", "memory://, sqlite:///path"),
        ("postgres://user:secret@host/db", "is 'postgres://host/db', expected memory://"),
        ("http://[", "expected memory://"),
        (None, "is None, expected a URL such as"),
        (b"memory://", "expected a URL such as"),
        ("sqlite://", "sqlite:///path/to/log.db"),
        ("sqlite:///", "sqlite:///path/to/log.db"),
        ("sqlite://log.db", "sqlite:///path/to/log.db"),
        ("sqlite:///:memory:", "memory:// for a log in memory"),
        ("sqlite:///a%00b", "sqlite:///path/to/log.db"),
        ("sqlite:///log.db?timeout=soon", "no option but timeout="),
        ("sqlite:///log.db?timeout=-1", "no option but timeout="),
        ("sqlite:///log.db?timeout=nan", "no option but timeout="),
        ("sqlite:///log.db?mode=ro", "no option but timeout="),
        ("sqlite:///log.db#part", "no option but timeout="),
    ],
)
def test_what_is_no_log_is_refused(url: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        open_log(url)
    assert message in str(raised.value) and "LLMSTREAM_EVENT_LOG is " in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url, shown",
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:pass@host:6379/0?password=pass", "redis://host:6379/0"),
        ("redis://user:p@ss/word@host/0", "redis://host/0"),
        ("user:pass@host", "..."),
        ("log.db?password=pass", "log.db"),
    ],
)
def test_url_is_shown_without_secrets(url: str, shown: str) -> None:
    assert public_url(url) == shown


def test_error_names_the_log_and_the_cause() -> None:
    error = LogUnavailable("sqlite:///log.db", "the disk is full")
    assert str(error) == "the event log sqlite:///log.db cannot be used: the disk is full"
    assert (error.log, error.cause) == ("sqlite:///log.db", "the disk is full")
    assert isinstance(error, LLMStreamError)


def test_one_stream_is_appended_to_like_many() -> None:
    calls: List[Sequence[Batch]] = []

    class Mine(EventLog):
        name = "mine"

        def append_many(self, batches: Sequence[Batch]) -> List[str]:
            calls.append(batches)
            return ["cd"]

    assert not Mine().append("cd", 1, [b"x"])
    assert calls == [[("cd", 1, [b"x"])]]


def test_names_are_imported_on_first_use() -> None:
    assert {"EventLog", "Page", "open_log"} <= set(dir(eventlog))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        eventlog.nothing
