"""What a model's output should look like: a pydantic model or a JSON schema, behind one interface.

Decisions
    1. A value inside of another is checked by itself only where its fault is one of the whole, too:
       nothing is refused that the whole would pass. Where that cannot be told (unions of objects,
       validators that run before the fields') it waits for what is around it.
    2. Neither pydantic nor jsonschema is imported before a schema of theirs is given.
    3. Clients are told paths, and of them only what the schema names: other keys are the model's
       own words.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple, Union

from flask_llmstream.exceptions import OutputInvalid
from flask_llmstream.sansio.jsondelta.pointer import token_of

__all__ = ["FieldChecks", "OutputSchema", "Problem", "make_schema"]

Key = Union[str, int]
#: So many faults are named in a message.
_NAMED = 10


class Problem(NamedTuple):
    """One fault."""

    #: Keys and indexes that lead to it, from the value that was checked.
    keys: Tuple[Key, ...]
    #: The rule that is broken, in the words of the library that says so; never of the model.
    rule: str
    #: What it is, as that library says it; may quote the model.
    message: str


class OutputSchema:
    """Checks values; make one from a pydantic model or JSON schema with :func:`make_schema`.

    A *node* is what the schema says of one value; ``root`` is that of the whole.
    """

    root: Any
    #: Names of fields, which clients may see.
    names: Set[str]

    def child(self, node: Any, key: Key) -> Optional[Any]:
        """Return the node of what is at *key* of a container; ``None`` where it cannot be told."""
        raise NotImplementedError

    def problems(self, node: Any, value: Any) -> List[Problem]:
        """Return what is wrong with *value*; nothing where that cannot be told."""
        raise NotImplementedError

    def parse(self, value: Any) -> Tuple[Any, List[Problem]]:
        """Return the whole *value* as the app wants it, and what is wrong with it."""
        raise NotImplementedError

    def validate(self, value: Any) -> Any:
        """Return the whole *value* as the app wants it.

        :raises OutputInvalid: it is not what the schema asks for.
        """
        parsed, problems = self.parse(value)
        if problems:
            raise self.error("", problems)
        return parsed

    def error(self, path: str, problems: Iterable[Problem]) -> OutputInvalid:
        """Return the exception for *problems* of the value at *path*."""
        found: Dict[Tuple[str, str], Dict[str, str]] = {}
        public: Dict[str, None] = {}  # a set that keeps its order
        rules: Dict[str, None] = {}
        for keys, rule, message in problems:
            tokens = [token_of(key) if isinstance(key, str) else str(key) for key in keys]
            where = "".join([path, *("/" + token for token in tokens)])
            found[where, message] = {"path": where, "message": message}
            shown = self._public(where)
            public[shown] = None
            rules[f"{shown or 'the whole'} ({rule})"] = None
        named = list(rules)
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        text = f"the model's output breaks its schema: {', '.join(named[:_NAMED])}{more}"
        return OutputInvalid(text, list(found.values()), list(public)[:_NAMED])

    def _public(self, path: str) -> str:
        tokens = path.split("/")[1:]
        for number, token in enumerate(tokens):
            name = token.replace("~1", "/").replace("~0", "~")
            if name not in self.names and not (token.isdigit() and len(token) < 10):
                return "".join("/" + each for each in tokens[:number])
        return path


class FieldChecks:
    """Knows what the schema says of each value of one document, while that is being written."""

    def __init__(self, schema: OutputSchema) -> None:
        self._schema = schema
        self._open: Dict[str, Any] = {}  # nodes of open containers, by path

    def begun(self, path: str, value: Any) -> None:
        """Take note of a value that is announced."""
        if value.__class__ is dict or value.__class__ is list:
            node = self._node(path)
            if node is not None:
                self._open[path] = node, value.__class__ is list

    def node_of(self, path: str) -> Optional[Any]:
        """Return what is to be checked of the value at *path*, which is complete now."""
        found = self._open.pop(path, None)
        return self._node(path) if found is None else found[0]

    def _node(self, path: str) -> Optional[Any]:
        if not path:
            return self._schema.root
        above, _, token = path.rpartition("/")
        found = self._open.get(above)
        if found is None:
            return None
        node, is_list = found
        key: Key = int(token) if is_list else token.replace("~1", "/").replace("~0", "~")
        return self._schema.child(node, key)


def make_schema(spec: Any) -> Optional[OutputSchema]:
    """Return the schema that *spec* stands for; ``None`` for ``None``.

    Making one takes milliseconds: keep it, where the same is used for each request.

    :param spec: a pydantic model class (1 or 2), a JSON schema as a ``dict``, or what this returns.
    :raises ValueError: it is no such thing, or no valid JSON schema.
    :raises RuntimeError: jsonschema is not installed.
    """
    if spec is None or isinstance(spec, OutputSchema):
        return spec
    if isinstance(spec, dict):
        from flask_llmstream.sansio.jsondelta.json_schema import JsonSchema

        return JsonSchema(spec)
    if isinstance(spec, type):
        if hasattr(spec, "model_validate_json") and hasattr(spec, "model_fields"):
            from flask_llmstream.sansio.jsondelta.pydantic_schema import ModelSchema

            return ModelSchema(spec)
        if hasattr(spec, "parse_obj") and hasattr(spec, "__fields__"):
            from flask_llmstream.sansio.jsondelta.pydantic_schema import OldModelSchema

            return OldModelSchema(spec)
    raise ValueError(
        f"schema is {spec!r}, expected a pydantic model class, or a JSON schema as a dict"
    )
