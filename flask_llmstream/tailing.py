"""What ``flask-llmstream tail`` does with a stream: print it, show how far it is, record it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Optional

import click

from flask_llmstream.exceptions import LLMStreamError, StreamError, StreamRefused
from flask_llmstream.terminal import Output, Screen, is_live, on_one_line

if TYPE_CHECKING:
    from flask_llmstream.client import StreamClient
    from flask_llmstream.client.recorded import RecordingWriter
    from flask_llmstream.sansio.events import Event

__all__ = ["FORMS", "WIRES", "Tail", "WrongUsage"]

#: What can be printed.
FORMS = ("text", "events", "json", "raw")
#: What can be asked for.
WIRES = ("sse", "ndjson", "frames")
#: As a shell reports what a signal has ended: 128 + its number.
_INTERRUPTED = 130
_BROKEN_PIPE = 141
#: Characters of a refusal's body that are shown.
_EXCERPT = 200


class WrongUsage(click.ClickException):
    """One line on what is wrong with the arguments."""

    exit_code = 2


class Tail:
    """One stream on its way to standard output.

    :param url: where the stream is.
    :param form: one of :data:`FORMS`.
    :param record: name of a file to record it in. Defaults to none.
    :param wire: one of :data:`WIRES`, to ask for. Defaults to what the headers say.
    :param is_over: whether there is nothing to come back for, as at the end of a recording.
    :param options: of the client.
    :raises WrongUsage: for a file that cannot be written, or what is no request.
    """

    def __init__(
        self,
        url: str,
        form: str,
        record: Optional[str] = None,
        wire: Optional[str] = None,
        is_over: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> None:
        self._form = form
        self._is_over = is_over
        self._writer: Optional[RecordingWriter] = None
        self._file: Any = None
        self._attempts = 0
        self._begun = time.monotonic()
        self._screen = form != "raw" and is_live(sys.stdout, os.environ)
        # Only now: a wrong option or --help need not wait for requests to be imported.
        from flask_llmstream.client import StreamClient
        from flask_llmstream.client.decoding import MEDIA_TYPES

        if wire is not None:
            options["headers"] = {**options["headers"], "Accept": MEDIA_TYPES[wire]}
        try:
            self._stream: StreamClient = StreamClient(
                url, on_bytes=self._received, on_reconnect=self._lost, on_response=self._answered, **options
            )
        except ValueError as exc:
            raise WrongUsage(on_one_line(str(exc))) from exc
        if record is not None:
            self._record_in(record)
        self._output = Output()

    def run(self) -> int:
        """Print the stream to its end; return the exit code."""
        if self._screen:
            self._output = Screen(self._status, colour="NO_COLOR" not in os.environ)
        ended: Optional[BaseException] = None
        try:
            with self._stream:
                self._print()
            self._output.end()
            self._sum_up()
            return 0
        except KeyboardInterrupt as exc:
            ended = exc
            self._output.end("interrupted; the connection is closed")
            return _INTERRUPTED
        except LLMStreamError as exc:
            ended = exc
            self._output.end(f"Error: {_describe(exc)}")
            return 1
        except BrokenPipeError as exc:
            ended = exc
            self._output.abandon()
            return _BROKEN_PIPE
        except ValueError as exc:
            ended = exc
            self._output.end()
            if self._stream.response is not None:
                raise
            raise WrongUsage(on_one_line(str(exc))) from exc  # no request can be made of that URL
        except OSError as exc:
            ended = exc
            self._output.end(f"Error: cannot write on: {exc.strerror}")  # the disk is full, mostly
            return 1
        finally:
            self._output.close()
            self._end_recording(ended)

    def _print(self) -> None:
        stream, output = self._stream, self._output
        if self._form == "text":
            for channel, piece in stream.channel_texts():
                output.write_of(channel, piece)
        elif self._form == "json":
            for channel, value in stream.channel_snapshots():
                # As the events do it: a channel's value has the name of the channel beside it.
                output.write(_json(value if channel is None else {"channel": channel, "value": value}))
        else:
            for event in stream:
                if self._form == "events":
                    output.write(_line_of(event))

    def _status(self) -> str:
        """Return what the line below the text says."""
        progress = self._stream.progress
        if not progress.events:
            return f"waiting, {time.monotonic() - self._begun:.1f} s"
        return _figures(self._stream)

    def _sum_up(self) -> None:
        if self._screen and self._stream.progress.events and sys.stderr.isatty():
            self._output.say(_figures(self._stream))

    def _received(self, piece: bytes) -> None:
        self._attempts = 0
        if self._writer is not None:
            self._writer.received(piece)
        if self._form == "raw":
            self._output.write_bytes(piece)

    def _answered(self, response: Any) -> None:
        if self._writer is not None:
            self._writer.answered(response)

    def _lost(self, exc: StreamError, delay: float) -> None:
        if self._is_over():
            raise exc
        self._attempts += 1
        if self._writer is not None:
            self._writer.lost(exc)
        self._output.notice(f"{_describe(exc)}; trying again in {delay:.1f} s (attempt {self._attempts})")

    def _record_in(self, name: str) -> None:
        from flask_llmstream.client.recorded import RecordingWriter

        try:
            self._file = open(name, "w", encoding="utf-8", errors="replace", newline="\n")
            self._writer = RecordingWriter(self._file, self._stream.method, self._stream.url)
        except OSError as exc:
            self._end_recording(exc)
            raise WrongUsage(f"cannot write {name}: {exc.strerror}") from exc

    def _end_recording(self, exc: Optional[BaseException]) -> None:
        with contextlib.suppress(OSError):  # what could not be written was said
            if self._writer is not None:
                self._writer.end(exc)
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()


def _figures(stream: StreamClient) -> str:
    progress = stream.progress
    return f"{progress.tokens} tokens, {progress.seconds:.1f} s, {progress.rate:.1f}/s"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _line_of(event: Event) -> str:
    fields = {name: getattr(event, name) for name in ("event", "id", "data")}
    return _json({name: value for name, value in fields.items() if value is not None})


def _describe(exc: LLMStreamError) -> str:
    # A web page says nothing in one line.
    if isinstance(exc, StreamRefused) and exc.body.strip() and not exc.body.lstrip().startswith("<"):
        return f"{exc}: {exc.body.strip()[:_EXCERPT]}"
    return str(exc)
