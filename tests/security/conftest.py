"""Finds the strict reader of answers of the live tests; and a client that leaves nothing open."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

sys.path.append(str(Path(__file__).resolve().parent.parent / "live"))


class Whole(FlaskClient):
    """A test client that reads each answer to its end: an open stream keeps the contexts of its request."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("buffered", True)
        return super().open(*args, **kwargs)


@pytest.fixture(autouse=True)
def whole_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flask, "test_client_class", Whole)
