"""Who may ask: clients that send one of the keys as bearer token."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

from fastapi import Depends
from starlette.requests import Request

from aegaeon.server.http.errors import ApiError


def wants_key(keys: Sequence[str]) -> Any:
    """A dependency of routes that raises ``ApiError`` 401 unless the client has one of ``keys``, or there are none.

    It is asked before a body is read.
    """
    known = tuple(key.encode() for key in keys)

    async def authorize(request: Request) -> None:
        if known and not _is_known(request.headers.get("authorization", ""), known):
            message = "No valid API key: send it as Authorization: Bearer KEY."
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, message, kind="authentication_error", code="invalid_api_key", headers=headers)

    return Depends(authorize)


def _is_known(authorization: str, known: Sequence[bytes]) -> bool:
    scheme, _, token = authorization.partition(" ")
    given = token.strip().encode()
    matches = [hmac.compare_digest(given, key) for key in known]  # all of them, so that the time tells nothing
    return scheme.lower() == "bearer" and any(matches)
