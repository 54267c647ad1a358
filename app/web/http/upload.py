"""Read a body of any size, some of it at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import chain

from flask import request
from gevent import Timeout, sleep
from gunicorn.http.errors import ParseException

from app.errors import BodyTimeout, InvalidEncoding
from app.services import services
from app.web.http.body import check_charset, is_gzip

_CHUNK_BYTES = 1 << 16
# Not 0: gevent would run many ready greenlets before it polls for new input.
_YIELD_SECONDS = 1e-6
_GZIP_MAGIC = b"\x1f\x8b"


def read_upload() -> Iterator[bytes]:
    """The body of the current request in chunks, decompressed if it is gzip.

    Other requests get a turn after each chunk, as handling it may not involve any wait.

    Raises:
        UnsupportedMediaType: not in UTF-8, or compressed with anything but gzip.
        BodyTimeout: the next 64 KiB, or the rest, took longer than ``BODY_TIMEOUT_SECONDS``.
        InvalidEncoding: it ended early, or is not valid gzip.
    """
    check_charset()
    compressed = is_gzip()
    chunks = _raw_chunks(services().settings.body_timeout_seconds)
    first = next(chunks, b"")
    whole: Iterator[bytes] = chain((first,), chunks)
    # Also without Content-Encoding: the file itself may be a gzip file.
    if compressed or first.startswith(_GZIP_MAGIC):
        whole = _gunzip(whole)
    for chunk in whole:
        yield chunk
        sleep(_YIELD_SECONDS)


def _raw_chunks(pause_seconds: float) -> Iterator[bytes]:
    stream, length = request.environ["wsgi.input"], request.content_length
    received = 0
    while length is None or received < length:
        size = _CHUNK_BYTES if length is None else min(_CHUNK_BYTES, length - received)
        chunk: bytes | None = None
        try:
            with Timeout(pause_seconds, False):  # type: ignore[arg-type]
                chunk = stream.read(size)
        except (OSError, ParseException):
            raise InvalidEncoding("The body can't be read to its end.") from None
        if chunk is None:
            raise BodyTimeout(f"The next 64 KiB did not arrive within {pause_seconds:g} s.")
        if not chunk:
            break
        received += len(chunk)
        yield chunk
    if length is not None and received < length:
        raise InvalidEncoding("The body ended before its announced length.")


def _gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress a gzip file of one or more members."""
    member = zlib.decompressobj(wbits=31)
    for chunk in chunks:
        rest = chunk
        while rest:
            if member.eof:
                member = zlib.decompressobj(wbits=31)
            try:
                yield member.decompress(rest, _CHUNK_BYTES)
            except zlib.error:
                raise InvalidEncoding("The body is not valid gzip.") from None
            rest = member.unconsumed_tail or member.unused_data
    while not member.eof:
        try:
            more = member.decompress(b"", _CHUNK_BYTES)
        except zlib.error:
            raise InvalidEncoding("The body is not valid gzip.") from None
        if not more:
            raise InvalidEncoding("The gzip body is truncated.")
        yield more
