"""The part of the tests of every event log that is about keys: who claims one, and who is bound to it."""

from __future__ import annotations

from functools import partial

from flask_llmstream.testing.logs import LogTest, new_id, together
from flask_llmstream.testing.timing import wait_until

__all__ = ["KeyContract"]


class KeyContract(LogTest):
    """What an event log must do with keys; a part of ``EventLogContract``."""

    def test_key_is_claimed_once(self) -> None:
        logs = [self.open(), self.open()]
        for key in ("simple", "with spaces, \u00fcml\u00e4uts and 'quotes'", "k" * 255):
            streams = [new_id() for _ in range(20)]
            held = together([
                partial(logs[number % 2].claim, key, stream, 60.0)
                for number, stream in enumerate(streams)
            ])
            assert len(set(held)) == 1 and held[0] in streams
            assert logs[0].claim(key, held[0], 60.0) == held[0]
        assert logs[0].claim("another", "ab", 60.0) == "ab"

    def test_claim_ends(self) -> None:
        log = self.open()
        assert log.claim("key", "ab", 0.5) == "ab"
        assert log.claim("key", "cd", 0.5) == "ab"
        wait_until(lambda: log.claim("key", "cd", 60.0) == "cd", 10, "the claim to end")
        assert log.claim("key", "ef", 60.0) == "cd"

    def test_key_is_bound_to_the_last(self) -> None:
        log, other = self.open(), self.open()
        first, second = self.begin(log), self.begin(other)
        for key in ("chat", "\u00fcml\u00e4uts, 'quotes' and {braces}"):
            assert other.bound(key) is None
            log.bind(key, first, 60.0)
            assert [each.bound(key) for each in (log, other)] == [first, first]
            other.bind(key, second, 60.0)
            assert [each.bound(key) for each in (log, other)] == [second, second]
            assert log.claim(key, first, 60.0) == second, "it is taken"
        assert log.claim("claimed", first, 60.0) == first == other.bound("claimed")
        assert log.bound("cha") is None
        page = other.read(first, 0)
        assert page is not None and page.state == "open", "only the key has changed hands"

    def test_bound_key_is_forgotten(self) -> None:
        log, other = self.open(), self.open()
        stream = new_id()
        log.bind("short", stream, 60.0)
        log.bind("short", stream, 0.3)
        log.bind("long", stream, 0.3)
        log.bind("long", stream, 60.0)
        wait_until(lambda: other.bound("short") is None, 10, "the key to be forgotten")
        log.prune()
        assert other.bound("long") == stream, "the last time counts, too"
        assert log.claim("short", "ab", 60.0) == "ab"
