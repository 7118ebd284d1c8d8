"""What models write instead of JSON, and around it."""

from __future__ import annotations

import json
from typing import Any, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitting import every_way

from flask_llmstream import json_deltas
from flask_llmstream.exceptions import DecodeError, JsonLimitExceeded
from flask_llmstream.sansio.jsondelta import JsonDocument


def documents(tokens: List[str], **options: Any) -> List[Any]:
    """Return all documents that are found, the last one even if it was cut."""
    found: List[Any] = []
    document = JsonDocument()
    for delta in json_deltas(tokens, **options):
        if not delta.path and delta.op in ("add", "replace"):
            assert delta.op == ("replace" if found else "add")
            document = JsonDocument()
            found.append(document)
        document.apply(delta)
    return [each.value for each in found]


#: option: texts and what they mean.
TOLERANCES = [
    ("trailing_commas", "[1, 2,]", [1, 2]),
    ("trailing_commas", '{"a": [[],],}', {"a": [[]]}),
    ("trailing_commas", '{"a": 1 , }', {"a": 1}),
    ("comments", "[1, // one\n 2 /* two **/ , # three\n3 /*/ */]", [1, 2, 3]),
    ("comments", '{ /* a */ "a" // b\n : # c\n 1 /**/ } ', {"a": 1}),
    ("single_quotes", "{'a': 'say \"hi\"', \"b\": \"it's\"}", {"a": 'say "hi"', "b": "it's"}),
    ("single_quotes", r"""['it\'s', "it\'s", '\u00e9\"']""", ["it's", "it's", 'é"']),
    ("python_literals", "[True, False, None]", [True, False, None]),
    ("python_literals", "[Infinity, -Infinity]", [float("inf"), float("-inf")]),
    ("control_characters", '{"poem": "line\nline\ttab\r\n\x00"}', {"poem": "line\nline\ttab\r\n\0"}),
    ("prose", 'Sure! {"a": 1} Anything else?', {"a": 1}),
]


@pytest.mark.parametrize("option, text, value", TOLERANCES)
def test_tolerance_is_on_unless_it_is_turned_off_or_strict(option, text, value):
    for _, split in every_way(text):
        assert repr(documents(split)) == repr([value]), split
        assert repr(documents(split, strict=True, **{option: True})) == repr([value]), split
        for options in ({"strict": True}, {option: False, "prose": False}):
            with pytest.raises(DecodeError):
                documents(split, **options)


def test_not_a_number_is_a_float():
    (value,) = documents(["[NaN]"])
    assert repr(value) == "[nan]"


@pytest.mark.parametrize(
    "text",
    ["[1,,]", "[,]", "{,}", '{"a":,}', "[1 / 2]", "[1 /x]", "{'a': 'b}", "[TRUE]", "[Nul]", "[Inf]",
     '["\\q"]', '{a: 1}', "[1 /* never", "[1 /", "[1 /* never *"],
)
def test_tolerance_ends_somewhere(text):
    for _, split in every_way(text):
        with pytest.raises(DecodeError):
            documents(split, prose=False, cut="error")


@pytest.mark.parametrize("text", ["[1] /* never", "[1] /", "[1] /*", "[1] /* *"])
def test_comment_behind_the_document_must_end(text):
    for _, split in every_way(text):
        with pytest.raises(DecodeError, match="ended too early"):
            documents(split, strict=True, comments=True)
    assert documents(["[1] // ends with the text"], strict=True, comments=True) == [[1]]


PROSE = [
    pytest.param("no JSON at all", [], id="none"),
    pytest.param("", [], id="empty"),
    pytest.param("```json\n{\"a\": 1}\n```", [{"a": 1}], id="fence"),
    pytest.param("Here:\n\n```JSON\n[1, 2]\n```\nand {that} is it [1].", [[1, 2]], id="fence-in-prose"),
    pytest.param("``` [1] ``` [2]", [[1]], id="fence-without-a-name"),
    pytest.param("````json\n{}\n````", [{}], id="long-fence"),
    pytest.param("```{\"a\": 1}```", [{"a": 1}], id="fence-on-one-line"),
    pytest.param('```python\nd = {"a": 1}\n```\n```json\n{"b": 2}\n```', [{"b": 2}], id="other-fence"),
    pytest.param('```python\nd = {"a": [1]}\n', [], id="other-fence-cut"),
    pytest.param("``json`` {'a': 1} `x`", [{"a": 1}], id="backticks"),
    pytest.param("`" * 60 + '{"a": 1}', [{"a": 1}], id="many-backticks"),
    pytest.param("see [1], [2, 3] and [] and {} or [[]] [{}]: [4]", [], id="footnotes"),
    pytest.param("[1, 2]", [[1, 2]], id="numbers-first"),
    pytest.param("As a list:\n  [1, 2]\n", [[1, 2]], id="numbers-on-their-line"),
    pytest.param('As a list: ["a", 1]', [["a", 1]], id="strings-in-a-line"),
    pytest.param('He said ["quoted" by me] so', [], id="quotation"),
    pytest.param('[link](x) [[wiki]] {{template}} {"a" is} {"b": 1}', [{"b": 1}], id="markup"),
    pytest.param('[see {"a": [{"b": 1}]}] x', [{"a": [{"b": 1}]}], id="inside-of-a-failure"),
    pytest.param('as in [[{"a": 1}]].', [[[{"a": 1}]]], id="nested"),
    pytest.param('f(x) = {x | x > 0}, {"a": {}}', [{"a": {}}], id="sets"),
    pytest.param('{"a": 1}{"b": 2}\n{"c": 3} [4]', [{"a": 1}, {"b": 2}, {"c": 3}, [4]], id="several"),
    pytest.param('{"a": 1}, then [] and [5]', [{"a": 1}], id="behind-a-document"),
    pytest.param("\ufeff{\"a\": 1}", [{"a": 1}], id="byte-order-mark"),
    pytest.param("- [ ] task\n- [x] done\n[ref]: url", [], id="tasks"),
    pytest.param("use `[`\n[#12] is it\n[\"a\"]", [["a"]], id="number-sign"),
    pytest.param('["\\q', None, id="proven"),
]


@pytest.mark.parametrize("text, found", PROSE)
def test_json_is_found_in_prose(text, found):
    for _, split in every_way(text):
        if found is None:
            with pytest.raises(DecodeError):
                documents(split)
        else:
            assert documents(split) == found, split


def test_candidate_that_fails_is_never_heard_of():
    for text in ('a {"key" and', 'a ["text", no', "a [1, 2]", 'a {"key"', 'a ["text'):
        for _, split in every_way(text):
            got = list(json_deltas(split))
            assert not got or text == 'a ["text", no', split


@pytest.mark.parametrize(
    "text, options",
    [
        ("a " + "[" * 50 + ' x {"b": 1}', {"max_depth": 10}),
        ('a {"' + "k" * 50 + '" ! {"b": 1}', {"max_path": 10}),
        ('a {"' + "k" * 50 + '": ! {"b": 1}', {"max_path": 10}),
        ('a ["' + "k" * 50 + ' ! {"b": 1}', {"max_size": 20}),
    ],
)
def test_candidate_that_goes_past_a_limit_is_prose(text, options):
    for size in (1, 4):
        found = documents([text[at : at + size] for at in range(0, len(text), size)], **options)
        assert found == [{"b": 1}]
    assert documents([text], **{**options, "max_size": 1000})[-1:] in ([{"b": 1}], [])


def test_fault_in_a_document_that_has_proved_itself_is_a_fault():
    with pytest.raises(DecodeError, match=r"line 2 column 9 \(char 13\): expected ',' or '}', got '`'"):
        documents(['Yes:\n{"a": 1 ``', "`"])
    with pytest.raises(JsonLimitExceeded):
        documents(['Yes: {"a": [[[1]]]}'], max_depth=3)


def test_documents_in_a_row_replace_each_other():
    tokens = ['{"a": 1}', '\n{"b"', ": 2}"]
    deltas = [(each.path, each.op, each.value) for each in json_deltas(tokens)]
    assert deltas[3] == ("", "complete", None) and deltas[4] == ("", "replace", {})
    assert documents(["1 2\n\"x\" null[]true"], prose=False) == [1, 2, "x", None, [], True]


@pytest.mark.parametrize("prose", [True, False])
def test_only_so_many_documents_are_read(prose):
    text = '{"a": 1} {"b": 2} {"c": 3}'
    if prose:
        for _, split in every_way(text):
            assert documents(split, max_documents=2) == [{"a": 1}, {"b": 2}]
    else:
        with pytest.raises(DecodeError, match="char 18.: expected the end of the text, got '{'"):
            documents([text], prose=False, max_documents=2)


@pytest.mark.parametrize(
    "text, value, closed",
    [
        ('{"a": "ab', {"a": "ab"}, ["/a", ""]),
        ('{"a": "ab\\u00', {"a": "ab"}, ["/a", ""]),
        ('{"a": [1, {"b": nul', {"a": [1, {}]}, ["/a/1", "/a", ""]),
        ('{"a": 1, "ke', {"a": 1}, [""]),
        ('{"a": 12', {}, [""]),
        ('{"a": 1 /* x', {"a": 1}, [""]),
        ('"ab', "ab", [""]),
        ("nul", None, None),
        ("[1]", [1], []),
        ("", None, None),
    ],
)
def test_value_of_a_text_that_was_cut_stands_or_is_closed(text, value, closed):
    for _, split in every_way(text):
        if not text:
            assert list(json_deltas(split, prose=False)) == []
            continue
        if closed is None:
            with pytest.raises(DecodeError):  # the end of the text is the end of a word
                list(json_deltas(split, prose=False))
            continue
        left = list(json_deltas(split, prose=False))
        ended = list(json_deltas(split, prose=False, cut="close"))
        assert ended[: len(left)] == left
        assert [each.path for each in ended[len(left) :]] == closed
        assert {each.op for each in ended[len(left) :]} <= {"complete"}
        assert documents(split, prose=False) == documents(split, prose=False, cut="close") == [value]
        if closed:
            with pytest.raises(DecodeError, match="the text ended too early"):
                list(json_deltas(split, prose=False, cut="error"))


@pytest.mark.parametrize("text", ["prose", "", "[1", '{"a"'])
def test_document_can_be_required_in_prose(text):
    with pytest.raises(DecodeError):
        list(json_deltas([text], cut="error"))
    for cut in ("leave", "close"):
        assert list(json_deltas([text], cut=cut)) == []


@settings(max_examples=100)
@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=3), st.integers(1, 5))
def test_every_beginning_gives_a_beginning_of_the_value(value, size):
    text = json.dumps(value)
    whole = json.loads(text)
    for end in range(len(text)):
        found = documents([text[at : min(at + size, end)] for at in range(0, end, size)])
        for name, part in (found[0] if found else {}).items():
            assert whole[name].startswith(part)
