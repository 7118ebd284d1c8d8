"""Changes of JSON: all of them together are what json.loads makes of the whole, however it was cut."""

from __future__ import annotations

import json
from typing import Any, Iterable, List

import pytest
from costs import costs_at_most_times
from hypothesis import given, settings
from hypothesis import strategies as st
from items import FINITE
from splitting import every_way

from flask_llmstream import json_deltas, snapshots
from flask_llmstream.exceptions import BufferLimitExceeded, DecodeError, JsonLimitExceeded
from flask_llmstream.sansio.events import Custom, Finish, JsonDelta, ReasoningDelta, TextDelta, Usage
from flask_llmstream.sansio.jsondelta import JsonDocument, JsonOptions, JsonReader, apply_delta


def shown(value: Any) -> str:
    """Return what tells 1 from 1.0 and True, and one order of keys from another."""
    return repr(value)


def rebuilt(deltas: Iterable[Any]) -> Any:
    """Return the value that *deltas* make, by both of the ways there are."""
    document = JsonDocument()
    value = None
    for delta in deltas:
        document.apply(delta)
        value = apply_delta(value, delta)
    assert shown(document.value) == shown(value)
    return value


def pieces(text: str, size: int) -> List[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def outline(deltas: Iterable[JsonDelta]) -> List[Any]:
    return [(delta.path, delta.op, delta.value) for delta in deltas]


TEXTS = st.one_of(
    st.text(max_size=12), st.text("ab\"\\/~'\n\u2028\U0001f600\ud83d\ude00{}[],:`#", max_size=8)
)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), FINITE, TEXTS
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
LAYOUTS = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 1]),
     "separators": st.sampled_from([None, (",", ":"), (" , ", " : ")])}
)


@settings(max_examples=100)
@given(VALUES, LAYOUTS)
def test_all_changes_make_what_json_loads_makes_however_the_text_was_cut(value, layout):
    text = json.dumps(value, **layout)
    expected = shown(json.loads(text))
    for _, split in every_way(text):
        assert shown(rebuilt(json_deltas(split, strict=True))) == expected, split
        if isinstance(value, (dict, list)):
            assert shown(rebuilt(json_deltas(split))) == expected, split


@settings(max_examples=100)
@given(st.one_of(st.lists(VALUES, max_size=3), st.dictionaries(TEXTS, VALUES, max_size=3)), LAYOUTS)
def test_every_value_is_announced_once_and_then_completed_once(value, layout):
    open_paths: List[str] = []
    seen = set()
    for delta in json_deltas(pieces(json.dumps(value, **layout), 3)):
        if delta.op == "append":
            assert delta.path == open_paths[-1] and delta.value
        elif delta.op == "complete":
            assert delta.path == open_paths.pop()
        else:
            assert delta.path not in seen
            seen.add(delta.path)
            open_paths.append(delta.path)
            assert delta.value in ({}, []) or not isinstance(delta.value, (dict, list))
    assert not open_paths and "" in seen


@settings(max_examples=300)
@given(st.text('{}[],:"\\ue1.-+ tfn\n/*#\'`aTN\ud83d', max_size=30), st.booleans(), st.integers(0, 30))
def test_any_text_ends_in_the_documented_errors_alone_and_never_depends_on_cuts(text, strict, cut):
    def read(tokens: Iterable[str]) -> Any:
        document = JsonDocument()
        failure = ""
        try:
            for delta in json_deltas(tokens, strict=strict, max_depth=4):
                document.apply(delta)
        except (DecodeError, BufferLimitExceeded) as exc:
            failure = str(exc)
        return shown(document.value), document.complete, failure

    whole = read([text])
    assert read([text[:cut], text[cut:]]) == whole
    assert read(pieces(text, 1)) == whole


def test_strings_grow_and_all_else_appears_when_it_is_whole():
    tokens = ['{"na', 'me":', ' "Ad', 'a Love', 'lace"', ', "born": 18', '15, "ok"', ': tr', 'ue}']
    assert [outline(snapshot.deltas) for snapshot in snapshots(tokens)] == [
        [("", "add", {})],
        [("/name", "add", "Ad")],
        [("/name", "append", "a Love")],
        [("/name", "append", "lace"), ("/name", "complete", None)],
        [("/born", "add", 1815), ("/born", "complete", None)],
        [("/ok", "add", True), ("/ok", "complete", None), ("", "complete", None)],
    ]


def test_one_token_of_a_string_makes_one_change_whatever_it_escapes():
    deltas = outline(json_deltas(['["', 'a\\n\\u00e9\\"b', '"]']))
    assert deltas == [
        ("", "add", []), ("/0", "add", ""), ("/0", "append", 'a\né"b'), ("/0", "complete", None),
        ("", "complete", None),
    ]


def test_paths_are_json_pointers():
    deltas = json_deltas(['{"a/b": [0, {"~c": 1}], "": {"~1": []}}'])
    assert [delta.path for delta in deltas if delta.op == "add"] == [
        "", "/a~1b", "/a~1b/0", "/a~1b/1", "/a~1b/1/~0c", "/", "//~01",
    ]


def test_last_of_a_key_that_comes_twice_wins():
    text = '{"a": {"x": 1}, "b": 2, "a": "new", "a": [3]}'
    deltas = list(json_deltas(pieces(text, 4)))
    assert [(each.op, each.value) for each in deltas if each.path == "/a" and each.op != "complete"] == [
        ("add", {}), ("replace", "ne"), ("append", "w"), ("replace", []),
    ]
    assert shown(rebuilt(deltas)) == shown(json.loads(text))


@pytest.mark.parametrize(
    "text, value",
    [
        pytest.param(r'"\ud83d\ude00"', "\U0001f600", id="pair"),
        pytest.param(r'"\uD83D\uDE00\ud83d\ude01"', "\U0001f600\U0001f601", id="pairs"),
        pytest.param(r'"\ud83d"', "\ud83d", id="lone-high"),
        pytest.param(r'"\ude00\ud83dx"', "\ude00\ud83dx", id="lone-ones"),
        pytest.param(r'"\ud83d\ud83d\ude00"', "\ud83d\U0001f600", id="two-highs"),
        pytest.param(r'"\ud83d\n\ud83d\u0041"', "\ud83d\n\ud83dA", id="high-then-another-escape"),
        pytest.param(r'"\ud83d\u00e9\ud83d\ude"', None, id="cut-low"),
        pytest.param(r'"\"\\\/\b\f\n\r\t"', '"\\/\b\f\n\r\t', id="short-ones"),
        pytest.param(r'"\u0000"', "\0", id="nul"),
    ],
)
def test_escapes_cut_anywhere(text, value):
    if value is None:
        for _, split in every_way(text):
            with pytest.raises(DecodeError):
                list(json_deltas(split, strict=True))
        return
    assert json.loads(text) == value
    for _, split in every_way(text):
        deltas = list(json_deltas(split, strict=True))
        assert rebuilt(deltas) == value, split
        if value == "\U0001f600":
            assert not any("\ud83d" in (delta.value or "") for delta in deltas)


@pytest.mark.parametrize(
    "text",
    ["0", "-0", "-0.0", "1e5", "1E+5", "1.5e-3", "1e999", "-1e999", "123456789012345678901234567890",
     "0.1", "3.141592653589793238462643383279", "9" * 4300],
)
def test_numbers_are_those_of_json_loads(text):
    for form in (text, f" {text} ", f"[{text}]", f'{{"a":{text}}}'):
        assert shown(rebuilt(json_deltas([form[:2], form[2:]], strict=True))) == shown(json.loads(form))


#: What a parser must take, by kind of case.
ACCEPTED = [
    "[]", "{}", "[[]]", "[ ]", "{ \n\t\r}", '""', "null", "true", "false", " 1 ", '[1,"a",null]', '{"":0}',
    '{"a":{"a":{}}}', '{"a":1,"a":2}', '["\u2028\u2029\x7f"]', '["\U0010ffff\uffff"]', '["/", "\\/"]',
    "[0e1,0E1,0e+1,1E22,1e-2,-1,-0,1.0,20e1]", '{"\\u0061":"\\u0062"}', "[\"\ufeff\"]", "[2.]"[:2] + "]",
    '{"a":[],"b":{},"c":""}', "[null, 1, \"1\", {}]", '["asd "]', "\n[1]\n\n",
]
#: What it must reject.
REJECTED = [
    "", " ", "[", "]", "{", "}", "[1", '["a', '["a"', "[1,", "[1,]", "[,1]", "[1,,2]", "[,]", "[1 2]",
    "[1]]", "[1}", '{"a":1]', '{"a"}', '{"a":}', '{"a" 1}', '{"a":1,}', '{"a":1,,"b":2}', '{,"a":1}', "{1:2}",
    "{a:1}", "{'a':1}", "['a']", '{"a":1 "b":2}', '{"a"::1}', '{"a":1}x', "[1]x", "1 2",
    '"a""b"', "nul", "nulL",
    "True", "None", "undefined", "nul]", "[-]", "[+1]", "[01]", "[-01]", "[1.]", "[.5]", "[1.e1]", "[1e]",
    "[1e+]", "[1ee2]", "[0x1]", "[1a]", "[1_000]", "[--1]", "[1.2.3]", "[\uff11]", "[1+2]", "[1-]", '["\\x"]',
    '["\\"]', '["\\u12"]', '["\\u123g"]', '["\\uD83D\\u"]', "[\"\\'\"]", '["\\\n"]', '["a\nb"]',
    '["\t"]', '["\0"]',
    '["\x1f"]', "\ufeff[]", "[1]\0", "[\0]", "[\x0b1]", "[\u00a01]", "/**/[]", "[1/**/]", "[1]//",
    "#\n1", "[1] #",
    "[/", '"', "\\", "@", "&", "```json\n[]\n```", "[" * 100000, '{"":' * 100000, "\"\\ud8", "*", "[\n\n,",
]
#: What RFC 8259 leaves open, or json.loads takes beyond it, and what becomes of it here.
EITHER = [
    ("[NaN]", False), ("[Infinity]", False), ("[-Infinity]", False), ('["\\ud800"]', True), ("[1e999]", True),
    ('["\ud800"]', True), ("[" * 100 + "]" * 100, True), ("[" * 101 + "]" * 101, False),
    ("[" + "9" * 4301 + "]", False),
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_strict_mode_accepts(text):
    for _, split in every_way(text):
        assert shown(rebuilt(json_deltas(split, strict=True))) == shown(json.loads(text))


@pytest.mark.parametrize("text", REJECTED, ids=lambda text: repr(text[:12]))
def test_strict_mode_rejects_what_json_loads_rejects_and_says_where(text):
    with pytest.raises((ValueError, RecursionError)):
        json.loads(text)
    for split in [split for _, split in every_way(text)] if len(text) < 100 else [[text], pieces(text, 7)]:
        with pytest.raises((DecodeError, JsonLimitExceeded), match=r"line \d+ column \d+ \(char \d+\)"):
            list(json_deltas(split, strict=True))


@pytest.mark.parametrize("text, accepted", EITHER, ids=lambda text: repr(text)[:12])
def test_strict_mode_decides_what_is_left_open(text, accepted):
    if accepted:
        assert shown(rebuilt(json_deltas([text], strict=True))) == shown(json.loads(text))
    else:
        with pytest.raises((DecodeError, JsonLimitExceeded)):
            list(json_deltas([text], strict=True))


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1,\n 2 x]", "line 2 column 4 (char 7): expected ',' or ']', got 'x'"),
        ('{"a": 1\n\n"', "line 3 column 1 (char 9): expected ',' or '}', got '\"'"),
        ("[1,\nnulx]", "line 2 column 1 (char 4): neither a number nor a literal"),
        ('["a\\q"]', "line 1 column 4 (char 3): no such escape"),
        ("[\n\n1", "line 3 column 2 (char 4): the text ended too early"),
        ("", "line 1 column 1 (char 0): there is no text"),
        ('{"a"\n1}', "line 2 column 1 (char 5): expected ':', got '1'"),
        ("{1}", "line 1 column 2 (char 1): expected a key in quotes, got '1'"),
        ("[1]\n\n x", "line 3 column 2 (char 6): expected the end of the text, got 'x'"),
        ("[" + "1" * 5000 + "]", "(char 4301): a number of more than 4300 characters"),
    ],
)
def test_messages_say_where_and_what(text, message):
    for split in [[text], pieces(text, 1)] if len(text) < 100 else [pieces(text, 1)]:
        with pytest.raises(DecodeError) as caught:
            list(json_deltas(split, strict=True))
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "text, name, limit",
    [
        ("[" * 9, "max_depth", 8),
        ('{"abcdefghij": 1}', "max_path", 10),
        ('{"' + "k" * 500, "max_path", 10),
        ('{"abc": {"abc": {"abc": 1}}}', "max_path", 10),
        ('["' + "a" * 100, "max_size", 64),
        ("[" + " " * 100, "max_size", 64),
        ('["' + "a" * 100 + '"]', "max_size", 64),
        ('"' + "a" * 100 + '"', "max_size", 64),
    ],
)
def test_limits_are_errors_that_name_the_option(text, name, limit):
    for size in (1, 5, len(text)):
        with pytest.raises(JsonLimitExceeded, match=f"{name}={limit}; raise {name}") as caught:
            list(json_deltas(pieces(text, size), strict=True, **{name: limit}))
        assert (caught.value.name, caught.value.limit) == (name, limit)


def test_size_is_that_of_one_document():
    text = "so much prose " * 10 + '{"a": 1}\n' * 20
    assert len([each for each in json_deltas([text], max_size=8) if each.path == ""]) == 40
    with pytest.raises(JsonLimitExceeded):
        list(json_deltas([text], max_size=7))


def test_what_came_before_a_fault_is_handed_out_first():
    deltas = json_deltas(['{"a": "x", !', "never read"])
    assert outline(next(deltas) for _ in range(3)) == [
        ("", "add", {}), ("/a", "add", "x"), ("/a", "complete", None),
    ]
    assert deltas.ready == 0
    with pytest.raises(DecodeError, match="expected a key in quotes, got '!'"):
        next(deltas)
    assert list(deltas) == []


def test_reader_keeps_to_its_first_fault_and_to_its_end():
    reader = JsonReader(JsonOptions(strict=True))
    assert reader.feed("[1")[1] is None
    failure = reader.feed(" 2")[1]
    assert isinstance(failure, DecodeError) and failure.__traceback__ is None
    assert reader.feed("]") == ([], failure) and reader.flush() == ([], failure)
    reader = JsonReader()
    reader.feed("[]")
    assert reader.flush() == ([], None) and reader.flush() == ([], None)
    with pytest.raises(RuntimeError, match="new reader"):
        reader.feed("[]")


def test_what_is_no_text_passes_in_its_place():
    items = [
        ReasoningDelta("hm"), TextDelta('["a'), Custom("x"), TextDelta('"]'), Usage(1, 2), Finish("stop"),
    ]
    got = list(json_deltas(items))
    assert [each for each in got if not isinstance(each, JsonDelta)] == [items[0], items[2], *items[4:]]
    assert got.index(Custom("x")) == 3 and got[-1] == Finish("stop")
    assert [snapshot.value for snapshot in snapshots(items)][-1] == ["a"]


class Source:
    """Items that come in bursts."""

    def __init__(self, *bursts: Any) -> None:
        self.bursts = list(bursts)
        self.burst: List[Any] = []
        self.closed = 0

    @property
    def ready(self) -> int:
        return len(self.burst)

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> Any:
        if not self.burst:
            if not self.bursts:
                raise StopIteration
            self.burst = list(self.bursts.pop(0))
        item = self.burst.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.closed += 1


def test_burst_of_the_source_is_one_of_changes():
    source = Source(['{"a"', ': "', "b", "c"], ['"', "}"])
    deltas = json_deltas(source)
    assert deltas.ready == 0
    assert next(deltas) == JsonDelta("", "add", {})
    assert (deltas.ready, source.ready, len(source.bursts)) == (3, 0, 1)
    assert len(list(deltas)) == 5


def test_failure_of_the_source_comes_behind_what_it_had_sent():
    deltas = json_deltas(Source(["[", "1,", OSError("gone"), "2"]))
    assert outline([next(deltas), next(deltas), next(deltas)])[-1] == ("/0", "complete", None)
    with pytest.raises(OSError, match="gone"):
        next(deltas)
    assert list(deltas) == []
    deltas = json_deltas(Source([OSError("at once")]))
    with pytest.raises(OSError, match="at once"):
        next(deltas)


def test_fault_in_a_burst_ends_it():
    source = Source(["[1, !", "2"])
    deltas = json_deltas(source)
    with pytest.raises(DecodeError):
        list(deltas)
    assert source.ready == 1


def test_end_in_a_burst_ends_it():
    class Wrong(Source):
        ready = 5  # type: ignore[assignment]

    assert rebuilt(json_deltas(Wrong(["[1]"]))) == [1]
    Wrong.ready = None  # type: ignore[assignment]
    assert rebuilt(json_deltas(Wrong(["[1]"]))) == [1]


def test_close_closes_the_source_and_nothing_follows():
    source = Source(["[1,", "2"], ["]"])
    deltas = json_deltas(source, cut="error")
    next(deltas)
    deltas.close()
    assert (source.closed, deltas.ready, list(deltas)) == (1, 0, [])

    closed = []

    def generate():
        try:
            yield '["'
        finally:
            closed.append(True)

    deltas = json_deltas(generate(), cut="error")
    next(deltas)
    deltas.close()
    assert closed == [True] and list(deltas) == []
    json_deltas(["["]).close()


def test_close_closes_both_an_iterator_and_what_it_came_from():
    closed = []

    class Opened:
        def __iter__(self):
            try:
                yield '["'
            finally:
                closed.append("iterator")

        def close(self):
            closed.append("source")

    deltas = json_deltas(Opened())
    next(deltas)
    deltas.close()
    assert closed == ["iterator", "source"]


def test_end_that_close_has_brought_is_no_cut():
    class Closing(Source):
        def __next__(self) -> Any:
            if not self.bursts:
                deltas.close()
            return super().__next__()

    deltas = json_deltas(Closing(['["']), cut="error")
    assert outline(deltas) == [("", "add", []), ("/0", "add", "")]


def test_snapshots_show_the_value_after_each_token_that_changes_it():
    tokens = ["Here: ", '{"a": [1', ', "x', 'y"', ", 2", "]}"]
    seen = []
    for snapshot in snapshots(tokens):
        seen.append((json.dumps(snapshot.value), snapshot.complete))
    assert seen == [
        ('{"a": []}', False), ('{"a": [1, "x"]}', False), ('{"a": [1, "xy"]}', False),
        ('{"a": [1, "xy", 2]}', True),
    ]


def test_snapshots_of_a_burst_do_not_run_ahead():
    source = Source(['["a', "b", "c", '"]'])
    seen = [json.dumps(snapshot.value) for snapshot in snapshots(source)]
    assert seen == ['["a"]', '["ab"]', '["abc"]', '["abc"]']


@settings(max_examples=50)
@given(st.lists(VALUES, max_size=3), st.integers(1, 5))
def test_last_snapshot_is_the_whole(value, size):
    text = json.dumps(value)
    value = json.loads(text)  # two halves of a character are one now
    last = None
    for last in snapshots(pieces(text, size)):
        assert isinstance(last.value, list)
    assert last is not None and shown(last.value) == shown(value) and last.complete


@pytest.mark.parametrize(
    "options", [{"cut": "never"}, {"max_depth": 0}, {"max_size": "1"}, {"max_documents": 0}]
)
def test_options_that_make_no_sense_are_refused_at_once(options):
    with pytest.raises(ValueError, match=f"{list(options)[0]} is .*, expected"):
        json_deltas([], **options)
    with pytest.raises(TypeError):
        json_deltas([], tolerant=True)


@pytest.mark.parametrize(
    "deltas, message",
    [
        ([JsonDelta("/a", "add", 1)], "leads nowhere"),
        ([JsonDelta("", "add", {}), JsonDelta("/a/b", "add", 1)], "leads nowhere"),
        ([JsonDelta("", "add", {}), JsonDelta("/a", "replace", 1)], "leads nowhere"),
        ([JsonDelta("", "add", []), JsonDelta("/1", "add", 1)], "leads nowhere"),
        ([JsonDelta("", "add", []), JsonDelta("/00", "add", 1)], "leads nowhere"),
        ([JsonDelta("", "add", []), JsonDelta("/x", "add", 1)], "leads nowhere"),
        ([JsonDelta("", "add", []), JsonDelta("/0", "replace", 1)], "leads nowhere"),
        ([JsonDelta("", "add", []), JsonDelta("/" + "9" * 99, "add", 1)], "leads nowhere"),
        ([JsonDelta("", "add", {}), JsonDelta("", "append", "a")], "no text"),
        ([JsonDelta("", "add", {}), JsonDelta("a", "append", "a")], "must be empty or begin with '/'"),
        ([JsonDelta("", "remove")], "op of a delta is 'remove'"),
        ([JsonDelta("", "add", {}), JsonDelta("/a", "move", 1)], "op of a delta is 'move'"),
    ],
)
def test_deltas_that_cannot_be_applied_are_refused(deltas, message):
    *before, last = deltas
    document = JsonDocument()
    value = None
    for delta in before:
        document.apply(delta)
        value = apply_delta(value, delta)
    with pytest.raises(ValueError, match=message):
        document.apply(last)
    with pytest.raises(ValueError, match=message):
        apply_delta(value, last)


def test_deltas_that_others_make_can_be_applied_too():
    assert rebuilt([
        JsonDelta("", "add", {"a": ["x"], "b": {"c": []}}),
        JsonDelta("/a/0", "append", "y"),
        JsonDelta("/a/-", "add", "end"),
        JsonDelta("/a/0", "add", {}),
        JsonDelta("/a/0/~1~0", "add", [1]),
        JsonDelta("/a/0", "add", 0),
        JsonDelta("/a/1/~1~0/-", "add", 2),
        JsonDelta("/b", "replace", {}),
        JsonDelta("/b/c", "add", "t"),
        JsonDelta("/b/c", "append", "u"),
        JsonDelta("/a/2", "append", "z"),
    ]) == {"a": [0, {"/~": [1, 2]}, "xyz", "end"], "b": {"c": "tu"}}


def test_deltas_stay_as_they_are_when_they_are_applied():
    deltas = list(json_deltas(['{"a": [1]}']))
    before = outline(deltas)
    rebuilt(deltas)
    assert outline(deltas) == before and before[0] == ("", "add", {})


def read_to_the_end(tokens: List[str]) -> None:
    try:
        for _ in snapshots(tokens):
            pass
    except (DecodeError, BufferLimitExceeded):
        pass


@pytest.mark.parametrize("kind", ["text", "members"])
def test_cost_per_token_does_not_grow(kind):
    """From 5 KB to half a MB; a cost that grows with the text would be a ratio of a hundred."""
    def tokens(size: int) -> List[str]:
        if kind == "text":
            text = '["' + "many words and\\nmore " * (size // 20) + '"]'
        else:
            text = json.dumps([{"id": i, "name": "x"} for i in range(size // 25)])
        return pieces(text, 20)

    small, large = tokens(5000), tokens(500000)
    longer = len(large) / len(small)
    times = costs_at_most_times(3 * longer, lambda: read_to_the_end(small), lambda: read_to_the_end(large))
    print(f"{kind}: a token of half a MB costs {times / longer:.2f} times what one of 5 KB does")


@pytest.mark.parametrize(
    "part",
    ["[", "[x", '{"', "`", '["', '{"a":', "[/*", "[#\n", "```j", "[[x", "\\ud83d", "[1", "{}", '"a" '],
)
@pytest.mark.parametrize("begin", ["", '["'])
def test_text_that_means_harm_costs_no_more_than_its_length(part, begin):
    """Ten times the text may take ten times as long; what grows with the square takes a hundred."""
    def read(size: int) -> None:
        text = begin + part * (size // len(part))
        read_to_the_end([text])
        read_to_the_end(pieces(text, 16))

    times = costs_at_most_times(30, lambda: read(5000), lambda: read(50000), floor=0.001)
    print(f"{times:.1f} times")
