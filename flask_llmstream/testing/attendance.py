"""The part of the tests of every event log that is about readers: who knows that there are some."""

from __future__ import annotations

import time
from typing import List, Tuple

from flask_llmstream.testing.logs import LogTest, new_id
from flask_llmstream.testing.timing import wait_until

__all__ = ["AttendanceContract"]


class AttendanceContract(LogTest):
    """What an event log must do for readers; a part of ``EventLogContract``."""

    def test_readers_are_known_of_elsewhere(self) -> None:
        reader, writer = self.open(), self.open()
        stream, other = self.begin(writer), self.begin(writer)
        assert not writer.attended(stream)

        def is_attended() -> bool:
            reader.attend(stream, 0.6)
            time.sleep(0.02)
            return writer.attended(stream)

        wait_until(is_attended, 10, "the reader to be known of")
        assert not writer.attended(other)
        wait_until(lambda: not writer.attended(stream), 10, "the reader to be missed")
        reader.attend(new_id(), 1.0)

    def test_writer_is_told_of_readers(self) -> None:
        logs = [self.open(), self.open()]
        told: List[Tuple[int, str]] = []
        tells = [
            logs[0].on_attend(lambda stream: told.append((0, stream))),
            logs[1].on_attend(lambda stream: told.append((1, stream))),
        ]
        assert len(set(tells)) == 1, "a log tells of readers always, or never"
        streams = [self.begin(log) for log in logs]
        for _ in range(2):  # for both processes to listen
            for number, log in enumerate(logs):
                log.attend(streams[1 - number], 20.0)
                log.attend(streams[number], 20.0)
        if tells[0]:
            expected = set(enumerate(streams))
            wait_until(lambda: set(told) >= expected, 10, "both to be told")
            assert set(told) == expected, "each of its own only"
        else:
            assert not told

    def test_writer_is_told_of_who_leaves(self) -> None:
        writer, one, other = self.open(), self.open(), self.open()
        told: List[str] = []
        heard: List[str] = []
        tells = writer.on_leave(told.append)
        listens = writer.on_attend(heard.append)
        stream = self.begin(writer)
        for log in (one, other):
            log.attend(stream, 20.0)
        assert writer.attended(stream)
        wait_until(lambda: heard or not listens, 10, "the writer to hear of readers")
        one.leave(stream)
        one.leave(stream)  # which says nothing new
        took: List[float] = []
        if tells:
            wait_until(lambda: told, 10, "the writer to be told")
            assert writer.attended(stream), "another reads on"
            for log in [other] + 10 * [one]:
                log.attend(stream, 20.0)
                assert writer.attended(stream), "it is there again"
                del told[:]
                began = time.monotonic()
                log.leave(stream)
                wait_until(lambda: not writer.attended(stream), 10, "the last to be missed")
                wait_until(lambda: told, 10, "the writer to be told")
                took.append(time.monotonic() - began)
            assert set(told) == {stream}
            self.note(f"the writer knew of who left after {1000 * sorted(took)[5]:.1f} ms (median)")
        writer.leave(stream)  # it has never read
        writer.leave(new_id())
