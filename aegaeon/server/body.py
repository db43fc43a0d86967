"""Reads request bodies, as long as they are of a sane size and kind.

Does not know: what is in them.
"""

from __future__ import annotations

from starlette.requests import Request

from aegaeon.server.errors import ApiError


async def read_json(request: Request, limit_bytes: int) -> bytes:
    """The body of a request, not yet parsed. Raises ``ApiError`` 413 or 415."""
    _require_json(request.headers.get("content-type"))
    too_large = ApiError(413, f"The body is larger than {limit_bytes} bytes.", code="request_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise too_large
    return bytes(body)


def _require_json(content_type: str | None) -> None:
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, f"The body must be JSON: send Content-Type: application/json, not {kind!r}.")
