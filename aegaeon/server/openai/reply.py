"""An answer as an HTTP response, whole or as a stream of server-sent events.

The status line waits for the first output: whatever goes wrong before it has a real status code.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from aegaeon.core.generation import Frontend, GenerationError
from aegaeon.server.http.errors import ApiError, from_generation, internal_error
from aegaeon.server.openai.answer import Answer, Choice
from aegaeon.server.openai.running import RunningRequests
from aegaeon.server.openai.wire import DONE, Wire, event

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplyContext:
    """What a reply needs from its server. ``now_s`` is the node's monotonic clock."""

    frontend: Frontend
    running: RunningRequests
    now_s: Callable[[], float]


class Reply(Response):
    """Submits an answer's generations and sends their output; leaves nothing running behind."""

    def __init__(self, context: ReplyContext, answer: Answer, wire: Wire, *, with_timeline: bool) -> None:
        super().__init__()
        self._context = context
        self._answer = answer
        self._wire = wire
        self._with_timeline = with_timeline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed = True
        try:
            await self._context.running.run(receive, self._work(scope, receive, send))
            failed = False
        except ClientDisconnect:
            failed = False  # nor is there anybody to tell, which Starlette would make a failure of once a stream began
            logger.debug("request %s: the client has gone", scope["state"]["request_id"])
        except asyncio.CancelledError:
            failed = False
            raise
        except Exception as error:
            if not await self._told(error, scope, send):
                raise
        finally:
            await self._answer.close(failed)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer.submit(self._context.frontend)
        await self._send_answer(scope, receive, send)

    @abstractmethod
    async def _send_answer(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    async def _told(self, error: Exception, scope: Scope, send: Send) -> bool:
        """Tell the client of a failure, if that is not for the error handlers to do; whether it was told."""
        return False

    @property
    def _extra(self) -> dict[str, Any]:
        if not self._with_timeline:
            return {}
        return {"aegaeon": self._answer.choices[0].timeline(self._context.now_s())}


class WholeReply(Reply):
    """The answer in one JSON body."""

    async def _send_answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer.collect()
        body = self._wire.body(self._answer.wholes, self._answer.usage, self._extra)
        await JSONResponse(body, headers=_latency_headers(self._answer.choices[0]))(scope, receive, send)


def _latency_headers(choice: Choice) -> dict[str, str]:
    headers = {}
    if choice.ttft_s is not None:
        headers["X-Aegaeon-TTFT-Ms"] = f"{choice.ttft_s * 1e3:.3f}"
    if choice.tpot_s is not None:
        headers["X-Aegaeon-TPOT-Ms"] = f"{choice.tpot_s * 1e3:.3f}"
    return headers


class StreamReply(Reply):
    """The answer as server-sent events, as it comes."""

    media_type = "text/event-stream"

    def __init__(
        self, context: ReplyContext, answer: Answer, wire: Wire, *, with_timeline: bool, include_usage: bool
    ) -> None:
        super().__init__(context, answer, wire, with_timeline=with_timeline)
        self._with_usage = include_usage or with_timeline
        self._started = False
        self._write_lock = asyncio.Lock()
        self.headers.update({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]

    async def _send_answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer.for_each(lambda index, choice: self._send_choice(index, choice, send))
        usage = self._wire.usage(self._answer.usage, self._extra) if self._with_usage else b""
        await self._write(send, usage + DONE)
        await self._end(send)

    async def _send_choice(self, index: int, choice: Choice, send: Send) -> None:
        opening = self._wire.opening(index)
        async for delta in choice.generation:
            choice.observe(delta)
            chunk = self._wire.delta(index, delta.text) if delta.text else b""
            if delta.finish_reason is not None:
                chunk += self._wire.closing(index, delta.finish_reason)
            if chunk:
                await self._write(send, opening + chunk)
                opening = b""
        choice.require_finished()

    async def _write(self, send: Send, chunk: bytes) -> None:
        async with self._write_lock:
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _end(self, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _told(self, error: Exception, scope: Scope, send: Send) -> bool:
        if self._started:
            await self._write(send, event(_stream_error(error, scope["state"]["request_id"]).body))
            await self._end(send)
        return self._started


def _stream_error(error: Exception, request_id: str) -> ApiError:
    if isinstance(error, GenerationError):
        return from_generation(error)
    logger.error("request %s failed in its stream", request_id, exc_info=error)
    return internal_error(request_id)
