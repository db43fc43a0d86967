"""What passes between the server and the serving system: the ``Frontend`` protocol and its data."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from aegaeon.core.sampling import SamplingParams
from aegaeon.core.slo import Slo
from aegaeon.core.timeline import PhaseSpan


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A raw prompt."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt of token ids of the model's vocabulary."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages for the model's own chat template; ``template_kwargs`` are passed on to it."""

    messages: tuple[Mapping[str, Any], ...]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to generate; where ``fit_context``, the output limit is cut to what the context leaves.

    ``unset``: fields of ``sampling`` of which the client said nothing; the model's own defaults go before ours.
    ``cache_salt``: KV is shared only between requests with the same one.
    """

    request_id: str
    model: str
    prompt: Prompt
    sampling: SamplingParams
    slo: Slo | None = None
    fit_context: bool = False
    unset: frozenset[str] = frozenset()
    cache_salt: str = ""


class FinishReason(StrEnum):
    """Why the output ended, in the OpenAI API's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Delta:
    """New output of a request: text that is final (no half characters, no part of a stop string), and its tokens.

    The last delta has a ``finish_reason``; it may be empty otherwise. ``logprob``: of its tokens together, where the
    request is scored.
    """

    text: str
    token_ids: tuple[int, ...]
    token_times_s: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    logprob: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A served model, as clients see it. ``failure`` is set while the model is quarantined."""

    name: str
    architecture: str
    max_context_tokens: int
    parameters: int
    created_s: int
    has_chat_template: bool
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """State of the pool. ``ready``: requests can be served; ``detail`` says why not.

    ``problems``: what is missing of the pool as it should be, and why, whether or not requests can be served.
    """

    ready: bool
    live: bool
    detail: str = ""
    problems: tuple[str, ...] = ()


class GenerationError(Exception):
    """Base of everything that ``Frontend.generate`` raises on purpose; the message is for the client."""


class UnknownModelError(GenerationError):
    """No model of that name is served."""


class FieldError(GenerationError):
    """A field of the request has a value that its model cannot use; ``param`` names the field."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class PromptError(FieldError):
    """The prompt cannot be used as it is."""


class ContextLengthError(GenerationError):
    """Prompt and requested output do not fit the model's context, or the pool's memory."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class OverloadedError(GenerationError):
    """The pool takes no more requests now; ``retry_after_s`` is an honest estimate."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelUnavailableError(GenerationError):
    """The model is served in principle but cannot be used now; the message says why.

    ``retry_after_s``: when to come again, where that is known.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PoolUnavailableError(GenerationError):
    """Nothing can be served now, whatever the model; ``retry_after_s`` is when to ask again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class FailureCause(StrEnum):
    """What made a request fail inside the serving system, as far as operators should tell them apart."""

    ENGINE = "engine"
    NOT_FINITE = "not_finite"  # no token could be chosen: the model's logits are NaN or infinite


class EngineError(GenerationError):
    """The request failed inside the serving system; ``cause`` is for counting."""

    def __init__(self, message: str, cause: FailureCause = FailureCause.ENGINE) -> None:
        super().__init__(message)
        self.cause = cause


class Generation(Protocol):
    """A request under way. Iterate to the end, or ``cancel``; leaving the iteration early cancels too.

    The counts grow while iterating; ``timeline`` is complete after the last delta.
    """

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt whose KV was there already; 0 until that is known."""
        ...

    @property
    def completion_tokens(self) -> int: ...

    @property
    def arrival_s(self) -> float:
        """When the frontend took the request, on the node's monotonic clock."""
        ...

    @property
    def timeline(self) -> Sequence[PhaseSpan]: ...

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    async def cancel(self) -> None:
        """Stop at the next step and free everything; idempotent."""
        ...


class Frontend(Protocol):
    """The serving system as a server sees it."""

    def models(self) -> Sequence[ModelCard]: ...

    def health(self) -> Health: ...

    async def generate(self, request: GenerationRequest, first: Generation | None = None) -> Generation:
        """Validate, tokenize and submit; returns once the request is queued. Raises ``GenerationError``.

        ``first``: of the same model, prompt and salt; what is done for its prompt is not done again.
        """
        ...
