"""The list of public names cannot rot."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Dict, List

import pytest

import flask_llmstream

INIT = Path(flask_llmstream.__file__)

#: What programs that we never see import; a name may join, and none may go.
PROMISED = {
    "flask_llmstream": "Comment Custom Event Finish JsonDelta LLMStream ReasoningDelta StreamEnd TextDelta"
    " ToolCallDelta Usage current_stream json_deltas multiplex snapshots stream stream_response",
    "flask_llmstream.client": "StreamClient sse_client",
    "flask_llmstream.exceptions": "LLMStreamError StreamCancelled StreamInterrupted",
    "flask_llmstream.signals": "client_disconnected first_token stream_finished stream_started",
    "flask_llmstream.testing": "EventLogContract ManualClock ScriptedUpstream gunicorn_server read_stream",
    "flask_llmstream.upstream": "adapt anthropic_messages ollama_chat openai_chat openai_responses",
}


def imported_for_type_checkers() -> Dict[str, str]:
    """Return name -> module of the imports under ``if TYPE_CHECKING``."""
    tree = ast.parse(INIT.read_text(encoding="utf-8"))
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    found = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname is None
            found[alias.name] = str(statement.module)
    return found


def public_modules() -> List[str]:
    """Return the names of all modules of the package that list their public names."""
    found = pkgutil.walk_packages(flask_llmstream.__path__, "flask_llmstream.")
    return [info.name for info in found if not info.name.rpartition(".")[2].startswith("_")]


@pytest.mark.parametrize("module", sorted(PROMISED))
def test_promised_names_stay_where_they_are(module: str) -> None:
    found = importlib.import_module(module)
    missing = [name for name in PROMISED[module].split() if getattr(found, name, None) is None]
    assert not missing and set(PROMISED[module].split()) <= set(found.__all__)


def test_all_and_the_table_of_exports_name_the_same() -> None:
    assert flask_llmstream.__all__ == sorted(flask_llmstream._EXPORTS)


def test_type_checkers_see_the_names_that_the_table_resolves() -> None:
    table = {name: f"flask_llmstream{module}" for name, module in flask_llmstream._EXPORTS.items()}
    assert imported_for_type_checkers() == table


@pytest.mark.parametrize("name", flask_llmstream.__all__)
def test_a_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(flask_llmstream, name)
    assert not isinstance(value, ModuleType)
    assert inspect.getdoc(value), f"{name} has no docstring"


@pytest.mark.parametrize("name", flask_llmstream.__all__)
def test_a_public_name_is_listed_by_its_own_module(name: str) -> None:
    module = importlib.import_module(flask_llmstream._EXPORTS[name], "flask_llmstream")
    assert name in module.__all__


def test_dir_names_what_has_not_been_imported_yet() -> None:
    assert set(flask_llmstream.__all__) < set(dir(flask_llmstream))


def test_an_unknown_name_is_an_attribute_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match="module 'flask_llmstream' has no attribute 'nothing'"):
        flask_llmstream.nothing  # noqa: B018


def test_star_import_brings_exactly_the_public_names() -> None:
    namespace: Dict[str, object] = {}
    exec("from flask_llmstream import *", namespace)
    del namespace["__builtins__"]
    assert sorted(namespace) == flask_llmstream.__all__


def test_the_submodule_of_the_same_name_does_not_cover_the_decorator() -> None:
    """Importing a submodule sets it on the package; ``stream`` is a public name and a submodule."""
    submodule = importlib.import_module("flask_llmstream.stream")
    assert isinstance(submodule, ModuleType)
    assert flask_llmstream.stream is importlib.import_module("flask_llmstream.responses").stream


def test_other_submodules_are_attributes_as_usual() -> None:
    assert flask_llmstream.exceptions is importlib.import_module("flask_llmstream.exceptions")


@pytest.mark.parametrize("name", public_modules())
def test_every_name_in_a_modules_all_exists(name: str) -> None:
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        assert hasattr(module, public), f"{name}.__all__ names {public}, which is not there"
