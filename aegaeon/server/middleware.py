"""What holds for every request: it has an id, it is counted, and a bug becomes an error object.

Does not know: routes.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aegaeon.server.errors import ApiError, internal_error
from aegaeon.server.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"
MAX_REQUEST_ID_CHARS = 128
CLIENT_GONE_STATUS = 499


@dataclass(slots=True)
class _Exchange:
    """One request and its response, so far."""

    request_id: str
    send_next: Send
    status: int = CLIENT_GONE_STATUS

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[REQUEST_ID_HEADER] = self.request_id
        await self.send_next(message)


class RequestMiddleware:
    """Gives every response an ``X-Request-Id``: the client's own, or a new one."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        valid = len(given) <= MAX_REQUEST_ID_CHARS and given.isascii() and given.isprintable()
        exchange = _Exchange(given if given and valid else uuid.uuid4().hex, send)
        scope.setdefault("state", {})["request_id"] = exchange.request_id
        try:
            if not valid:
                await _refuse_request_id()(scope, receive, exchange.send)
            else:
                await self._serve(exchange, scope, receive)
        finally:
            self._metrics.http_requests.labels(_route(scope), str(exchange.status)).inc()

    async def _serve(self, exchange: _Exchange, scope: Scope, receive: Receive) -> None:
        try:
            await self._app(scope, receive, exchange.send)
        except Exception:
            logger.exception("request %s: %s %s failed", exchange.request_id, scope["method"], scope["path"])
            if exchange.status != CLIENT_GONE_STATUS:
                raise
            await internal_error(exchange.request_id).response()(scope, receive, exchange.send)


def _refuse_request_id() -> ASGIApp:
    message = f"{REQUEST_ID_HEADER} must be printable ASCII of at most {MAX_REQUEST_ID_CHARS} characters."
    return ApiError(400, message, param=REQUEST_ID_HEADER).response()


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "other")
