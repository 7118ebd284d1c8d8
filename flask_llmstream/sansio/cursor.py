"""Where a reader is in a stream, as a text that only we can have written, and only for that reader.

::

    v1.<stream>.<epoch>.<sequence>.<signature>

A client gets one with each event (``id:``) and sends the last one back (``Last-Event-ID``). It says
nothing of its owner, who takes part in the signature only.

Decisions
    1. One key for each stream and owner, derived from the app's secret; it signs the sequence. So
       nothing has to be stored to check a cursor. One keyed hash is long enough for the signatures
       of five events, each of which has a part of it for itself.
    2. One answer for whatever is wrong with a cursor: who guesses should not learn how close.
"""

from __future__ import annotations

import hmac
import re
from hashlib import blake2b
from typing import List, NamedTuple, Sequence

from flask_llmstream.exceptions import BadCursor

__all__ = ["END", "Cursor", "CursorKeys", "Cursors"]

#: The number in the cursor of what ends a stream: who comes back with it has everything.
END = 10**15 - 1

_VERSION = "v1"
#: Characters of a cursor at most; what is longer is not looked at.
_MAX_LENGTH = 128
_CURSOR = re.compile(r"v1\.([0-9a-f]{16,64})\.([0-9]{1,9})\.([0-9]{1,15})\.([0-9a-f]{24})")
_TICKET = re.compile(r"([0-9a-f]{16,64})-([0-9a-f]{24})")
#: Bytes of a signature: 2 ** 96 guesses.
_SIGNATURE = 12
#: Signatures in one hash, and the characters of each.
_IN_ONE, _LENGTH = 5, 2 * _SIGNATURE


class Cursor(NamedTuple):
    """What a cursor says."""

    stream: str
    epoch: int
    #: Number of the last event that the reader has got; 0 for none.
    sequence: int


class Cursors:
    """Writes the cursors of one stream for one owner."""

    __slots__ = ("_head", "_key", "_begin", "_hash")

    def __init__(self, head: str, key: bytes) -> None:
        self._head = head
        self._key = key
        #: The first number whose signature is in the hash; there is one cursor for each token.
        self._begin = -_IN_ONE
        self._hash = ""

    def at(self, sequence: int) -> str:
        """Return the cursor behind the event with that number."""
        place = sequence - self._begin
        if not 0 <= place < _IN_ONE:
            place = sequence % _IN_ONE
            self._begin = sequence - place
            self._hash = _sign_all(self._key, sequence)
        place *= _LENGTH
        return f"{self._head}{sequence}.{self._hash[place:place + _LENGTH]}"


class CursorKeys:
    """Signs and checks for one app.

    :param secrets: the app's secret key, then older ones that are still accepted.
    :raises ValueError: there is none.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        if not secrets or not all(secrets):
            raise ValueError("signing needs a secret key that is not empty; set app.secret_key")
        # BLAKE2 takes keys of up to 64 bytes; secrets may be of any length.
        self._keys: List[bytes] = [blake2b(secret, person=b"llmstream-cursor").digest() for secret in secrets]

    def cursors(self, stream: str, epoch: int, owner: str) -> Cursors:
        """Return what writes the cursors of *stream* for *owner*."""
        return Cursors(f"{_VERSION}.{stream}.{epoch}.", _stream_key(self._keys[0], stream, epoch, owner))

    def read(self, text: str, owner: str) -> Cursor:
        """Return what the cursor *text* says.

        :param owner: who sends it.
        :raises BadCursor: it was not written by us, or not for this owner.
        """
        found = _CURSOR.fullmatch(text) if len(text) <= _MAX_LENGTH else None
        if found is None:
            raise BadCursor("this is no cursor of a stream; leave it out to begin anew")
        stream, epoch, sequence, signature = found.groups()
        for key in self._keys:
            cursors = Cursors("", _stream_key(key, stream, int(epoch), owner))
            if hmac.compare_digest(cursors.at(int(sequence)), f"{sequence}.{signature}"):
                return Cursor(stream, int(epoch), int(sequence))
        raise BadCursor("this is no cursor of a stream; leave it out to begin anew")

    def ticket(self, stream: str, owner: str) -> str:
        """Return the name under which *owner* may follow and stop *stream*, for a URL."""
        return f"{stream}-{_sign(self._keys[0], _bytes('ticket', stream, owner))}"

    def redeem(self, ticket: str, owner: str) -> str:
        """Return the stream that *ticket* names.

        :raises BadCursor: as :meth:`read`.
        """
        found = _TICKET.fullmatch(ticket) if len(ticket) <= _MAX_LENGTH else None
        if found is not None:
            stream, signature = found.groups()
            for key in self._keys:
                if hmac.compare_digest(_sign(key, _bytes("ticket", stream, owner)), signature):
                    return str(stream)
        raise BadCursor("there is no such stream")


def _stream_key(key: bytes, stream: str, epoch: int, owner: str) -> bytes:
    return blake2b(_bytes("stream", stream, str(epoch), owner), key=key, digest_size=32).digest()


def _sign_all(key: bytes, sequence: int) -> str:
    """Return the signatures of *sequence* and its neighbours."""
    group = b"%d" % (sequence // _IN_ONE)
    return blake2b(group, key=key, digest_size=_IN_ONE * _SIGNATURE).hexdigest()


def _sign(key: bytes, data: bytes) -> str:
    return blake2b(data, key=key, digest_size=_SIGNATURE).hexdigest()


def _bytes(*parts: str) -> bytes:
    """Return *parts* as one, so that no two lists of parts give the same."""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return b"".join(b"%d:%b" % (len(part), part) for part in encoded)
