"""What a stream has cost: as the providers say it, or counted where they could not."""

from __future__ import annotations

from known_providers import ours
from serving import Served

from flask_llmstream.exceptions import UpstreamInterrupted
from flask_llmstream.sansio.events import Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from flask_llmstream.testing.upstreams import ScriptedUpstream, cut, silence, speak, wait


def test_a_call_that_was_cut_and_one_that_took_its_place_are_both_paid_for(upstream):
    def source():
        upstream.script = speak("anthropic", ReasoningDelta("Hm."), "a", wait(0.05), cut())
        try:
            yield from ours("anthropic", upstream)
        except UpstreamInterrupted:
            upstream.script = speak("anthropic", "b", Finish("stop"), Usage(9, 4))
            yield from ours("anthropic", upstream)

    with Served(source()) as served:
        served.read()
    end = served.end()
    assert (end.reason, end.text) == ("finish", "ab")
    assert (end.usage, end.estimated) == (Usage(7 + 9, 2 + 4), True)


def test_a_call_that_said_it_all_is_not_estimated(upstream):
    upstream.script = speak("anthropic", "a", Finish("stop"), Usage(9, 4))
    with Served(ours("anthropic", upstream)) as served:
        served.read()
    assert (served.end().usage, served.end().estimated) == (Usage(9, 4), False)


def test_a_client_that_leaves_in_the_middle_pays_for_what_was_read(upstream):
    upstream.script = speak("gemini", "a", "b", silence())
    with Served(ours("gemini", upstream)) as served:
        served.read_until(b'"b"')
        served.client.close()
        end = served.end()
    assert (end.reason, end.usage, end.estimated) == ("disconnect", Usage(7, 2), True)
    upstream.wait_closed()


def test_nothing_is_estimated_where_nothing_came(upstream):
    upstream.script = [cut()]
    with Served(ours("openai", upstream)) as served:
        served.read()
    assert (served.end().usage, served.end().estimated) == (None, False)


def test_reasoning_and_tool_calls_are_output_too():
    items = [ReasoningDelta("Hm."), "a", TextDelta("b"), ToolCallDelta(0, "c", "f", "{}")]
    with Served(items) as served:
        served.read()
    assert (served.end().usage, served.end().estimated) == (Usage(output_tokens=4), True)


def test_all_calls_of_a_stream_are_closed_at_its_end():
    """Each takes itself off the list of those."""
    with ScriptedUpstream(speak("openai", "a", silence())) as upstream:
        calls = [ours("openai", upstream) for _ in range(3)]

        def source():
            for call in calls:
                yield next(call)

        with Served(source()) as served:
            served.read()
        upstream.wait_closed()
        assert all(call.closed for call in calls)
        assert (served.end().usage, served.end().estimated) == (Usage(None, 3), True)
