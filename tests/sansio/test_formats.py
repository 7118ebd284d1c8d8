"""The registry of wire formats, and which one a client gets."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio import formats
from flask_llmstream.sansio.formats import format_names, is_format, make_format, negotiate, register_format
from flask_llmstream.sansio.wire import WireFormat, usage_fields

FRAMES = "application/vnd.llmstream.frames"
ITEMS = [
    "text", e.TextDelta("text"), b"text", {"a": 1}, [1], e.Event("data", event="own"), e.Comment("c"),
    e.ReasoningDelta("hm"), e.ToolCallDelta(0, "c1", "find", "{}"), e.JsonDelta("/a", "add", 1),
    e.Usage(1, 2), e.Finish("length"), e.Custom("own", None),
]


@pytest.fixture
def registry(monkeypatch):
    """The registry, which is put back afterwards."""
    monkeypatch.setattr(formats, "_factories", dict(formats._factories))
    monkeypatch.setattr(formats, "_OFFERS", list(formats._OFFERS))
    yield
    formats._choose.cache_clear()


# -- by name -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", format_names())
def test_every_format_has_what_a_stream_asks_of_it(name):
    wire = make_format(name)
    assert wire.name == name
    assert wire.content_type.isascii() and "/" in wire.content_type
    assert wire.heartbeat is None or (isinstance(wire.heartbeat, bytes) and wire.heartbeat)
    assert isinstance(wire.opening(0), bytes)
    said = [wire.encode(item) for item in ITEMS]
    assert all(isinstance(each, bytes) for each in said)
    assert b"text" in said[0]
    assert wire.decode_text(b"\xc3") == "" and wire.decode_text(b"\xa9") == "é"
    assert isinstance(wire.done("stop", e.Usage(1, 2)), bytes)
    assert isinstance(make_format(name).failed("m", "c", True), bytes)


@pytest.mark.parametrize("name", format_names())
@pytest.mark.parametrize("item", [None, 5, ("a", "b"), e.TextDelta(5), e.ReasoningDelta(5)], ids=repr)
def test_every_format_refuses_what_is_no_item(name, item):
    if name == "text" and isinstance(item, e.ReasoningDelta):
        return  # says nothing of it, whatever it is
    with pytest.raises(TypeError):
        make_format(name).encode(item)


@pytest.mark.parametrize("name", format_names())
@pytest.mark.parametrize("padding", [0, 1, 40, 1023, 1024, 1025, 65536])
def test_opening_is_as_long_as_it_should_be_or_not_there(name, padding):
    opening = make_format(name).opening(padding)
    assert opening == b"" or padding <= len(opening) <= padding + 1100


@pytest.mark.parametrize("name", format_names())
def test_every_format_object_is_new(name):
    assert make_format(name) is not make_format(name)


def test_the_default_exists():
    assert formats.DEFAULT == "sse" and {"sse", "ndjson", "text", "frames"} <= set(format_names())


@pytest.mark.parametrize(
    "name, ids",
    [
        ("ai-sdk", ["msg-s7"]), ("openai", ["chatcmpl-s7", '"created":99']), ("anthropic", ["msg_s7"]),
        ("openai-responses", ["resp_s7", '"created_at":99']), ("ag-ui", ["run-s7"]), ("sse", []),
    ],
)
def test_formats_that_say_which_stream_it_is_are_told(name, ids):
    said = make_format(name, "s7", 99).encode("hello").decode()
    assert "hello" in said and [each for each in ids if each not in said] == []


def test_unknown_name_is_refused_with_those_that_exist():
    names = ".*frames, ndjson, .*sse, text"
    with pytest.raises(ValueError, match=f"no wire format 'jsonl'; there are: {names}"):
        make_format("jsonl")


@pytest.mark.parametrize("name, options, said", [
    ("openai", {"model": "small"}, '"model":"small"'),
    ("openai-responses", {"model": "small"}, '"model":"small"'),
    ("anthropic", {"model": "small", "id": "mine"}, '"id":"mine"'),
    ("ag-ui", {"thread_id": "t1", "run_id": "r1"}, '"threadId":"t1","runId":"r1"'),
])
def test_format_takes_options(name, options, said):
    assert said in make_format(name, "s7", 99, options).encode("hello").decode()


@pytest.mark.parametrize("name, expected", [
    ("openai", "has no option 'colour'; it has id, model, created"), ("sse", "it has none"),
])
def test_option_that_a_format_does_not_have_is_refused(name, expected):
    with pytest.raises(ValueError, match=expected):
        make_format(name, options={"colour": "red"})


def test_format_of_ones_own_takes_options(registry):
    register_format("mine", lambda **options: options)
    assert make_format("mine", options={"colour": "red"}) == {"colour": "red"}
    register_format("mine", lambda colour="blue": colour)
    assert make_format("mine", options={"colour": "red"}) == "red"
    assert make_format("mine") == "blue"


def test_formats_are_imported_when_they_are_asked_for():
    code = (
        "import sys; from flask_llmstream.sansio import formats\n"
        "loaded = lambda: sorted(n for n in sys.modules if n.startswith('flask_llmstream.sansio.'))\n"
        "assert loaded() == ['flask_llmstream.sansio.formats'], loaded()\n"
        "formats.make_format('text')\n"
        "assert 'flask_llmstream.sansio.text' in loaded()\n"
        "assert 'flask_llmstream.sansio.frames' not in loaded()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_format_that_says_nothing_of_an_item_has_no_opening_of_its_own():
    assert WireFormat().opening(100) == b""


@pytest.mark.parametrize(
    "say", [
        lambda wire: wire.encode("a"), lambda wire: wire.encode(e.ReasoningDelta("a")),
        lambda wire: wire.done("stop"), lambda wire: wire.encode(e.Event("a")),
        lambda wire: wire.encode(e.Comment("a")),
    ],
)
def test_what_a_subclass_has_to_say_is_not_said_by_the_base(say):
    with pytest.raises(NotImplementedError):
        say(WireFormat())


def test_native_module_still_names_the_fields_of_usage():
    from flask_llmstream.sansio import native

    assert native.usage_fields is usage_fields


# -- a format of one's own -----------------------------------------------------------------


class Mine(WireFormat):
    name = "mine"
    content_type = "application/x-mine"


def test_registered_format_is_made(registry):
    register_format("mine", Mine)
    assert isinstance(make_format("mine"), Mine) and "mine" in format_names()


def test_registered_format_without_a_media_type_is_not_negotiated(registry):
    register_format("mine", Mine)
    assert negotiate("application/x-mine") == "sse"


def test_registered_media_type_is_negotiated_behind_ours(registry):
    register_format("mine", Mine, media_type="Application/X-Mine")
    assert negotiate("application/x-mine") == "mine"
    assert negotiate("application/*") == "ndjson"
    assert negotiate("text/event-stream;q=0.5, application/x-mine") == "mine"


def test_registered_media_type_counts_for_what_was_asked_for_before(registry):
    assert negotiate("application/x-mine, text/plain;q=0.1") == "text"
    register_format("mine", Mine, media_type="application/x-mine")
    assert negotiate("application/x-mine, text/plain;q=0.1") == "mine"


def test_field_that_is_too_long_to_be_remembered_is_read(registry):
    remembered = formats._choose.cache_info().currsize
    assert negotiate("application/x-nothing, " * 50 + "text/plain") == "text"
    assert formats._choose.cache_info().currsize == remembered


def test_format_is_known_by_its_name(registry):
    register_format("mine", Mine)
    assert all(map(is_format, ["sse", "mine"])) and not is_format("yours")


def test_registering_a_name_again_replaces_all_of_it(registry):
    register_format("mine", Mine, media_type="application/x-mine")
    register_format("mine", lambda: "other", media_type="application/x-mine")
    assert make_format("mine") == "other" and negotiate("application/x-mine") == "mine"
    register_format("mine", Mine)
    assert negotiate("application/x-mine") == "sse"


@pytest.mark.parametrize("name", ["", None, 5, "sse", "frames"])
def test_name_that_is_not_to_be_had_is_refused(registry, name):
    with pytest.raises(ValueError, match="needs a name of its own"):
        register_format(name, Mine)


def test_factory_has_to_be_callable(registry):
    with pytest.raises(TypeError, match="got a WireFormat"):
        register_format("mine", WireFormat())


@pytest.mark.parametrize("media_type", ["", "mine", "*/*", "text/*", "application/x-mine; a=b", " a/b"])
def test_media_type_that_is_none_is_refused(registry, media_type):
    with pytest.raises(ValueError, match="expected a media type such as"):
        register_format("mine", Mine, media_type=media_type)
    assert "mine" not in format_names()


def test_media_type_of_another_format_is_refused(registry):
    with pytest.raises(ValueError, match="text/plain means 'text' already"):
        register_format("mine", Mine, media_type="text/Plain")


# -- by Accept -----------------------------------------------------------------------------

DEFAULT_OF_REAL_CLIENTS = {
    "none": None,
    "curl, requests, fetch": "*/*",
    "openai, anthropic, litellm": "application/json",
    "axios, Angular": "application/json, text/plain, */*",
    "a browser's address bar": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,"
    "image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7",
    "EventSource": "text/event-stream",
    "MCP": "application/json, text/event-stream",
    "Java's HttpURLConnection": "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
    "jQuery": "text/plain, */*; q=0.01, text/event-stream",
}


@pytest.mark.parametrize("accept", list(DEFAULT_OF_REAL_CLIENTS.values()), ids=list(DEFAULT_OF_REAL_CLIENTS))
def test_what_clients_send_unasked_gets_an_event_stream(accept):
    assert negotiate(accept) == "sse"


@pytest.mark.parametrize(
    "accept, name",
    [
        ("application/x-ndjson", "ndjson"),
        ("application/ndjson", "ndjson"),
        ("text/plain", "text"),
        (FRAMES, "frames"),
        ("TEXT/Plain", "text"),
        # weights
        ("text/event-stream;q=0.5, text/plain;q=0.6", "text"),
        ("text/event-stream;q=0.5,text/plain;q=0.5", "sse"),
        ("text/plain;q=0.001, text/event-stream;q=0", "text"),
        ("text/event-stream; Q=0.2 , application/x-ndjson;q=1.000", "ndjson"),
        ("application/ndjson;q=0.9,application/x-ndjson;q=0.1,text/plain;q=0.5", "ndjson"),
        ("text/plain;q=0.9,application/json", "text"),
        ("text/plain;q=0.9;version=1, text/event-stream;q=0.8", "text"),
        ("text/plain;q=1.,text/event-stream;q=0.", "text"),
        # wildcards
        ("text/*", "sse"),
        ("application/*", "ndjson"),
        ("image/*", "sse"),
        ("*/*;q=0.1", "sse"),
        ("application/x-ndjson, */*;q=0.5", "ndjson"),
        ("text/*;q=0.5, application/*", "ndjson"),
        # the more precise range counts, wherever it stands
        ("*/*, text/event-stream;q=0", "ndjson"),
        ("text/event-stream;q=0.1, */*;q=0.2, application/*;q=0", "text"),
        ("text/*;q=0.9, text/event-stream;q=0.2, */*;q=0.5", "text"),
        ("text/plain;charset=utf-8;q=0.2, text/plain;q=0.9, text/event-stream;q=0.5", "sse"),
        # parameters
        ("text/plain; charset=UTF-8", "text"),
        ('text/plain;charset="utf-8"', "text"),
        ('text/plain;charset="u\\tf-8"', "text"),
        ("text/plain;;charset=utf-8;", "text"),
        ("text/plain;charset=iso-8859-1, application/x-ndjson;q=0.1", "ndjson"),
        ("text/plain;format=flowed", "sse"),
        ('text/html;title="a, text/plain;q=1", application/ndjson;q=0.3', "ndjson"),
        # lists
        (",, text/plain ,", "text"),
        ("\ttext/plain\t;\tq=0.5\t", "text"),
        # nothing that could be sent: the default all the same
        ("*/*;q=0", "sse"),
        ("text/event-stream;q=0", "sse"),
        ("", "sse"),
        (" , ", "sse"),
    ],
)
def test_negotiation(accept, name):
    assert negotiate(accept) == name


@pytest.mark.parametrize(
    "malformed",
    [
        "text/plain;q=2", "text/plain;q=1.001", "text/plain;q=0.1234", "text/plain;q=.5", "text/plain;q=",
        "text/plain;q=-1", "text/plain;q=nan", "text/plain;q", "text/plain;q=\"0.5\"", "text/plain;a b=c",
        "text", "text/", "/plain", "*/plain", "text/plain/x", "tex t/plain", "text /plain",
        'text/plain;charset="utf-8', 'text/plain"', "text/plain; charset = utf-8", "text/pläin", "\0",
        ";q=1", "text/plain;q=0.\u0665",
    ],
)
def test_malformed_field_counts_as_none_at_all(malformed):
    assert negotiate(malformed) == "sse"
    assert negotiate(f"text/plain, {malformed}") == "sse"


@given(st.text(alphabet='*/;,="\\ \tq01.textplain-evsrmaiojd', max_size=60))
def test_any_text_gets_some_format(accept):
    assert negotiate(accept) in format_names()


MEDIA_TYPES = st.sampled_from(["text/event-stream", "application/x-ndjson", "text/plain", FRAMES])
WEIGHTED = st.tuples(MEDIA_TYPES, st.integers(0, 1000))


@given(st.lists(WEIGHTED, max_size=4, unique_by=lambda pair: pair[0]), st.randoms())
def test_heaviest_range_wins_in_any_order(ranges, random):
    """What a list means does not depend on its order."""
    random.shuffle(ranges)
    accept = ", ".join(f"{media_type};q={weight / 1000:.3f}" for media_type, weight in ranges)
    best = max((weight for _, weight in ranges), default=0)
    names = dict(formats._OFFERS)
    likeliest = {names[media_type] for media_type, weight in ranges if weight == best}
    assert negotiate(accept) in (likeliest if best else {"sse"})


@pytest.mark.parametrize("piece", ['"', '"\\', '"a"', "a/b;", " ;", ",", "a/b; ;c=d,", "a/b;q=1,"])
def test_hostile_fields_take_no_time(piece):
    """As long as a server lets a field be, and far longer."""
    for accept in (piece * 20000, piece * 20000 + '"'):
        assert negotiate(accept) == "sse"


def test_every_built_in_media_type_belongs_to_a_format():
    assert {name for _, name in formats._OFFERS} <= set(format_names())
    for media_type, name in formats._OFFERS:
        own = make_format(name).content_type.partition(";")[0]
        assert own == media_type or media_type == "application/ndjson"
    for one, other in itertools.combinations(formats._OFFERS, 2):
        assert one[0] != other[0]
