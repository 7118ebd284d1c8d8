"""Read the body of a :class:`requests.Response` as it arrives.

Decisions
    1. ``iter_content`` and ``iter_lines`` hold bytes back on every body that is not chunked, and
       drop what has arrived of an HTTP chunk that is cut. ``raw.read1`` of urllib3 2.2 does not,
       but returns one HTTP chunk at a time, which is one token at a time. So the socket's own
       buffer is read (``raw._fp.fp``, the same on every urllib3 there is) and the chunk framing
       is decoded here: all that has arrived comes at once, at a tenth of the cost.
    2. Whatever has another shape (test doubles) goes through the public ways of urllib3 and
       requests, which are slower and never wrong.
    3. A connection goes back to its pool only when the body has been read to its very end and
       not one byte beyond. Any exception, a cancellation included, closes it.
"""

from __future__ import annotations

import http.client
import time
from typing import Any, Iterator, List, Optional, Tuple, Type

import requests
import urllib3.exceptions

from flask_llmstream.sansio.chunked import ChunkedDecoder

__all__ = ["READ_ERRORS", "BodyReader", "read_available"]

#: What reading can raise, unmapped: from the socket, ``http.client``, urllib3 or requests.
READ_ERRORS: Tuple[Type[Exception], ...] = (
    OSError,
    http.client.HTTPException,
    urllib3.exceptions.HTTPError,
    requests.RequestException,
)

_SIZE = 65536
#: Compressed bytes per step, so that a bomb unfolds in steps a caller can stop after.
_COMPRESSED_SIZE = 4096


def read_available(response: requests.Response) -> BodyReader:
    """Return an iterator over the body: whatever has arrived, as soon as it has arrived.

    :param response: an answer to a request made with ``stream=True``.
    """
    return BodyReader(response)


class BodyReader:
    """Iterates over the pieces of a body, decompressed; :attr:`ended` once it is complete.

    :raises READ_ERRORS: as they come; the connection is closed then. A body that ends before
        its framing says so is a ``urllib3.exceptions.ProtocolError``.
    """

    def __init__(self, response: requests.Response) -> None:
        self.response = response
        #: Whether the body has been read to its end.
        self.ended = False
        self._broken = False
        self._http: Any = None
        self._chunks: Optional[ChunkedDecoder] = None
        self._left: Optional[int] = None
        self._inflate: Any = None
        self._timeout: Tuple[Any, Optional[float]] = (None, None)
        self._pieces = self._choose()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            for piece in self._pieces:
                return piece
        except BaseException:
            # Nobody knows what is still on its way: such a connection must not be used again.
            self._broken = True
            self.response.close()
            raise
        self.ended = not self._broken
        raise StopIteration

    def close(self) -> None:
        """Close the response; whatever of it is still missing is given up."""
        self._broken = not self.ended
        # An unfinished generator and this object would keep each other, and the connection's pool.
        self._pieces = iter(())
        self.response.close()

    def limit_silence(self, seconds: float) -> bool:
        """Wait at most *seconds* for each further piece, until the connection is given back.

        The timeout that the request was made with counts where it is shorter.

        :returns: whether that is possible with this body.
        """
        sock = _socket(self._http)
        if sock is None:
            return False
        if self._timeout[0] is None:
            self._timeout = (sock, sock.gettimeout())
        allowed = self._timeout[1]
        sock.settimeout(seconds if allowed is None else min(seconds, allowed))
        return True

    def take(self, seconds: float, size: int) -> bytes:
        """Return what is left of the body, bounded; beyond the bounds the connection is closed.

        :param seconds: how long that may take in all.
        :param size: how many bytes are enough; the last piece may go beyond.
        """
        deadline = time.monotonic() + seconds
        taken: List[bytes] = []
        try:
            while size > 0:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self.limit_silence(left)
                taken.append(next(self))
                size -= len(taken[-1])
        except (StopIteration,) + READ_ERRORS:
            pass
        if not self.ended:
            self.response.close()
        return b"".join(taken)

    def drain(self, seconds: float, size: int) -> bool:
        """Read and drop what is left of the body, so that the connection can be used again.

        :param seconds: how long that may take in all.
        :param size: how many bytes it may be. Beyond either the connection is closed.
        :returns: whether the end was reached.
        """
        if self._http is None or self._http.will_close:
            self.response.close()  # not worth a wait: nobody can use it again
        else:
            self.take(seconds, size)
        return self.ended

    def _choose(self) -> Iterator[bytes]:
        response = self.response
        raw: Any = response.raw
        content: Any = getattr(response, "_content", False)
        if content is not False:
            return iter([content] if content else [])
        http_response: Any = getattr(raw, "_fp", None)
        if _is_known(raw, http_response):
            self._http = http_response
            if http_response.chunked:
                # Where somebody has read a part, one of the two knows how far.
                left = raw.chunk_left
                self._chunks = ChunkedDecoder(http_response.chunk_left if left is None else left)
            self._left = http_response.length
            raw._init_decoder()
            self._inflate = raw._decoder
            if self._inflate is not None:
                return filter(None, self._decoded())  # a piece may unfold to nothing
            return self._arriving(_SIZE)
        return _public_way(response)

    def _arriving(self, size: int) -> Iterator[bytes]:
        stream = self._http.fp
        while stream is not None and self._left != 0:
            try:
                block = stream.read1(size if self._left is None else min(size, self._left))
            except ValueError as exc:  # "read of closed file"
                raise urllib3.exceptions.ProtocolError("closed while it was being read") from exc
            if not block:
                if self._left is not None or self._chunks is not None:
                    raise urllib3.exceptions.ProtocolError("the connection ended inside the body")
                break
            if self._left is not None:
                self._left -= len(block)
            elif self._chunks is not None:
                block = self._chunks.feed(block)
                if self._chunks.done or self._chunks.broken:
                    if self._chunks.done:
                        self._give_back()
                    if block:
                        yield block
                    if self._chunks.broken:
                        raise urllib3.exceptions.ProtocolError(self._chunks.broken)
                    return
            if self._left == 0:
                self._give_back()
            if block:
                yield block
        self._give_back()

    def _decoded(self) -> Iterator[bytes]:
        inflate = self._inflate
        # urllib3 2.6 and newer can be told how much to unfold at a time.
        bounded = hasattr(inflate, "has_unconsumed_tail")
        try:
            for block in self._arriving(_COMPRESSED_SIZE):
                yield inflate.decompress(block, _SIZE) if bounded else inflate.decompress(block)
                while bounded and inflate.has_unconsumed_tail:
                    yield inflate.decompress(b"", _SIZE)
            yield inflate.flush()
        except READ_ERRORS:
            raise
        except Exception as exc:  # zlib.error, brotli.error, ZstdError: one per codec
            raise urllib3.exceptions.DecodeError("the body is not compressed as it says") from exc

    def _give_back(self) -> None:
        sock, timeout = self._timeout
        if sock is not None:
            self._timeout = (None, None)
            sock.settimeout(timeout)
        stream, self._http.fp = self._http.fp, None
        if stream is None:
            return
        stream.close()
        if self._chunks is not None and self._chunks.unused:
            self.response.close()
        else:
            self.response.raw.release_conn()


def _socket(http_response: Any) -> Any:
    return getattr(getattr(getattr(http_response, "fp", None), "raw", None), "_sock", None)


def _is_known(raw: Any, http_response: Any) -> bool:
    """Whether the body has the shape that we know, and nothing of it is held elsewhere."""
    return (
        isinstance(http_response, http.client.HTTPResponse)
        and isinstance(raw, urllib3.response.HTTPResponse)
        and hasattr(raw, "_init_decoder")
        and not len(getattr(raw, "_decoded_buffer", ()))
        and not getattr(raw._decoder, "has_unconsumed_tail", False)
    )


def _public_way(response: requests.Response) -> Iterator[bytes]:
    raw: Any = response.raw
    if isinstance(raw, urllib3.response.HTTPResponse) and hasattr(raw, "read1"):
        return iter(lambda: raw.read1(_SIZE, decode_content=True) or b"", b"")
    return response.iter_content(None if getattr(raw, "chunked", False) else 1)
