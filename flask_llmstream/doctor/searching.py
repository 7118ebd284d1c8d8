"""Looks for the app behind the first hop, where nobody has said where it is.

Decisions
    1. The probe tells its reader where the app is served. That is asked only on this machine, in private
       networks, and at the host of the URL itself: an answer must not send us elsewhere.
    2. It may be somebody else who listens there. So the app has to prove itself first; the question has
       neither the token nor anything of what the caller sends to the URL, and what proves the app proves
       that no hop is in between. Then the token follows, and nothing else ever does.
    3. What is not found is no fault: it is said, with what to add.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import socket
from typing import Any, Dict, NamedTuple, Optional, Sequence
from urllib.parse import parse_qsl, urlsplit

from flask_llmstream.doctor.client import answer_of
from flask_llmstream.doctor.connecting import Request, with_query
from flask_llmstream.doctor.observations import Hop, Observation
from flask_llmstream.whereabouts import proof_of

__all__ = ["NAME", "Search", "search"]

#: What a found hop is called.
NAME = "app"
#: It is near, or it is not reached at all.
_QUESTION = Request(connect_timeout=2.0, timeout=5.0, limit=5.0)
_PATH = re.compile(r"/[\w.~%/-]*probe", re.ASCII)
_ASK, _KEY = re.compile(r"[\w.-]{1,400}", re.ASCII), re.compile(r"[0-9a-f]{64}")


class Search(NamedTuple):
    """What has come of it."""

    #: Where the app is; ``None`` where it was not found.
    hop: Optional[Hop] = None
    #: One line for the reader; empty where there is nothing to look for.
    said: str = ""


def search(seen: Observation, request: Request, names: Sequence[str]) -> Search:
    """Return where the app is that has answered with the probe *seen*.

    :param request: only its patience counts, and nothing of it is sent.
    :param names: those that other hops have.
    """
    here = (seen.hello or {}).get("here")
    if not isinstance(here, dict) or not here:
        return Search(said="does not say where the app itself is served;" + _add("http://HOST:PORT"))
    if "unix" in here:
        return Search(said=(
            f"comes from an app at the unix socket {str(here['unix'])[:200]}, which has no URL; let it listen"
            " at a port, too (gunicorn takes several --bind);" + _add("http://127.0.0.1:PORT")
        ))
    if here.get("peer") == seen.local:
        return Search()  # nobody is in between
    try:
        host, port = here["address"]
        address = ipaddress.ip_address(host)
        place = f"[{host}]:{int(port)}" if address.version == 6 else f"{host}:{int(port)}"
        well_formed = 0 < int(port) < 65536 and _PATH.fullmatch(here["path"])
    except (KeyError, TypeError, ValueError):
        well_formed = None
    if not well_formed:
        return Search(said="says nothing usable of where the app is served;" + _add("http://HOST:PORT"))
    url = f"{'https' if here.get('tls') else 'http'}://{place}"
    served = f"comes from an app that is served at {place}"
    why_not = _why_not(here, address, seen)
    if not why_not:
        why_not = _unproven(f"{url}{here['path']}", here, request)
    if why_not:
        return Search(said=f"{served}, {why_not};{_add(url)}")
    token = dict(parse_qsl(urlsplit(seen.hop.url).query)).get("token")
    found = with_query(url + here["path"], token=token) if token else url + here["path"]
    name = NAME if NAME not in names else f"{NAME} itself"
    return Search(Hop(name, found, True), f"{served}, and there was read as {name!r}, too")


def _add(url: str) -> str:
    return f" to read it there, too, run the doctor where it can be reached and add --hop app={url}"


def _why_not(here: Dict[str, Any], address: Any, seen: Observation) -> str:
    """Return why the app is not asked at all; empty where it is."""
    near = address.is_loopback or (address.is_private and not address.is_link_local)
    if address.is_multicast or address.is_unspecified or not (near or str(address) == seen.remote):
        return "which is neither on this machine nor in a private network"
    if here.get("tls"):
        return "with TLS, and with no name to check its certificate against"
    if not here.get("ask"):
        return "and has no secret key by which it could prove that it is the same"
    if not (_ASK.fullmatch(str(here["ask"])) and _KEY.fullmatch(str(here.get("key")))):
        return "and tells nothing by which it could prove that it is the same"
    return ""


def _unproven(url: str, here: Dict[str, Any], request: Request) -> str:
    """Ask for the proof; return why it was not given, empty where it was."""
    asking = Observation(Hop(NAME, url))
    question = _QUESTION._replace(timeout=min(_QUESTION.timeout, request.timeout or _QUESTION.timeout))
    try:
        status, body = answer_of(with_query(url, same=here["ask"]), question, asking)
    except socket.timeout:
        return "which did not answer from here in time"
    except (OSError, ValueError) as exc:
        return f"which cannot be reached from here ({exc})"
    try:
        proof = str(json.loads(body.decode("utf-8"))["same"])
    except (ValueError, KeyError, TypeError):
        return f"where something else answers from here, with status {status}"
    if not hmac.compare_digest(proof.encode(), proof_of(here["key"], asking.local).encode()):
        return "which is reached from here through something else only"
    return ""
