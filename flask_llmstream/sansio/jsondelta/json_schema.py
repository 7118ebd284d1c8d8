"""Checks values against a JSON schema, with the package ``jsonschema``.

https://json-schema.org/draft/2020-12
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Set, Tuple
from urllib.parse import unquote

from flask_llmstream.sansio.jsondelta.pointer import find
from flask_llmstream.sansio.jsondelta.schema import Key, OutputSchema, Problem

__all__ = ["JsonSchema", "note_names"]

#: What one value must fulfil: all of these schemas.
Node = List[Dict[str, Any]]
#: References that lead to references, at most.
_MAX_REFERENCES = 20


class JsonSchema(OutputSchema):
    """A JSON schema of any draft that jsonschema knows; ``format`` is not checked.

    :param schema: the schema. References to others are jsonschema's business.
    :raises ValueError: it is no valid schema.
    :raises RuntimeError: jsonschema is not installed.
    """

    def __init__(self, schema: Dict[str, Any]) -> None:
        try:
            from jsonschema import Draft202012Validator, SchemaError
            from jsonschema.validators import validator_for
        except ImportError:
            raise RuntimeError(
                "a JSON schema needs jsonschema: pip install 'flask-llmstream[schema]'"
            ) from None
        kind = validator_for(schema, default=Draft202012Validator)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"schema is no valid JSON schema: {error.message}") from None
        self._schema = schema
        self._validator: Any = kind(schema)
        self.root: Node = [schema]
        self.names = set()
        # What a reference means below another "$id" is not looked into.
        self._is_flat = note_names(schema, self.names, True)

    def child(self, node: Node, key: Key) -> Optional[Node]:
        """Return the schemas of what is at *key*."""
        found: Node = []
        if self._is_flat:
            for schema in node:
                found += self._children(schema, key, _MAX_REFERENCES)
        return found or None

    def problems(self, node: Node, value: Any) -> List[Problem]:
        """Return what is wrong with *value*."""
        return [
            problem
            for schema in node
            for error in self._validator.descend(value, schema)
            for problem in _problems_of(error)
        ]

    def parse(self, value: Any) -> Tuple[Any, List[Problem]]:
        """Return *value*, and what is wrong with it."""
        return value, self.problems(self.root, value)

    def _children(self, schema: Any, key: Key, references: int) -> Iterator[Dict[str, Any]]:
        if not isinstance(schema, dict) or not references:
            return
        if "$ref" in schema:
            # What stands beside it counts in some drafts only.
            yield from self._children(self._referenced(schema["$ref"]), key, references - 1)
            return
        own = _member(schema, key) if isinstance(key, str) else _item(schema, key)
        if isinstance(own, dict):
            yield own
        for part in schema.get("allOf", ()):
            yield from self._children(part, key, references)
        wanted = "object" if isinstance(key, str) else "array"
        for keyword in ("anyOf", "oneOf"):
            options = [
                each for each in schema.get(keyword, ()) if self._may_be(each, wanted, references)
            ]
            if len(options) == 1:  # as where it is this or null
                yield from self._children(options[0], key, references)

    def _may_be(self, schema: Any, wanted: str, references: int) -> bool:
        while isinstance(schema, dict) and "$ref" in schema and references:
            schema = self._referenced(schema["$ref"])
            references -= 1
        if not isinstance(schema, dict) or "type" not in schema:
            return schema is not False
        types = schema["type"]
        return wanted == types or (isinstance(types, list) and wanted in types)

    def _referenced(self, reference: str) -> Any:
        if not reference.startswith("#"):
            return None
        try:
            return find(self._schema, unquote(reference[1:]))
        except ValueError:  # an anchor
            return None


def _member(schema: Dict[str, Any], key: str) -> Any:
    properties = schema.get("properties", {})
    if key in properties:
        return None if "patternProperties" in schema else properties[key]
    return None if "patternProperties" in schema else schema.get("additionalProperties")


def _item(schema: Dict[str, Any], key: int) -> Any:
    if "prefixItems" in schema:
        first = schema["prefixItems"]
        return first[key] if key < len(first) else schema.get("items")
    return schema.get("items")  # of older drafts perhaps a list, which is passed over


def note_names(schema: Any, names: Set[str], is_root: bool = True) -> bool:
    """Add the names of fields; return whether there is no ``$id`` below the root."""
    if isinstance(schema, list):
        return all([note_names(each, names, False) for each in schema])
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if isinstance(properties, dict):
        names.update(properties)
    required = schema.get("required")
    if isinstance(required, list):
        names.update(name for name in required if isinstance(name, str))
    is_flat = is_root or not isinstance(schema.get("$id"), str)
    return all([is_flat, *(note_names(each, names, False) for each in schema.values())])


def _problems_of(error: Any) -> Iterator[Problem]:
    keys = tuple(error.absolute_path)
    rule = str(error.validator)
    if rule == "required" and isinstance(error.validator_value, list):
        # jsonschema reports each by itself, and names none but in its message.
        for name in error.validator_value:
            if name not in error.instance:
                yield Problem((*keys, name), rule, "is missing")
        return
    yield Problem(keys, rule, error.message)
