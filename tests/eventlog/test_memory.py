"""The log in memory keeps the contract, and has a store for each name and process."""

from __future__ import annotations

import uuid

import pytest

from flask_llmstream.eventlog.memory import MemoryEventLog
from flask_llmstream.testing.eventlog import EventLogContract


class TestMemoryEventLog(EventLogContract):
    """On threads; tests/eventlog/test_sqlite.py runs it on greenlets, too."""

    @pytest.fixture(autouse=True)
    def named(self) -> None:
        self.url = f"memory://{uuid.uuid4().hex}"

    def make_log(self) -> MemoryEventLog:
        return MemoryEventLog(self.url)
