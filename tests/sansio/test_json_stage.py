"""The stage that reads a stream's text as JSON: what it hands out, and what it holds against a schema."""

from __future__ import annotations

import enum
import json
from typing import Any, Dict, List, Optional, Tuple, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream import JsonDelta
from flask_llmstream.exceptions import DecodeError, JsonLimitExceeded, OutputInvalid
from flask_llmstream.failures import describe_failure
from flask_llmstream.sansio.jsondelta import (
    JsonDocument,
    JsonOptions,
    JsonReader,
    JsonStage,
    json_deltas,
    make_options,
    make_schema,
)

pytest.importorskip("jsonschema")

PERSON: Dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2},
        "born": {"type": "integer"},
        "home": {"$ref": "#/$defs/home"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "pair": {"prefixItems": [{"type": "integer"}], "items": {"type": "string"}},
        "maybe": {"anyOf": [{"$ref": "#/$defs/home"}, {"type": "null"}]},
        "either": {"anyOf": [{"$ref": "#/$defs/home"}, {"type": "object"}]},
        "both": {"allOf": [{"properties": {"x": {"type": "integer"}}}, {"required": ["x"]}]},
        "free": {"type": "object", "additionalProperties": {"type": "integer"}},
        "a/b~": {"type": "integer"},
    },
    "required": ["name"],
    "$defs": {"home": {"type": "object", "properties": {"zip": {"type": "string"}}}},
}


def run(stage: JsonStage, *tokens: str) -> Tuple[List[JsonDelta], Optional[Exception]]:
    """Feed *tokens* as a stream does; return what is sent, and what has ended it."""
    sent: List[JsonDelta] = []
    try:
        for token in tokens:
            sent += stage.feed(token)
            assert stage.characters_held == 0
        sent += stage.finish()
    except Exception as exc:
        sent += stage.flush()
        return sent, exc
    return sent, None


def characters(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def invalid(schema: Any, value: Any, validate: str = "field") -> Tuple[str, OutputInvalid]:
    """Return how much of *value* was read until it was refused, and the refusal."""
    stage = JsonStage(None, make_schema(schema), validate)
    text = characters(value)
    read = ""
    with pytest.raises(OutputInvalid) as caught:
        for character in text:
            read += character
            stage.feed(character)
        read += "$"
        stage.finish()
    assert stage.value is None
    return read, caught.value


def valid(schema: Any, value: Any) -> Any:
    """Return what the app gets for *value*, which is as good at once as at the end."""
    stages = [JsonStage(None, make_schema(schema), validate) for validate in ("field", "end")]
    for stage in stages:
        sent, error = run(stage, *characters(value))
        assert error is None, error
        assert sent == list(json_deltas(characters(value)))
    assert stages[0].value == stages[1].value
    return stages[0].value


# -- without a schema --------------------------------------------------------------------------


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner)), st.integers(1, 9))
def test_hands_out_what_json_deltas_does_and_knows_the_value(value, size):
    text = json.dumps({"value": value})
    tokens = [text[at : at + size] for at in range(0, len(text), size)]
    stage = JsonStage()
    sent, error = run(stage, "So:\n```json\n", *tokens, "\n```\nThat is it.")
    assert error is None and stage.value == {"value": value}
    document = JsonDocument()
    for delta in sent:
        document.apply(delta)
    assert document.complete and document.value == stage.value


def test_flush_in_the_middle_means_nothing():
    stage = JsonStage()
    sent = [delta for token in '{"a": "b\\u00e9", "n": 12}' for delta in stage.feed(token) + stage.flush()]
    assert sent + stage.finish() == list(json_deltas('{"a": "b\\u00e9", "n": 12}'))


@pytest.mark.parametrize(
    "cut, value, completed",
    [("leave", None, 0), ("close", {"a": ["b"]}, 3)],
)
def test_cut_text_is_treated_as_the_option_says(cut, value, completed):
    stage = JsonStage(JsonOptions(cut=cut))
    sent, error = run(stage, '{"a": ["', "b")
    assert error is None and stage.value == value
    assert len([delta for delta in sent if delta.op == "complete"]) == completed


def test_cut_text_can_be_an_error_behind_what_came_before():
    sent, error = run(JsonStage(JsonOptions(cut="error")), '[1, 2', '')
    assert isinstance(error, DecodeError)
    assert [delta.value for delta in sent if delta.op == "add"] == [[], 1], "2 may be the beginning of 23"


def test_fault_comes_behind_what_came_before_and_ends_it():
    stage = JsonStage(JsonOptions(max_depth=1))
    sent, error = run(stage, '{"a": 1, "b": [2]}')
    assert isinstance(error, JsonLimitExceeded)
    assert [delta.path for delta in sent] == ["", "/a", "/a"]
    assert stage.feed("more") == stage.finish() == stage.flush() == []


def test_reader_that_was_flushed_inside_of_a_text_takes_no_more():
    reader = JsonReader()
    reader.feed('["a')
    reader.flush()
    with pytest.raises(RuntimeError, match="after flush"):
        reader.feed("b")


def test_the_last_whole_value_counts():
    stage = JsonStage()
    run(stage, '{"a": 1} {"a": 2} {"a":')
    assert stage.value == {"a": 2}
    stage.reset()
    assert stage.value is None
    assert run(stage, "[0]")[1] is None and stage.value == [0]


def test_text_can_be_handed_out_instead_of_changes():
    stage = JsonStage(schema=make_schema(PERSON), as_text=True)
    assert run(stage, "So: ", '{"name": "Ada"}') == (["So: ", '{"name": "Ada"}'], None)
    assert stage.value == {"name": "Ada"}
    sent, error = run(JsonStage(schema=make_schema(PERSON), as_text=True), '{"name": ', '1, "born": 2}')
    assert sent == ['{"name": '] and isinstance(error, OutputInvalid)
    sent, error = run(JsonStage(schema=make_schema(PERSON), as_text=True), '{"name": ')
    assert sent == ['{"name": '] and isinstance(error, OutputInvalid)


# -- JSON schema -------------------------------------------------------------------------------


def test_valid_output_passes():
    value = {
        "name": "Ada", "born": 1815, "home": {"zip": "W1"}, "tags": ["x"], "pair": [1, "a"],
        "maybe": {"zip": "1"}, "either": {"zip": 1}, "both": {"x": 1}, "free": {"y": 1}, "a/b~": 1,
        "unknown": [{"z": 1}],
    }
    assert valid(PERSON, value) == value
    assert valid(PERSON, {"name": "Ada", "maybe": None}) == {"name": "Ada", "maybe": None}
    assert valid({}, [1]) == [1]


@pytest.mark.parametrize(
    "value, read, path",
    [
        pytest.param('{"born": "x"', '{"born": "x"', "/born", id="property"),
        pytest.param('{"home": {"zip": 1, ', '{"home": {"zip": 1,', "/home/zip", id="reference"),
        pytest.param('{"tags": ["a", 1, ', '{"tags": ["a", 1,', "/tags/1", id="items"),
        pytest.param('{"pair": ["a"', '{"pair": ["a"', "/pair/0", id="first-items"),
        pytest.param('{"pair": [1, 2, ', '{"pair": [1, 2,', "/pair/1", id="further-items"),
        pytest.param('{"maybe": {"zip": 1, ', '{"maybe": {"zip": 1,', "/maybe/zip", id="or-null"),
        pytest.param('{"both": {"x": "1"', '{"both": {"x": "1"', "/both/x", id="all-of"),
        pytest.param('{"free": {"secret": "1"', '{"free": {"secret": "1"', "/free", id="additional"),
        pytest.param('{"a/b~": "1"', '{"a/b~": "1"', "/a~1b~0", id="escaped-name"),
        pytest.param('{"born": 1}', '{"born": 1}', "/name", id="required"),
        pytest.param("[]", "[]", "", id="whole"),
    ],
)
def test_fault_is_found_as_soon_as_it_can_be_told(value, read, path):
    seen, error = invalid(PERSON, value)
    assert seen == read
    assert error.paths == [path]
    assert path in str(error) and "secret" not in str(error)


def test_an_invalid_field_is_never_complete():
    sent, error = run(JsonStage(schema=make_schema(PERSON)), '{"born": 1, "name": "A", "tags": []}')
    assert isinstance(error, OutputInvalid) and error.paths == ["/name"]
    assert [(delta.path, delta.op) for delta in sent] == [
        ("", "add"), ("/born", "add"), ("/born", "complete"), ("/name", "add"),
    ]


@pytest.mark.parametrize("path", ["either", "unknown"])
def test_what_cannot_be_told_alone_waits(path):
    text = '{"%s": {"zip": 1}}' % path
    assert invalid(PERSON, text)[0] == text  # name is missing


def test_the_end_is_the_end():
    text = '{"born": "x", "tags": 1} and more'
    read, error = invalid(PERSON, text, "end")
    assert read == text + "$"
    assert sorted(error.paths) == ["/born", "/name", "/tags"]
    sent, _ = run(JsonStage(None, make_schema(PERSON), "end"), text)
    assert sent == list(json_deltas([text]))


@pytest.mark.parametrize("text", ["", "no JSON", '{"name": "Ada'])
@pytest.mark.parametrize("validate", ["field", "end"])
def test_half_a_value_is_not_valid(text, validate):
    read, error = invalid(PERSON, text, validate)
    assert read == text + "$" and error.paths == [""]
    sent, _ = run(JsonStage(None, make_schema(PERSON), validate), text)
    assert sent == list(json_deltas([text]))


def test_closed_value_is_whole():
    stage = JsonStage(JsonOptions(cut="close"), make_schema(PERSON))
    assert run(stage, '{"name": "Ada')[1] is None and stage.value == {"name": "Ada"}


@pytest.mark.parametrize(
    "schema, text, read",
    [
        pytest.param(
            {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$id": "urn:a", "type": "integer"}}},
            '{"a": ""}', '{"a": ""}', id="below-another-id",
        ),
        pytest.param(
            {"properties": {"a": {"$ref": "#name"}},
             "$defs": {"a": {"$anchor": "name", "properties": {"b": {"type": "integer"}}}}},
            '{"a": {"b": ""}}', '{"a": {"b": ""}', id="anchor",
        ),
        pytest.param(
            {"patternProperties": {"^a": {"type": "integer"}}, "properties": {"b": {}}},
            '{"a": "", "b": 1}', '{"a": "", "b": 1}', id="pattern",
        ),
        pytest.param(
            {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}]},
            '["a", 1]', '["a", 1]', id="tuple-of-old-drafts",
        ),
        pytest.param(
            {"oneOf": [{"type": ["object", "null"], "properties": {"a": False}}, False, {"type": "array"}]},
            '{"a": 1, "b": 1}', '{"a": 1, "b": 1}', id="one-of-and-never",
        ),
        pytest.param(
            {"properties": {"a": {"$ref": "#/properties/a"}}, "required": ["b"]},
            '{"a": {"b": []}}', "", id="reference-to-itself",
        ),
        pytest.param(
            {"properties": {"a": {"$ref": "urn:elsewhere#/x"}}}, '{"a": {"b": []}}', "", id="elsewhere",
        ),
    ],
)
def test_schemas_that_are_harder_to_look_into(schema, text, read):
    if read:
        assert invalid(schema, text)[0] == read
    else:
        node = make_schema(schema)
        assert node.child(node.child(node.root, "a"), "b") is None


def test_rules_that_have_no_field():
    schema = {"type": "object", "required": ["a", "b"], "dependentRequired": {"a": ["c"]}}
    error = invalid(schema, '{"b": 1}')[1]
    assert error.paths == ["/a"]
    many = {"properties": {f"f{n}": {"type": "null"} for n in range(30)}}
    error = invalid(many, {f"f{n}": 1 for n in range(30)}, "end")[1]
    assert len(error.errors) == 30 and len(error.paths) == 10 and "and 20 more" in str(error)
    assert error.errors[0] == {"path": "/f0", "message": "1 is not of type 'null'"}


# -- pydantic ----------------------------------------------------------------------------------

pydantic = pytest.importorskip("pydantic")
if not hasattr(pydantic, "TypeAdapter"):
    pytest.skip("pydantic 1", allow_module_level=True)


class Colour(enum.Enum):
    RED = "red"


class Home(pydantic.BaseModel):
    zip: str


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    size: Tuple[int, str]


class Changed(pydantic.BaseModel):
    number: int

    @pydantic.model_validator(mode="before")
    @classmethod
    def unwrap(cls, value: Any) -> Any:
        return value.get("inner", value) if isinstance(value, dict) else value


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(str_strip_whitespace=True)
    name: str = pydantic.Field(max_length=3)
    born: int = pydantic.Field(0, ge=0)
    home: Optional[Home] = None
    homes: List[Home] = []
    pair: Tuple[int, str] = (0, "")
    many: Tuple[int, ...] = ()
    either: Union[Home, Dict[str, int], None] = None
    few: List[int] = pydantic.Field([], max_length=2)
    colour: Colour = Colour.RED
    other: int = pydantic.Field(0, alias="an/other")
    odd: int = pydantic.Field(0, validation_alias=pydantic.AliasChoices("odd", "strange"))
    strict: Optional[Strict] = None
    changed: Optional[Changed] = None
    halved: int = 0
    doubled: int = 0
    friends: "List[Person]" = []

    @pydantic.field_validator("halved", mode="before")
    @classmethod
    def halve(cls, value: Any) -> Any:
        return 1 if value == "half" else value

    @pydantic.field_validator("doubled")
    @classmethod
    def double(cls, value: int) -> int:
        return value * 2


class Numbers(pydantic.RootModel[List[int]]):
    """A list."""


def test_model_of_pydantic_is_what_the_app_gets():
    person = valid(Person, {
        "name": " Ada ", "born": "1815", "home": {"zip": "W1"}, "homes": [{"zip": "1"}], "pair": [1, "a"],
        "many": [1, 2], "either": {"a": 1}, "colour": "red", "an/other": 1, "strange": 2,
        "strict": {"size": [1, "b"]}, "changed": {"inner": {"number": 3}}, "halved": "half", "doubled": 2,
        "friends": [{"name": "Joe"}], "more": {"x": [1]},
    })
    assert isinstance(person, Person)
    assert (person.name, person.born, person.strict.size, person.doubled) == ("Ada", 1815, (1, "b"), 4)
    assert person.changed.number == 3 and person.halved == 1
    assert valid(Numbers, [1, 2]).root == [1, 2]


@pytest.mark.parametrize(
    "text, read, path",
    [
        pytest.param('{"name": "Augusta"', '{"name": "Augusta"', "/name", id="constraint"),
        pytest.param('{"born": "x"', '{"born": "x"', "/born", id="type"),
        pytest.param('{"born": -1,', '{"born": -1,', "/born", id="default"),
        pytest.param('{"home": {"zip": 1,', '{"home": {"zip": 1,', "/home/zip", id="inside"),
        pytest.param('{"home": {}', '{"home": {}', "/home/zip", id="missing"),
        pytest.param('{"homes": [{"zip": 1,', '{"homes": [{"zip": 1,', "/homes/0/zip", id="items"),
        pytest.param('{"pair": ["a", 1]', '{"pair": ["a", 1]', "/pair/0", id="pair"),
        pytest.param('{"many": ["a"', '{"many": ["a"', "/many/0", id="tuple-of-any-length"),
        pytest.param('{"few": [1, "x"', '{"few": [1, "x"', "/few/1", id="items-of-so-many"),
        pytest.param('{"either": {"zip": []}', '{"either": {"zip": []}', "/either/zip", id="union"),
        pytest.param('{"colour": "blue"', '{"colour": "blue"', "/colour", id="enum"),
        pytest.param('{"an/other": "x"', '{"an/other": "x"', "/an~1other", id="alias"),
        pytest.param('{"strict": {"size": ["1", "b"]', '{"strict": {"size": ["1", "b"]', "/strict/size/0",
                     id="configuration"),
        pytest.param('{"changed": {"number": "x"}', '{"changed": {"number": "x"}', "/changed/number",
                     id="model-that-changes"),
        pytest.param('{"doubled": "x"', '{"doubled": "x"', "/doubled", id="validated-after"),
        pytest.param('{"friends": [{"born": "x"', '{"friends": [{"born": "x"', "/friends/0/born",
                     id="itself"),
        pytest.param('{"name": "A", "halved": "x"}', '{"name": "A", "halved": "x"}', "/halved", id="before"),
        pytest.param('{"name": "A", "odd": "x"}', '{"name": "A", "odd": "x"}', "/odd", id="choice"),
    ],
)
def test_field_of_a_model_is_checked_when_it_is_complete(text, read, path):
    seen, error = invalid(Person, text)
    assert seen == read
    assert path in error.paths


class Plain:
    """No type of pydantic's."""


class Hard(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    plain: Optional[Plain] = None
    number: int = 0
    odd: Any = None


def test_type_without_a_json_schema_is_no_hindrance():
    assert invalid(Hard, '{"number": "x"')[1].paths == ["/number"]
    assert invalid(Hard, '{"plain": 1}')[1].paths == ["/plain"]
    assert valid(Hard, {"odd": [1]}).odd == [1]


def test_type_that_pydantic_knows_in_python_alone_is_checked_there():
    """As classes of the app's own are for versions that cannot check them in JSON."""
    def refuse(value: Any, info: Any) -> Any:
        if info.mode == "json":
            raise NotImplementedError("use a JsonOrPython validator instead")
        return value

    annotated = pytest.importorskip("typing_extensions").Annotated
    model = pydantic.create_model("Model", a=(annotated[int, pydantic.BeforeValidator(refuse)], ...))
    assert valid(model, {"a": 1}).a == 1
    assert invalid(model, '{"a": "x"}')[1].paths == ["/a"]


def test_validator_around_a_type_is_not_looked_behind():
    before = pydantic.BeforeValidator(lambda value: [1])
    annotated = pytest.importorskip("typing_extensions").Annotated
    model = pydantic.create_model("Model", a=(annotated[List[int], before], ...), b=(int, 0))
    assert valid(model, {"a": ["x"]}).a == [1]


def test_types_that_pydantic_cannot_check_alone_are_left_to_the_whole():
    from flask_llmstream.sansio.jsondelta.pydantic_schema import _Node

    schema = make_schema(Hard)
    assert schema.problems(_Node(Plain, {}), 1) == []


# -- pydantic 1 --------------------------------------------------------------------------------

old = pytest.importorskip("pydantic.v1")


class OldHome(old.BaseModel):
    zip: int


class OldChanged(old.BaseModel):
    number: int

    @old.root_validator(pre=True)
    def unwrap(cls, values: Any) -> Any:
        return values.get("inner", values)


class OldPerson(old.BaseModel):
    name: str
    born: int = 0
    home: Optional[OldHome] = None
    homes: List[OldHome] = []
    mapping: Dict[str, int] = {}
    changed: Optional[OldChanged] = None
    halved: int = 0

    @old.validator("halved", pre=True)
    def halve(cls, value: Any) -> Any:
        return 1 if value == "half" else value


class OldHard(old.BaseModel):
    plain: Optional[Plain] = None

    class Config:
        arbitrary_types_allowed = True


class OldEmpty(old.BaseModel):
    """No fields."""


def test_old_model_is_what_the_app_gets():
    person = valid(OldPerson, {
        "name": "Ada", "home": {"zip": "1"}, "homes": [{"zip": 1}], "mapping": {"a": 1},
        "changed": {"inner": {"number": 1}}, "halved": "half", "more": {"x": [1]}, "born": "1815",
    })
    assert isinstance(person, OldPerson) and (person.born, person.halved) == (1815, 1)
    assert valid(OldEmpty, {"a": [1]}) == OldEmpty()


@pytest.mark.parametrize(
    "text, read, path",
    [
        pytest.param('{"born": "x"', '{"born": "x"', "/born", id="type"),
        pytest.param('{"home": {"zip": "x"', '{"home": {"zip": "x"', "/home/zip", id="inside"),
        pytest.param('{"homes": [{"zip": "x"', '{"homes": [{"zip": "x"', "/homes/0/zip", id="items"),
        pytest.param('{"homes": [{}, ', '{"homes": [{}', "/homes/0/zip", id="missing"),
        pytest.param('{"mapping": {"secret": "x"}', '{"mapping": {"secret": "x"}', "/mapping", id="mapping"),
        pytest.param('{"changed": {"number": "x"}', '{"changed": {"number": "x"}', "/changed/number",
                     id="model-that-changes"),
        pytest.param('{"name": "A", "halved": "x"}', '{"name": "A", "halved": "x"}', "/halved", id="before"),
    ],
)
def test_field_of_an_old_model_is_checked_when_it_is_complete(text, read, path):
    seen, error = invalid(OldPerson, text)
    assert seen == read
    assert error.paths == [path]


def test_old_model_without_a_schema_has_names_all_the_same():
    assert invalid(OldHard, '{"plain": 1,')[1].paths == ["/plain"]
    assert invalid(OldEmpty, "[1]")[1].paths == [""]


# -- what clients are told, and what is refused ------------------------------------------------


def test_clients_are_told_which_fields_and_nothing_that_the_model_wrote():
    for schema, value in ((PERSON, {"name": 1, "born": "secret"}), (Person, {"name": "secret"})):
        error = invalid(schema, value, "end")[1]
        failure = describe_failure(error)
        assert (failure.status, failure.code, failure.retryable) == (502, "output_invalid", True)
        assert failure.message.startswith("The model's answer does not have the form that was asked for: /")
        assert "/name" in failure.message and "secret" not in failure.message
        assert "secret" not in describe_failure(error, expose=True).message
    assert describe_failure(invalid(PERSON, "")[1]).message.endswith("asked for.")


@pytest.mark.parametrize(
    "spec, message",
    [
        ("Person", "expected a pydantic model class"),
        (int, "expected a pydantic model class"),
        ({"type": "no-such-type"}, "no valid JSON schema"),
    ],
)
def test_what_is_no_schema_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        make_schema(spec)
    assert make_schema(None) is None
    schema = make_schema({})
    assert make_schema(schema) is schema


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jsonschema", None)
    with pytest.raises(RuntimeError, match=r"flask-llmstream\[schema\]"):
        make_schema({})


def test_options():
    assert make_options(False, False) is None
    assert make_options(True, False).max_documents is None
    assert make_options(False, True).max_documents == 1
    assert make_options({"max_documents": 2, "cut": "error"}, True).max_documents == 2
    options = JsonOptions()
    assert make_options(options, True) is options
    for wrong in ("json", None, {"dept": 1}):
        with pytest.raises(ValueError, match="structured"):
            make_options(wrong, False)
    with pytest.raises(ValueError, match="validate"):
        JsonStage(validate="now")
