"""The command ``flask-llmstream``.

Exit codes of ``tail``: 0 the stream is complete; 1 it failed, was cut or was refused, or a recording
is not whole; 2 the arguments are wrong, or a file is no recording; 130 Ctrl-C; 141 nobody reads the
output any more. Those of ``doctor``: see :mod:`flask_llmstream.doctor.doctor_command`.
"""

from __future__ import annotations

import json as json_module
import sys
from typing import Any, Dict, Iterable, Optional, Tuple

import click

from flask_llmstream.tailing import FORMS, WIRES, Tail, WrongUsage
from flask_llmstream.terminal import Output, on_one_line

__all__ = ["main"]

#: A recording says itself how often its stream was opened again.
_ALL_THAT_WERE = 1 << 30


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Read event streams, find what holds them back, and see one at work."""


@main.command("tail")
@click.argument("url", required=False)
@click.option("--json", "body", metavar="BODY", help="POST this JSON; @FILE reads a file, - reads stdin.")
@click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Send this too.")
@click.option(
    "--format", "form", type=click.Choice(FORMS),
    help="Print the text (default), each event as a line of JSON, the JSON value that the stream builds"
    " after each change, or the bytes as they come, heartbeats and all.",
)
@click.option(
    "--wire", type=click.Choice(WIRES),
    help="Ask the server for this wire format. Without it the server sends event streams, if it can.",
)
@click.option("--events", is_flag=True, help="The same as --format events.")
@click.option("--raw", is_flag=True, help="The same as --format raw.")
@click.option("--foreign", is_flag=True, help="Take the end of the connection for the end of the stream.")
@click.option("--idle-timeout", default=45.0, show_default=True, help="Seconds to wait for the next byte.")
@click.option(
    "--retries", default=5, show_default=True,
    help="Times in a row that a broken stream is opened again, where it can be resumed, and that a busy"
    " server is asked again, where it says when.",
)
@click.option("--record", metavar="FILE", help="Write what comes to FILE, too; --replay reads that.")
@click.option("--replay", metavar="FILE", help="Read FILE and not the network.")
@click.option(
    "--speed", type=float, metavar="N", help="Replay N times as fast as it was; 0 without any wait."
)
def tail(url: Optional[str], headers: Tuple[str, ...], retries: int, **given: Any) -> None:
    """Print the text of the stream at URL as it comes.

    On a terminal a line below the text says how far it is; NO_COLOR and TERM=dumb are respected.

    Ctrl-C closes the connection, and with it the server stops the model.
    """
    form = _form_of(given)
    options: Dict[str, Any] = {
        "json": None if given["body"] is None else _json_of(given["body"]),
        "headers": _headers_of(headers),
        "wire": given["wire"],
        "idle_timeout": given["idle_timeout"],
        "terminal": None if given["foreign"] else ("done", "failed"),
        "retries": retries,
    }
    replay: Optional[str] = given["replay"]
    if replay is None:
        if url is None:
            raise WrongUsage("there is nothing to read: give a URL, or --replay FILE")
        if given["speed"] is not None:
            raise WrongUsage("--speed is for --replay: a live stream has a speed of its own")
        sys.exit(Tail(url, form, given["record"], **options).run())
    del options["wire"]
    if url is not None or given["body"] is not None or headers or given["record"] or given["wire"]:
        raise WrongUsage("--replay sends nothing: leave out the URL, --json, --header, --wire and --record")
    sys.exit(_replay(replay, form, given["speed"], options))


def _replay(name: str, form: str, speed: Optional[float], options: Dict[str, Any]) -> int:
    """Print the recording *name*; return the exit code."""
    from flask_llmstream.client.recorded import Recording, RecordingError

    if speed is None:
        speed = 1.0
    if not 0 <= speed < float("inf"):
        raise WrongUsage(f"--speed is {speed}, expected a number of 0 or more")
    try:
        file = open(name, "rb")
    except OSError as exc:
        raise WrongUsage(f"cannot read {name}: {exc.strerror}") from exc
    with file:
        try:
            recording = Recording(file, name, speed)
        except RecordingError as exc:
            raise WrongUsage(on_one_line(str(exc))) from exc
        options.update(
            method=recording.method, session=recording.session, retries=_ALL_THAT_WERE,
            max_retry_after=None, sleep=lambda seconds: None,
        )
        return Tail(recording.url, form, is_over=lambda: recording.over, **options).run()


def _form_of(given: Dict[str, Any]) -> str:
    """Return what is to be printed."""
    named = {given["form"], "events" if given["events"] else None, "raw" if given["raw"] else None} - {None}
    if len(named) > 1:
        raise WrongUsage(f"{' and '.join(sorted(named))} exclude each other; choose one --format")
    return str(named.pop()) if named else FORMS[0]


@main.command("doctor")
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option(
    "--hop", "named", multiple=True, metavar="NAME=URL",
    help="A place at which the stream can be read; several times, from the app outwards.",
)
@click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Send this too.")
@click.option("--body", metavar="BODY", help="POST this JSON; @FILE reads a file, - reads stdin.")
@click.option(
    "--token", envvar="LLMSTREAM_PROBE_TOKEN", default="", help="What 'flask llmstream probe-token' prints."
)
@click.option(
    "--prefix", default="/llmstream", show_default=True,
    help="LLMSTREAM_URL_PREFIX of the app, for URLs without a path.",
)
@click.option("--idle", default=0.0, metavar="SECONDS", help="See whether a silence of that length survives.")
@click.option("--long", default=0.0, metavar="SECONDS", help="See whether a stream of that length survives.")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait for the next byte.")
@click.option(
    "--limit", default=60.0, show_default=True, help="Seconds after which reading a stream is enough."
)
@click.option("--no-leave", is_flag=True, help="Do not see whether the app hears that a client has left.")
@click.option("--no-find", is_flag=True, help="Do not look for the app behind the first hop.")
@click.option("-k", "--insecure", is_flag=True, help="Do not check certificates.")
@click.option("--json", is_flag=True, help="Print what was found as JSON.")
@click.option("--report", default="", metavar="FILE", help="Write an HTML page with a timeline, too.")
def doctor(urls: Tuple[str, ...], named: Tuple[str, ...], headers: Tuple[str, ...], **given: Any) -> None:
    """Find the hop that holds a stream back, and say what to change there.

    Each URL is the same stream, read at another place: the app's own port first, then each proxy from the
    inside out. Behind the first the app is looked for, where nobody has said where it is. A URL without a
    path means the probe of an app with flask-llmstream, which says when it sent what; any other stream can
    be read, too.

    Exit status: 0 healthy, 1 something was found, 2 a hop could not be read.
    """
    from flask_llmstream.doctor.connecting import Request
    from flask_llmstream.doctor.doctor_command import hops_of, run

    for name in ("idle", "long", "timeout", "limit"):
        if not 0 <= given[name] < float("inf"):
            raise WrongUsage(f"--{name} is {given[name]}, expected seconds, 0 or more")
    body = None if given["body"] is None else json_module.dumps(_json_of(given["body"], "--body")).encode()
    try:
        hops = hops_of(urls, named, given["prefix"], given["token"])
    except ValueError as exc:
        raise WrongUsage(on_one_line(str(exc))) from exc
    request = Request(
        tuple(_headers_of(headers).items()), body, timeout=given["timeout"], limit=given["limit"],
        insecure=given["insecure"],
    )
    try:
        status = run(
            hops, request, json=given["json"], report=given["report"], idle=given["idle"], long=given["long"],
            leave=not given["no_leave"], find=not given["no_find"],
        )
        sys.stdout.flush()
    except BrokenPipeError:
        Output().abandon()
        sys.exit(141)
    except OSError as exc:
        raise WrongUsage(f"cannot write {given['report'] or 'the output'}: {exc.strerror}") from exc
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status)


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


def _json_of(body: str, source: str = "--json") -> Any:
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
        raise WrongUsage(f"cannot read {source}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise WrongUsage(f"{source} is not UTF-8") from exc
    except ValueError as exc:
        raise WrongUsage(f"{source} is not JSON: {exc}") from exc


def _headers_of(values: Iterable[str]) -> Dict[str, str]:
    headers: Dict[str, str] = {}
    for value in values:
        name, colon, content = value.partition(":")
        if not (colon and name.strip()):
            # What was given may be half a key: it is not repeated.
            raise WrongUsage("--header takes 'Name: value', with a colon")
        headers[name.strip()] = content.strip()
    return headers


if __name__ == "__main__":
    main()
