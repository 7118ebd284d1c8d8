"""The command ``flask-llmstream``.

Exit codes of ``tail``: 0 the stream is complete; 1 it failed, was cut or was refused; 2 the
arguments are wrong; 130 Ctrl-C; 141 nobody reads the output any more.
"""

from __future__ import annotations

import json as json_module
import os
import sys
from typing import TYPE_CHECKING, Any, Dict, Iterable, Optional, Tuple

import click

from flask_llmstream.exceptions import LLMStreamError, StreamRefused

if TYPE_CHECKING:
    from flask_llmstream.client import StreamClient
    from flask_llmstream.sansio.events import Event

__all__ = ["main"]

#: As a shell reports what a signal has ended: 128 + its number.
_INTERRUPTED = 130
_BROKEN_PIPE = 141
#: Characters of a refusal's body that are shown.
_EXCERPT = 200


class _WrongUsage(click.ClickException):
    """One line on what is wrong with the arguments."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Read event streams, and see one at work."""


@main.command("tail")
@click.argument("url")
@click.option("--json", "body", metavar="BODY", help="POST this JSON; @FILE reads a file, - reads stdin.")
@click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Send this too.")
@click.option("--events", is_flag=True, help="Print each event as a line of JSON instead of the text.")
@click.option("--raw", is_flag=True, help="Print the bytes as they come, heartbeats and all.")
@click.option("--foreign", is_flag=True, help="Take the end of the connection for the end of the stream.")
@click.option("--idle-timeout", default=45.0, show_default=True, help="Seconds to wait for the next byte.")
def tail(
    url: str,
    body: Optional[str],
    headers: Tuple[str, ...],
    events: bool,
    raw: bool,
    foreign: bool,
    idle_timeout: float,
) -> None:
    """Print the text of the stream at URL as it comes.

    Ctrl-C closes the connection, and with it the server stops the model.
    """
    if events and raw:
        raise _WrongUsage("--events and --raw exclude each other")
    output = _Output()
    options: Dict[str, Any] = {
        "json": None if body is None else _json_of(body),
        "headers": _headers_of(headers),
        "idle_timeout": idle_timeout,
        "terminal": None if foreign else ("done", "failed"),
        "on_bytes": output.write_bytes if raw else None,
    }
    try:
        with _open(url, options) as stream:
            if events or raw:
                for event in stream:
                    if events:
                        output.write(_line_of(event))
            else:
                for channel, piece in stream.channel_texts():
                    output.write_of(channel, piece)
        output.end()
    except KeyboardInterrupt:
        output.end("interrupted; the connection is closed")
        sys.exit(_INTERRUPTED)
    except LLMStreamError as exc:
        output.end(f"Error: {_describe(exc)}")
        sys.exit(1)
    except BrokenPipeError:
        output.abandon()
        sys.exit(_BROKEN_PIPE)


@main.command(
    "demo",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.pass_context
def demo(context: click.Context) -> None:
    """Start a local model and a chat that streams from it."""
    # It reads its own options, --help among them: it can be started without this command, too.
    from flask_llmstream.demo import main as run

    sys.exit(run(context.args))


class _Output:
    """Standard output, flushed at once, and what is said on standard error when it ends."""

    def __init__(self) -> None:
        self._bytes = sys.stdout.buffer
        self._encoding = sys.stdout.encoding or "utf-8"
        self._mid_line = False
        self._channel: Optional[str] = None

    def write_of(self, channel: Optional[str], text: str) -> None:
        """Write *text*; on a line of its own, behind the channel's name, where that is another."""
        if channel != self._channel:
            self._channel = channel
            line = "\n" if self._mid_line else ""
            self.write(line + ("" if channel is None else f"{_on_one_line(channel)}: "))
        self.write(text)

    def write(self, text: str) -> None:
        if text:
            # An answer may hold what a terminal cannot show: better a "?" than no answer.
            self.write_bytes(text.encode(self._encoding, "replace"))
            self._mid_line = not text.endswith("\n")

    def write_bytes(self, data: bytes) -> None:
        self._bytes.write(data)
        self._bytes.flush()

    def end(self, message: Optional[str] = None) -> None:
        """End the last line and say *message*, on one line."""
        try:
            if self._mid_line:
                self.write("\n")
        except BrokenPipeError:
            self.abandon()
        if message is not None:
            click.echo(_on_one_line(message), err=True)

    def abandon(self) -> None:
        """Nobody reads any more: let what is still buffered go nowhere, without a complaint."""
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._bytes.fileno())
        except (OSError, ValueError):
            pass  # not a real file, so nothing that could complain


def _open(url: str, options: Dict[str, Any]) -> StreamClient:
    # Only now: a wrong option or --help need not wait for requests to be imported.
    from flask_llmstream.client import StreamClient

    try:
        stream = StreamClient(url, **options)
        stream.open()
    except ValueError as exc:
        raise _WrongUsage(_on_one_line(str(exc))) from exc
    return stream


def _json_of(body: str) -> Any:
    source = "--json"
    try:
        if body == "-":
            source = "stdin"
            body = sys.stdin.buffer.read().decode("utf-8")
        elif body.startswith("@"):
            source = body[1:]
            with open(source, encoding="utf-8") as file:
                body = file.read()
        return json_module.loads(body)
    except OSError as exc:
        raise _WrongUsage(f"cannot read {source}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise _WrongUsage(f"{source} is not UTF-8") from exc
    except ValueError as exc:
        raise _WrongUsage(f"{source} is not JSON: {exc}") from exc


def _headers_of(values: Iterable[str]) -> Dict[str, str]:
    headers: Dict[str, str] = {}
    for value in values:
        name, colon, content = value.partition(":")
        if not (colon and name.strip()):
            # What was given may be half a key: it is not repeated.
            raise _WrongUsage("--header takes 'Name: value', with a colon")
        headers[name.strip()] = content.strip()
    return headers


def _line_of(event: Event) -> str:
    fields = {name: getattr(event, name) for name in ("event", "id", "data")}
    known = {name: value for name, value in fields.items() if value is not None}
    return json_module.dumps(known, ensure_ascii=False) + "\n"


def _describe(exc: LLMStreamError) -> str:
    # A web page says nothing in one line.
    if isinstance(exc, StreamRefused) and exc.body.strip() and not exc.body.lstrip().startswith("<"):
        return f"{exc}: {exc.body.strip()[:_EXCERPT]}"
    return str(exc)


def _on_one_line(text: str) -> str:
    # A server's words go to a terminal: no line breaks, and nothing that moves the cursor.
    return "".join(char if char.isprintable() else " " for char in text)


if __name__ == "__main__":
    main()
