"""Checks values with pydantic models, of version 1 and 2.

Models are given what JSON has, as JSON: in strict mode, too, an array may become a tuple, and a
text a date.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from flask_llmstream.sansio.jsondelta.schema import Key, OutputSchema, Problem

__all__ = ["ModelSchema", "OldModelSchema"]

#: Validators that run behind pydantic's own only refuse; others may turn what is wrong into what is right.
_HARMLESS = ("after",)
_ARRAYS = (list, tuple, set, frozenset)


class _Node:
    """One type of a model: how it is checked, and what is inside, once that is known."""

    __slots__ = ("kind", "config", "validate", "children")

    def __init__(self, kind: Any, config: Any) -> None:
        self.kind = kind
        self.config = config
        self.validate: Any = None
        self.children: Optional[Dict[Key, Optional[_Node]]] = None


class ModelSchema(OutputSchema):
    """A model of pydantic 2.

    :param model: the class.
    """

    def __init__(self, model: Any) -> None:
        model.model_rebuild()  # it may name classes that have been defined since
        self._model = model
        self._error: Any = import_module("pydantic").ValidationError
        self.root = _Node(model, model.model_config)
        self.root.validate = model.model_validate_json
        self.names = _names(model, "model_json_schema")

    def child(self, node: _Node, key: Key) -> Optional[_Node]:
        """Return the node of the field or item at *key*."""
        if node.children is None:
            node.children = _children(node)
        return node.children.get(0 if isinstance(key, int) else key)

    def problems(self, node: _Node, value: Any) -> List[Problem]:
        """Return what is wrong with *value*."""
        if node.validate is None:
            node.validate = _validator(node)
        return self._try(node.validate, value)[1]

    def parse(self, value: Any) -> Tuple[Any, List[Problem]]:
        """Return the model that *value* makes, and what is wrong with it."""
        return self._try(self.root.validate, value)

    def _try(self, validate: Any, value: Any) -> Tuple[Any, List[Problem]]:
        try:
            try:
                return validate(json.dumps(value)), []
            except NotImplementedError:
                # Older ones cannot hold JSON against a class that has no form in it.
                is_whole = validate == self.root.validate
                return self._model.model_validate(value) if is_whole else None, []
        except self._error as error:
            return None, [_problem(each, value) for each in error.errors()]


def _validator(node: _Node) -> Any:
    """Return what checks a node by itself; where pydantic cannot do that, nothing is checked."""
    adapter = import_module("pydantic").TypeAdapter
    for options in ({"config": node.config}, {}):
        try:
            return adapter(node.kind, **options).validate_json
        except Exception:  # models bring a configuration of their own; some types are no type alone
            continue
    return json.loads


def _children(node: _Node) -> Dict[Key, Optional[_Node]]:
    """Return the nodes inside: of fields by their names in JSON, of all items as 0."""
    kind = _plain(node.kind)
    if getattr(kind, "__origin__", None) in _ARRAYS:
        items = kind.__args__
        is_uniform = kind.__origin__ is not tuple or (len(items) == 2 and items[1] is ...)
        return {0: _Node(items[0], node.config)} if is_uniform else {}
    if not (isinstance(kind, type) and hasattr(kind, "__pydantic_decorators__")):
        return {}
    decorators = kind.__pydantic_decorators__
    of_model = [*decorators.model_validators.values(), *decorators.root_validators.values()]
    if getattr(kind, "__pydantic_root_model__", False) or not all(map(_is_harmless, of_model)):
        return {}
    of_fields = [*decorators.field_validators.values(), *decorators.validators.values()]
    changed = {
        name for each in of_fields if not _is_harmless(each) for name in each.info.fields
    }
    children: Dict[Key, Optional[_Node]] = {}
    for name, field in kind.model_fields.items():  # type: ignore[attr-defined]
        alias = name if field.validation_alias is None else field.validation_alias
        if isinstance(alias, str) and not changed & {name, "*"}:
            of_field = field.annotation
            if field.metadata:
                of_field = import_module("typing_extensions").Annotated[(of_field, *field.metadata)]
            children[alias] = _Node(of_field, kind.model_config)  # type: ignore[attr-defined]
    return children


def _is_harmless(decorator: Any) -> bool:
    return decorator.info.mode in _HARMLESS


def _plain(kind: Any) -> Any:
    """Return the one type that a container of *kind* has, without what is said about it."""
    while True:
        if hasattr(kind, "__metadata__"):
            if any(hasattr(each, "__get_pydantic_core_schema__") for each in kind.__metadata__):
                return None  # such as a validator that runs before it
            kind = kind.__origin__
        elif "Union" in (type(kind).__name__ + str(getattr(kind, "__origin__", ""))):
            options = [each for each in kind.__args__ if each is not type(None)]
            if len(options) != 1:
                return None
            kind = options[0]
        else:
            return kind


class OldModelSchema(OutputSchema):
    """A model of pydantic 1, or of ``pydantic.v1``. Its nodes are pydantic's own fields.

    :param model: the class.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.root = model
        self.names = _names(model, "schema")
        base = next(each for each in model.__mro__ if each.__name__ == "BaseModel")
        package = base.__module__.rpartition(".")[0]
        self._fields: Any = import_module(f"{package}.fields")
        self._error: Any = import_module(f"{package}.error_wrappers").ValidationError

    def child(self, node: Any, key: Key) -> Optional[Any]:
        """Return the field at *key*."""
        if isinstance(key, int):
            if node is self._model or node.shape != self._fields.SHAPE_LIST:
                return None
            return node.sub_fields[0]
        model = node
        if node is not self._model:
            if node.shape != self._fields.SHAPE_SINGLETON or node.sub_fields:
                return None
            model = node.type_
        if not hasattr(model, "__fields__") or model.__pre_root_validators__:
            return None
        for field in model.__fields__.values():
            if field.alias == key:
                return None if field.class_validators else field
        return None

    def problems(self, node: Any, value: Any) -> List[Problem]:
        """Return what is wrong with *value*."""
        errors = node.validate(value, {}, loc=())[1]
        if not errors:
            return []
        found = self._error(errors if isinstance(errors, list) else [errors], self._model)
        return [_problem(each, value) for each in found.errors()]

    def parse(self, value: Any) -> Tuple[Any, List[Problem]]:
        """Return the model that *value* makes, and what is wrong with it."""
        try:
            return self._model.parse_obj(value), []
        except self._error as error:
            return None, [_problem(each, value) for each in error.errors()]


def _problem(error: Dict[str, Any], value: Any) -> Problem:
    return Problem(_keys(error["loc"], value, error["type"]), error["type"], error["msg"])


def _keys(loc: Iterable[Any], value: Any, rule: str) -> Tuple[Key, ...]:
    """Return where in *value* pydantic has seen a fault: it also names the options of unions."""
    keys: List[Key] = []
    for key in loc:
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        elif not (isinstance(value, dict) and "missing" in rule):
            continue
        keys.append(key)
    return tuple(keys)


def _names(model: Any, method: str) -> Set[str]:
    """Return the names of the fields of *model* and of all that it holds."""
    from flask_llmstream.sansio.jsondelta.json_schema import note_names

    names: Set[str] = set()
    try:
        note_names(getattr(model, method)(), names)
    except Exception:  # a type that has no form in JSON schema
        fields = getattr(model, "model_fields" if method == "model_json_schema" else "__fields__")
        names.update(fields)
    return names
