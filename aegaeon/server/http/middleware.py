"""What holds for every request: it has an id, it is counted, and a bug becomes an error object."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aegaeon.server.http.errors import ApiError, internal_error
from aegaeon.server.http.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"
MAX_REQUEST_ID_CHARS = 128
CLIENT_GONE_STATUS = 499


class RequestMiddleware:
    """Gives every response an ``X-Request-Id``, the client's own or a new one, and counts it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        valid = len(given) <= MAX_REQUEST_ID_CHARS and given.isascii() and given.isprintable()
        request_id = given if given and valid else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        response = _Response(send, request_id)
        try:
            await (self._app if valid else _refuse_request_id())(scope, receive, response.send)
        finally:
            self._metrics.http_requests.labels(_route(scope), str(response.status)).inc()


class FailureMiddleware:
    """Makes a bug an error object, and a line in the log that has its traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = _Response(send)
        try:
            await self._app(scope, receive, response.send)
        except Exception:
            request_id = scope["state"]["request_id"]
            logger.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            if response.status != CLIENT_GONE_STATUS:
                raise
            await internal_error(request_id).response()(scope, receive, send)


@dataclass(slots=True)
class _Response:
    """What was sent so far. ``request_id``: to put in its head."""

    send_next: Send
    request_id: str | None = None
    status: int = CLIENT_GONE_STATUS

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.request_id is not None:
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = self.request_id
        await self.send_next(message)


def _refuse_request_id() -> ASGIApp:
    message = f"{REQUEST_ID_HEADER} must be printable ASCII of at most {MAX_REQUEST_ID_CHARS} characters."
    return ApiError(400, message, param=REQUEST_ID_HEADER).response()


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "other")
