"""The stream that ``flask-llmstream doctor`` reads: its events say when they were sent.

``GET <prefix>/probe``
    tokens, a silence, blocks of growing size, a silence with heartbeats, and a last word.
    ``?idle=SECONDS`` one silence of that length instead, without heartbeats; ``?long=SECONDS`` an event
    every second for that long; ``?leave=ID`` heartbeats until the client leaves.
``GET <prefix>/probe?left=ID``
    whether the app has noticed that the client of ``?leave=ID`` has left.
``GET <prefix>/probe?same=QUESTION``
    the proof that this is the app which has put the question: see :mod:`flask_llmstream.whereabouts`.

Decisions
    1. It is there where the app is debugged, and for whoever has a token that the app's secret key has
       signed; for others there is no such page. It tells where the app is reached, and nothing else that
       the app does not; and it holds a worker's thread for as long as it is asked to.
    2. What is remembered of departures is a file: the question may reach another worker.
    3. The padding of blocks is random: what compresses well would never fill a buffer.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

from flask import current_app, request
from itsdangerous import BadData, URLSafeSerializer

from flask_llmstream.current import current_stream
from flask_llmstream.folders import private_folder
from flask_llmstream.responses import settings_of, stream_response
from flask_llmstream.sansio.events import Event
from flask_llmstream.whereabouts import answer_for, whereabouts

__all__ = ["HEARTBEAT", "TOKENS", "make_token", "probe"]

#: Events of the first part, their distance and about their size; in seconds and bytes.
TOKENS, TOKEN_GAP, TOKEN_SIZE = 10, 0.1, 100
#: Sizes of the blocks, and their distance.
BLOCKS, BLOCK_GAP = tuple(256 << number for number in range(9)), 0.1
#: The silence that shows whether time alone sets free what a hop holds.
PAUSE = 0.6
#: The silence in which heartbeats are due, and their distance.
SILENCE, HEARTBEAT = 1.3, 0.5
#: The longest stream that can be asked for, in seconds; and the one whose client should leave.
LONGEST, UNTIL_LEFT = 1800.0, 20.0

_SALT = "flask-llmstream probe"
_ID = re.compile(r"[0-9a-f]{16,64}")
#: Seconds for which a thread sleeps at once.
_SLICE = 0.1
#: Seconds after which a note on a departure that nobody has asked for is removed.
_FORGET = 3600.0


def make_token(app: Any, seconds: float) -> str:
    """Return a token that opens the probe of *app*.

    :param seconds: for which it does.
    :raises RuntimeError: the app has no secret key.
    """
    if not app.secret_key:
        raise RuntimeError("probe tokens are signed with app.secret_key; set one")
    token = _serializer(app.secret_key).dumps({"until": int(time.time() + seconds)})
    return token if isinstance(token, str) else token.decode("ascii")


def probe() -> Any:
    """Send the probe, or what is known of a departure; the view of ``GET <prefix>/probe``."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    if "same" in request.args:
        proof = answer_for(request.environ, app.secret_key, request.args["same"])
        if proof is not None:
            return _said(app, {"same": proof})
    try:
        asked = _asked() if _may(app, request.args.get("token", "")) else None
    except ValueError as exc:
        return app.response_class(f"{exc}\n", 400, {"Cache-Control": "no-store"}, mimetype="text/plain")
    if asked is None:
        # As of a page that is not there; but whoever has switched it on wrongly should find out why.
        text = "There is no probe here: the app is not in debug mode, and no valid token was given.\n"
        return app.response_class(text, 404, {"Cache-Control": "no-store"}, mimetype="text/plain")
    kind, value = asked
    if kind == "left":
        return _said(app, {"left": _departure(value)})
    beat = 0.0 if kind in ("idle", "long") else HEARTBEAT
    hello = _hello(settings_of(app).heartbeat_interval, app.secret_key)
    return stream_response(
        _events(kind, value, hello), format="sse", heartbeat_interval=beat, padding=0,
        on_disconnect="cancel", max_duration=0, max_bytes=0,
    )


def _said(app: Any, what: Dict[str, Any]) -> Any:
    body = json.dumps(what)
    return app.response_class(body, 200, {"Cache-Control": "no-store"}, mimetype="application/json")


def _serializer(secret: Any) -> URLSafeSerializer:
    return URLSafeSerializer(secret, salt=_SALT)


def _may(app: Any, token: str) -> bool:
    if app.debug:
        return True
    for secret in [app.secret_key, *(app.config.get("SECRET_KEY_FALLBACKS") or ())]:
        if not (secret and token):
            continue
        try:
            said = _serializer(secret).loads(token)
        except BadData:
            continue
        return bool(said["until"] >= time.time())
    return False


def _asked() -> Tuple[str, Any]:
    """Return what is wanted, and its argument."""
    for kind in ("leave", "left"):
        if kind in request.args:
            if not _ID.fullmatch(request.args[kind]):
                raise ValueError(f"{kind} is not an id, which is 16 to 64 hexadecimal digits")
            return kind, request.args[kind]
    for kind in ("idle", "long"):
        if kind in request.args:
            seconds = float(request.args[kind])
            if not 0 < seconds <= LONGEST:
                raise ValueError(f"{kind} is {seconds:g}, expected seconds up to {LONGEST:g}")
            return kind, seconds
    return "", None


def _hello(heartbeat_interval: float, secret: Any) -> Dict[str, Any]:
    """Return what the app can say of the request; no header of it but those of proxies."""
    forwarded = (
        "Via", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "Accept-Encoding",
    )
    return {
        "nonce": request.args.get("nonce", "")[:64],
        "protocol": request.environ.get("SERVER_PROTOCOL", ""),
        "server": request.environ.get("SERVER_SOFTWARE", ""),
        "heartbeat_interval": heartbeat_interval,
        "here": whereabouts(request.environ, secret),
        "request": {name: request.headers[name] for name in forwarded if name in request.headers},
    }


def _events(kind: str, value: Any, hello: Dict[str, Any]) -> Iterator[Event]:
    began = time.monotonic()
    number = 0

    def event(size: int = TOKEN_SIZE, **facts: Any) -> Event:
        nonlocal number
        facts.update(n=number, t=round(time.monotonic() - began, 6))
        number += 1
        missing = size - len(json.dumps(facts)) - 30
        if missing > 0:
            facts["pad"] = base64.b64encode(os.urandom(missing)).decode("ascii")[:missing]
        return Event(json.dumps(facts), event="probe")

    def wait_until(due: float) -> bool:
        # By a clock that does not drift: what a send takes is not added to the gaps. In slices: a thread
        # that sleeps cannot be told that its client has left.
        while not current_stream.cancelled:
            left = began + due - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(left, _SLICE))
        return False

    if kind == "leave":
        _note(value, "open")
        current_stream.on_end(lambda end: _note(value, end.reason))
    yield event(hello=hello)
    due = 0.0
    for pause, size in _plan(kind, value):
        due += pause
        if not wait_until(due):
            return
        yield event(size)
    yield event(last=True)


def _plan(kind: str, value: Any) -> List[Tuple[float, int]]:
    """Return the events after the first: how long after the one before, and how large."""
    if kind == "leave":
        return [(UNTIL_LEFT, TOKEN_SIZE)]
    if kind == "idle":
        return [(value, TOKEN_SIZE)]
    if kind == "long":
        return [(1.0, TOKEN_SIZE)] * int(value)
    tokens = [(TOKEN_GAP, TOKEN_SIZE)] * TOKENS
    blocks = [(BLOCK_GAP, size) for size in BLOCKS]
    blocks[0] = (PAUSE, BLOCKS[0])
    return [*tokens, *blocks, (SILENCE, TOKEN_SIZE), (TOKEN_GAP, TOKEN_SIZE)]


def _folder() -> str:
    """Return the directory for the notes, which is the app's user's alone."""
    return private_folder(os.path.join(tempfile.gettempdir(), f"flask-llmstream-probe-{os.getuid()}"))


def _note(id: str, what: str) -> None:
    folder = _folder()
    for entry in os.scandir(folder):
        try:
            if time.time() - entry.stat().st_mtime > _FORGET:
                os.unlink(entry.path)
        except OSError:
            pass  # another worker was faster
    with open(os.path.join(folder, id), "w", encoding="ascii") as file:
        file.write(what)


def _departure(id: str) -> Optional[str]:
    """Return how the stream has ended, ``"open"`` while it has not; ``None`` where it is unknown."""
    try:
        with open(os.path.join(_folder(), id), encoding="ascii") as file:
            return file.read() or "open"
    except FileNotFoundError:
        return None
