"""The running streams of all workers of this machine, for people; see docs/observing.md.

``GET <prefix>/live``
    a page that shows them, and what it says without JavaScript.
``GET <prefix>/live/events``, or the same address where ``Accept`` asks for an event stream
    the stream that the page reads: an event ``streams`` about once a second.

404 where ``live`` is off, and where the app is neither in debug mode nor has ``authorize``; 403 where
``authorize`` says no.

Decisions
    1. Nothing of what streams say is shown, nor whose they are: a route is shown by its endpoint, not by its
       address. And nothing can be done from here.
    2. The page's own stream is neither measured nor limited, and ends when its worker is told to go: who
       looks must not be in the way of what is looked at.
    3. It ends after some minutes in any case, and the page comes back: who may no longer look finds out.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional

from flask import current_app, request, stream_with_context, url_for
from markupsafe import Markup

from flask_llmstream.access import refusal_of
from flask_llmstream.current import current_stream
from flask_llmstream.draining import current_drainage
from flask_llmstream.livefiles import LiveTable
from flask_llmstream.measuring import UNSEEN_KEY, observer_of
from flask_llmstream.responses import make_stream_format, respond, settings_of
from flask_llmstream.runtime import current_runtime
from flask_llmstream.sansio.events import Event
from flask_llmstream.stream import Stream
from flask_llmstream.templating import llmstream_url

__all__ = ["live"]

#: Seconds between two events, and for which a page is served before it has to ask again.
_PAUSE, _LIFE = 1.0, 300.0
#: Seconds after which it is noticed that nobody looks any more, or that the worker goes.
_STEP = 0.2
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Robots-Tag": "noindex, nofollow",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)


def live() -> Any:
    """Answer with the page, or with its stream; the view of both addresses."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    refused = _refusal(app)
    if refused is not None:
        return refused
    table: LiveTable = observer_of(app).table
    accepted = request.accept_mimetypes
    if request.path.endswith("/events") or accepted["text/event-stream"] > accepted["text/html"]:
        return _events(app, table)
    headers = dict(_HEADERS, **{"Content-Security-Policy": _POLICY})
    return app.response_class(_page(table.look()), 200, headers, mimetype="text/html")


def _refusal(app: Any) -> Optional[Any]:
    settings = settings_of(app)
    if not settings.live:
        text = "There is no live page here: LLMSTREAM_LIVE is not set.\n"
    elif app.debug:
        return None
    elif settings.authorize is None:
        text = "There is no live page here: set LLMSTREAM_AUTHORIZE to say who may see it.\n"
    else:
        return refusal_of(app, "live")
    return app.response_class(text, 404, {"Cache-Control": "no-store"}, mimetype="text/plain")


def _events(app: Any, table: LiveTable) -> Any:
    encoder = make_stream_format("sse", "live", None)
    source = _look(table)
    stream = Stream(
        stream_with_context(source), format=encoder, inner=source, sender=app,
        settings=settings_of(app).replace(
            status_hold=0.0, on_disconnect="cancel", max_duration=0.0, max_bytes=0, stall_warning=0.0,
            idle_timeout=0.0,
        ),
    )
    request.environ[UNSEEN_KEY] = True
    return respond(app, stream, encoder, headers=dict(_HEADERS), negotiated=False)


def _look(table: LiveTable) -> Iterator[Event]:
    runtime, drainage = current_runtime(), current_drainage()
    flag = runtime.flag()
    until = due = runtime.now()
    until += _LIFE
    while due < until:
        yield Event(table.look(), event="streams")
        due = runtime.now() + _PAUSE
        while runtime.now() < due:
            # Nobody can wake a thread that waits for nothing.
            if drainage.going or current_stream.cancelled:
                return
            flag.wait(_STEP)


# -- the page -------------------------------------------------------------------------------------

_FRAME = Markup("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex, nofollow">
<title>Running streams</title>
<link rel="stylesheet" href="{css}">
<script type="module" src="{js}"></script>
<noscript><meta http-equiv="refresh" content="3"></noscript>
</head>
<body data-events="{events}">
<main>
<header>
<h1>Running streams</h1>
<p id="status" role="status">As of the last load of this page.</p>
<button id="pause" type="button" hidden>Pause</button>
</header>
<p id="sum">{sum}</p>
<div class="scroll" role="region" aria-labelledby="streams-title" tabindex="0">
<table id="streams">
<caption id="streams-title">Streams, the oldest first</caption>
<thead><tr>{heads}</tr></thead>
<tbody>{rows}</tbody>
</table>
</div>
<div class="scroll" role="region" aria-labelledby="workers-title" tabindex="0">
<table id="workers">
<caption id="workers-title">Workers that have streams</caption>
<thead><tr>{worker_heads}</tr></thead>
<tbody>{workers}</tbody>
</table>
</div>
</main>
</body>
</html>
""")
#: Heads and cells, in the order in which llmstream-live.js writes them, too.
_COLUMNS = (
    "Stream", "Route", "Format", "State", "Age", "First token", "Tokens", "Tokens/s", "Bytes", "Resumable",
    "Readers who came back", "Worker",
)
_WORKER_COLUMNS = ("Worker", "Streams", "Tokens/s", "Bytes", "States")


def _page(now: Dict[str, Any]) -> str:
    return str(_FRAME.format(
        css=llmstream_url("llmstream-live.css"),
        js=llmstream_url("llmstream-live.js"),
        events=url_for("llmstream.live_events"),
        sum=_sum(now),
        heads=_heads(_COLUMNS),
        rows=_rows([_cells(row) for row in now["rows"]]),
        worker_heads=_heads(_WORKER_COLUMNS),
        workers=_rows([_worker_cells(each) for each in now["workers"]]),
    ))


def _sum(now: Dict[str, Any]) -> str:
    hidden = f", of which {now['hidden']} are not listed" if now["hidden"] else ""
    return f"{now['streams']} running{hidden}; workers that have some: {len(now['workers'])}"


def _cells(row: Dict[str, Any]) -> List[Any]:
    resumable = f"follows {row['follows']}" if row["follows"] else "yes" if row["resumable"] else "no"
    first = "none yet" if row["first"] is None else f"{row['first']:.2f} s"
    pieces = "not counted" if row["pieces"] is None else row["pieces"]
    return [
        row["id"], row["route"], row["format"], row["state"], f"{row['age']:.1f} s", first, pieces,
        f"{row['rate']:.1f}", row["bytes"], resumable, row["followers"], row["pid"],
    ]


def _worker_cells(worker: Dict[str, Any]) -> List[Any]:
    states = ", ".join(f"{number} {name}" for name, number in worker["states"].items())
    return [worker["pid"], worker["streams"], f"{worker['rate']:.1f}", worker["bytes"], states]


def _heads(names: Any) -> Markup:
    return Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in names)


def _rows(rows: List[List[Any]]) -> Markup:
    written = Markup("")
    for first, *rest in rows:
        cells = Markup("").join(Markup("<td>{}</td>").format(cell) for cell in rest)
        written += Markup('<tr><th scope="row">{}</th>{}</tr>\n').format(first, cells)
    return written
