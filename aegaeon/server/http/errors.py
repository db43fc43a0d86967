"""Errors as OpenAI clients expect them: a real status code and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from aegaeon.core.generation import (
    ContextLengthError,
    FieldError,
    GenerationError,
    ModelUnavailableError,
    OverloadedError,
    PoolUnavailableError,
    UnknownModelError,
)
from aegaeon.core.sampling import SamplingError

INVALID_REQUEST = "invalid_request_error"
_RESTART_S = 5  # for clients of a server that shuts down: another may be in its place by then
_MAX_MESSAGE_CHARS = 2000  # a message may repeat what the client sent, which may be long


class ApiError(Exception):
    """An answer that is an error. ``param`` names the field at fault, ``code`` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message if len(message) <= _MAX_MESSAGE_CHARS else message[:_MAX_MESSAGE_CHARS] + " ...")
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole HTTP answer."""
        return JSONResponse(self.body, self.status, self.headers)


class ShuttingDownError(GenerationError):
    """The server stops; the request was cut off."""


def internal_error(request_id: str) -> ApiError:
    """What a client hears of a bug: where to look, nothing of what is inside."""
    message = f"Internal error. The server's log has the details under request id {request_id}."
    return ApiError(500, message, kind="server_error", code="internal_error")


def from_generation(error: GenerationError) -> ApiError:
    """The answer to a request that the serving system turned away or gave up on."""
    message = str(error)
    match error:
        case UnknownModelError():
            return ApiError(404, message, param="model", code="model_not_found")
        case ContextLengthError(param=param):
            return ApiError(400, message, param=param, code="context_length_exceeded")
        case FieldError(param=param):
            return ApiError(400, message, param=param)
        case OverloadedError(retry_after_s=retry_after_s):
            headers = _retry_after(retry_after_s)
            return ApiError(429, message, kind="overloaded_error", code="overloaded", headers=headers)
        case ModelUnavailableError(retry_after_s=retry_after_s):
            headers = _retry_after(retry_after_s) if retry_after_s is not None else {}
            return ApiError(503, message, kind="service_unavailable_error", code="model_unavailable", headers=headers)
        case PoolUnavailableError(retry_after_s=retry_after_s):
            headers = _retry_after(retry_after_s)
            return ApiError(503, message, kind="service_unavailable_error", code="pool_unavailable", headers=headers)
        case ShuttingDownError():
            return ApiError(503, message, kind="service_unavailable_error", code="shutting_down")
        case _:
            return ApiError(500, message, kind="server_error", code="engine_error")


def _retry_after(after_s: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(after_s)))}


def from_sampling(error: SamplingError) -> ApiError:
    """The answer to a sampling value out of range."""
    return ApiError(400, str(error), param=error.field)


def from_validation(error: ValidationError) -> ApiError:
    """The answer to a body that is not JSON, or not of the right shape; names the first field at fault."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {first['msg']}", code="invalid_json")
    param = _path(first["loc"])
    if param is None:
        return ApiError(400, "The body must be a JSON object.")
    return ApiError(400, f"{param}: {first['msg']}", param=param)


def _path(loc: tuple[int | str, ...]) -> str | None:
    """``("messages", 0, "role")`` as ``messages[0].role``."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    return "".join(steps).removeprefix(".") or None
