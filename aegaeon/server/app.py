"""The HTTP application: routes of the OpenAI API, health, metrics."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from aegaeon import __version__
from aegaeon.core.generation import Frontend, GenerationError, GenerationRequest, ModelCard, UnknownModelError
from aegaeon.server.admin import admin_router
from aegaeon.server.http.body import BodyReader
from aegaeon.server.http.errors import ApiError, from_generation
from aegaeon.server.http.keys import wants_key
from aegaeon.server.http.limits import RequestLimits
from aegaeon.server.http.metrics import Metrics
from aegaeon.server.http.middleware import FailureMiddleware, RequestMiddleware
from aegaeon.server.openai.answer import Answer
from aegaeon.server.openai.reply import Reply, ReplyContext, StreamReply, WholeReply
from aegaeon.server.openai.running import RunningRequests
from aegaeon.server.openai.schema import ChatRequest, CompletionRequest, GenerationFields, parse
from aegaeon.server.openai.wire import ChatWire, CompletionWire, Wire

logger = logging.getLogger(__name__)

TIMELINE_HEADER = "X-Aegaeon-Timeline"
EXPOSED_HEADERS = ["X-Request-Id", "Retry-After", "X-Aegaeon-TTFT-Ms", "X-Aegaeon-TPOT-Ms"]
READ = ["GET", "HEAD"]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the API behaves.

    ``api_keys``: where not empty, ``/v1`` and ``/admin`` want one of them as bearer token; likewise ``metrics_keys``
    for ``/metrics``. ``cors_origins``: whose pages may use the API from a browser. ``registry`` takes the server's
    metrics, and may hold others'. ``now_s`` is the node's monotonic clock. ``state``: data that ``/admin/state`` shows;
    without it there is no such page.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    metrics_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    limits: RequestLimits = field(default_factory=RequestLimits)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    now_s: Callable[[], float] = time.monotonic
    state: Callable[[], dict[str, Any]] | None = None


def create_app(frontend: Frontend, options: ServerOptions | None = None) -> FastAPI:
    """The application that serves ``frontend``. ``app.state.running`` has the requests under way."""
    options = options or ServerOptions()
    metrics = Metrics(options.registry)
    running = RunningRequests()
    # No generated docs: bodies are parsed by hand, and the pages would load scripts from elsewhere.
    app = FastAPI(title="Aegaeon", version=__version__, openapi_url=None, redirect_slashes=False)
    app.state.running = running
    app.add_middleware(FailureMiddleware)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors_origins,
            allow_credentials="*" not in options.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(RequestMiddleware, metrics=metrics)
    _add_error_handlers(app)
    endpoints = _Endpoints(ReplyContext(frontend, running, options.now_s), options, metrics)
    app.include_router(endpoints.api())
    app.include_router(endpoints.operations())
    if options.state is not None:
        app.include_router(admin_router(options.state), dependencies=[wants_key(options.api_keys)])
    return app


def _add_error_handlers(app: FastAPI) -> None:
    async def api_error(_: Request, error: Any) -> Response:
        return error.response()  # type: ignore[no-any-return]

    async def generation_error(_: Request, error: Any) -> Response:
        return from_generation(error).response()

    async def http_error(request: Request, error: Any) -> Response:
        message = f"{error.detail}: {request.method} {request.url.path}"
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def client_gone(request: Request, _: Any) -> None:
        """There is nobody to answer."""
        logger.debug("request %s: the client has gone within its body", request.state.request_id)

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(GenerationError, generation_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientDisconnect, client_gone)  # type: ignore[arg-type]


class _Endpoints:
    """The routes' functions."""

    def __init__(self, context: ReplyContext, options: ServerOptions, metrics: Metrics) -> None:
        self._context = context
        self._frontend = context.frontend
        self._options = options
        self._metrics = metrics
        self._bodies = BodyReader(options.limits.max_body_bytes)

    def api(self) -> APIRouter:
        """The OpenAI API."""
        router = APIRouter(prefix="/v1", dependencies=[wants_key(self._options.api_keys)])
        router.add_api_route("/models", self.list_models, methods=READ, response_model=None)
        router.add_api_route("/models/{name:path}", self.show_model, methods=READ, response_model=None)
        router.add_api_route("/chat/completions", self.chat, methods=["POST"], response_model=None)
        router.add_api_route("/completions", self.complete, methods=["POST"], response_model=None)
        return router

    def operations(self) -> APIRouter:
        """Routes for those who run the service."""
        router = APIRouter()
        router.add_api_route("/", self.hint, methods=READ, response_model=None)
        router.add_api_route("/health", self.health, methods=READ, response_model=None)
        router.add_api_route("/ready", self.ready, methods=READ, response_model=None)
        keys = [wants_key(self._options.metrics_keys)]
        router.add_api_route("/metrics", self.metrics, methods=READ, response_model=None, dependencies=keys)
        return router

    async def hint(self) -> Response:
        return JSONResponse(
            {"name": "aegaeon", "version": __version__, "api": "/v1", "see": ["/v1/models", "/ready", "/metrics"]}
        )

    async def health(self) -> Response:
        state = self._frontend.health()
        body = {"status": "ok" if state.live else "failed", "detail": state.detail, "problems": state.problems}
        return JSONResponse(body, 200 if state.live else 503)

    async def ready(self) -> Response:
        state = self._frontend.health()
        up = state.ready and state.live
        status = "ready" if up else "not ready"
        return JSONResponse({"status": status, "detail": state.detail, "problems": state.problems}, 200 if up else 503)

    async def metrics(self) -> Response:
        return Response(self._metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def list_models(self) -> Response:
        return JSONResponse({"object": "list", "data": [_model_body(card) for card in self._frontend.models()]})

    async def show_model(self, name: str) -> Response:
        for card in self._frontend.models():
            if card.name == name:
                return JSONResponse(_model_body(card))
        raise UnknownModelError(f"There is no model {name!r} here; see /v1/models.")

    async def chat(self, request: Request) -> Response:
        answer_id = f"chatcmpl-{uuid.uuid4().hex}"
        fields, requests = await self._read(request, ChatRequest, answer_id)
        wire = ChatWire(answer_id, fields.model, int(time.time()), include_usage=fields.include_usage)
        return self._reply(request, fields, requests, wire)

    async def complete(self, request: Request) -> Response:
        answer_id = f"cmpl-{uuid.uuid4().hex}"
        fields, requests = await self._read(request, CompletionRequest, answer_id)
        wire = CompletionWire(answer_id, fields.model, int(time.time()), include_usage=fields.include_usage)
        return self._reply(request, fields, requests, wire)

    async def _read(
        self, request: Request, schema: type[GenerationFields], answer_id: str
    ) -> tuple[GenerationFields, list[GenerationRequest]]:
        """A request's fields and what they ask for. What takes long with a large body is done where that is parsed."""

        def parsed(body: bytes) -> tuple[GenerationFields, list[GenerationRequest]]:
            fields = parse(schema, body, self._options.limits)
            return fields, self._generations(fields, answer_id)

        return await self._bodies.read(request, parsed)

    def _reply(
        self, request: Request, fields: GenerationFields, requests: list[GenerationRequest], wire: Wire
    ) -> Reply:
        with_timeline = request.headers.get(TIMELINE_HEADER) == "1"
        if with_timeline and len(requests) > 1:
            raise ApiError(400, f"{TIMELINE_HEADER} needs a request with one choice.", param=TIMELINE_HEADER)
        answer = Answer(requests, fields.candidates, fields.choices, self._metrics)
        if fields.stream:
            include_usage = fields.include_usage
            return StreamReply(self._context, answer, wire, with_timeline=with_timeline, include_usage=include_usage)
        return WholeReply(self._context, answer, wire, with_timeline=with_timeline)

    def _generations(self, fields: GenerationFields, answer_id: str) -> list[GenerationRequest]:
        """One generation per prompt and choice."""
        prompts = fields.prompts
        count, limit = len(prompts) * fields.rows, self._options.limits.max_choices
        if count > limit:
            message = f"At most {limit} choices (prompts times n, or best_of) in one request, got {count}."
            raise ApiError(400, message, param="prompt" if len(prompts) > 1 else "n")
        pairs = [(prompt, sampling) for prompt in prompts for sampling in fields.samplings()]
        return [
            GenerationRequest(
                request_id=f"{answer_id}-{index}",
                model=fields.model,
                prompt=prompt,
                sampling=sampling,
                slo=fields.targets,
                fit_context=fields.limit_tokens is None,
                unset=fields.unset,
                cache_salt=fields.cache_salt or "",
            )
            for index, (prompt, sampling) in enumerate(pairs)
        ]


def _model_body(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created_s,
        "owned_by": "aegaeon",
        "max_model_len": card.max_context_tokens,
        "architecture": card.architecture,
        "parameters": card.parameters,
        "failure": card.failure,
    }
