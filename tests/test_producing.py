"""What runs a source is cancelled once, whoever wants that at the same time."""

from __future__ import annotations

from typing import Any, List

import pytest

from flask_llmstream import producing
from flask_llmstream.producing import Producing
from flask_llmstream.runtime import current_runtime
from flask_llmstream.settings import Settings


class Source(Producing):
    """Nothing but what can be cancelled."""

    id = "ab"
    waits = None

    def __init__(self) -> None:
        self._runtime = current_runtime()
        self._settings = Settings()
        self._cancellation = None


def test_two_who_cancel_at_once_have_one_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would interrupt the source twice: the second time in its clean-up."""
    source: Any = Source()
    faster: List[Any] = []
    make = producing.Cancellation

    def crossed(reason: str, *rest: Any) -> Any:
        if not faster:
            faster.append(None)
            faster[0] = source._begin_cancellation("stop")
        return make(reason, *rest)

    monkeypatch.setattr(producing, "Cancellation", crossed)
    found = source._begin_cancellation("disconnect")
    assert found is faster[0] is source._cancellation
    assert source.cancelled == "stop"
