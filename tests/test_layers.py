"""The contracts of import-linter cover the whole package."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import List, Set

import flask_llmstream

SETUP = Path(__file__).resolve().parent.parent / "setup.cfg"
PACKAGE = Path(flask_llmstream.__file__).parent


def contracts() -> configparser.ConfigParser:
    """Return setup.cfg."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(str(SETUP), encoding="utf-8")
    return parser


def layers() -> List[List[str]]:
    """Return the modules of each layer, from the top."""
    lines = contracts()["importlinter:contract:layers"]["layers"].strip().splitlines()
    return [re.findall(r"\w+", line) for line in lines]


def modules() -> Set[str]:
    """Return the modules and packages directly under the package."""
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    return files | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_every_module_has_its_place_in_one_layer() -> None:
    placed = [module for layer in layers() for module in layer]
    assert len(placed) == len(set(placed))
    assert modules() <= set(placed)


def test_every_module_below_the_responses_may_not_import_flask() -> None:
    order = layers()
    (responses,) = (number for number, layer in enumerate(order) if "responses" in layer)
    # The retrofit serves any WSGI app.
    below = {module for layer in order[responses + 1 :] for module in layer} | {"adopted", "middleware"}
    lines = contracts()["importlinter:contract:frameworks"]["source_modules"].split()
    assert set(lines) == {f"flask_llmstream.{module}" for module in below & modules()}
