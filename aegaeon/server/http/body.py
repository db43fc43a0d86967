"""Reads and parses request bodies, as long as they are of a sane size and kind; large ones off the loop, and only as
many bytes of them at a time as there is room for.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from starlette.requests import Request

from aegaeon.server.http.errors import ApiError

Parsed = TypeVar("Parsed")

SMALL_BYTES = 64 << 10  # are parsed where they are: that takes less than to hand them over
LARGE_AT_ONCE = 16  # of the largest that may be sent have room in memory
_MAX_VALUES = 1_000_000  # strings, and places where a value may stand; a parser holds the interpreter for all of them
_VALUE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[,\[{]', re.DOTALL)
_GZIP = 31  # zlib's window bits for a gzip header
_ENCODINGS = {"": False, "identity": False, "gzip": True, "x-gzip": True}


class BodyReader:
    """Reads bodies of at most ``limit_bytes``, before and after decompression."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._room = _Room(limit_bytes)
        self._thread = ThreadPoolExecutor(1, "large-bodies")

    async def read(self, request: Request, parse: Callable[[bytes], Parsed]) -> Parsed:
        """What ``parse`` makes of a body; a large one has a thread for that. Raises ``ApiError`` 400, 413 or 415."""
        _require_json(request.headers.get("content-type"))
        compressed = _is_compressed(request.headers.get("content-encoding"))
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._limit_bytes:
            raise self._too_large()
        try:
            body = await self._collect(request)
            if not compressed and len(body) <= SMALL_BYTES:
                return parse(bytes(body))
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._parse_large, body, compressed, parse)
        finally:
            self._room.leave(request)

    async def _collect(self, request: Request) -> bytearray:
        body = bytearray()
        async for chunk in request.stream():
            size_bytes = len(body) + len(chunk)
            if size_bytes > self._limit_bytes:
                raise self._too_large()
            if size_bytes > SMALL_BYTES:
                await self._room.take(request, size_bytes)
            body += chunk
        return body

    def _parse_large(self, body: bytearray, compressed: bool, parse: Callable[[bytes], Parsed]) -> Parsed:
        data = self._decompressed(body) if compressed else bytes(body)
        body.clear()
        if next(islice(_VALUE.finditer(data), _MAX_VALUES, None), None) is not None:
            raise ApiError(400, f"The body has more than {_MAX_VALUES} values.", code="request_too_large")
        return parse(data)

    def _decompressed(self, body: bytearray) -> bytes:
        decompressor = zlib.decompressobj(_GZIP)
        try:
            data = decompressor.decompress(body, self._limit_bytes + 1)
        except zlib.error as error:
            raise ApiError(400, f"The body is not valid gzip: {error}", code="invalid_gzip") from None
        if len(data) > self._limit_bytes:
            raise self._too_large()
        if not decompressor.eof or decompressor.unused_data:
            raise ApiError(400, "The body is not one whole gzip member.", code="invalid_gzip")
        return data

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body is larger than {self._limit_bytes} bytes.", code="request_too_large")


class _Room:
    """Bytes of large bodies that may be here at once, taken as they come: a body holds no more than was sent of it.

    The one that came first is never kept waiting, so bodies of which only a part is here do not wait for each other.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._shared_bytes = (LARGE_AT_ONCE - 1) * limit_bytes  # beside them the first one has room to its end
        self._held_bytes: dict[Request, int] = {}  # in the order in which they came
        self._total_bytes = 0
        self._waiting: dict[Request, tuple[int, asyncio.Future[None]]] = {}

    async def take(self, request: Request, size_bytes: int) -> None:
        """Let a body be of this size, as soon as there is room for it."""
        self._held_bytes.setdefault(request, 0)
        if self._grown(request, size_bytes):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[request] = size_bytes, turn
        try:
            await turn
        finally:
            self._waiting.pop(request, None)

    def leave(self, request: Request) -> None:
        """Make room for others: whatever this body took is gone."""
        self._total_bytes -= self._held_bytes.pop(request, 0)
        for other in [other for other in self._held_bytes if other in self._waiting]:
            size_bytes, turn = self._waiting[other]
            if not self._grown(other, size_bytes):
                return
            del self._waiting[other]
            if not turn.done():  # else it was cancelled, and is about to leave
                turn.set_result(None)

    def _grown(self, request: Request, size_bytes: int) -> bool:
        more_bytes = size_bytes - self._held_bytes[request]
        first = next(iter(self._held_bytes))
        if request is not first and self._total_bytes + more_bytes > self._shared_bytes:
            return False
        self._held_bytes[request] = size_bytes
        self._total_bytes += more_bytes
        return True


def _require_json(content_type: str | None) -> None:
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, f"The body must be JSON: send Content-Type: application/json, not {kind!r}.")


def _is_compressed(content_encoding: str | None) -> bool:
    coding = (content_encoding or "").strip().lower()
    if coding not in _ENCODINGS:
        message = f"Content-Encoding {coding!r} is not supported: send the body as it is, or as gzip."
        raise ApiError(415, message, headers={"Accept-Encoding": "gzip, identity"})
    return _ENCODINGS[coding]
