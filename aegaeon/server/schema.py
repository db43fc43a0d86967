"""Bodies of generation requests, in the OpenAI API's words plus vLLM's names for what it lacks.

Null means default everywhere. Fields that are unknown are ignored; fields of the OpenAI API that would change the
answer and are not supported are refused, unless they have the value that changes nothing.

Does not know: HTTP, who answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from aegaeon.core.generation import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from aegaeon.core.sampling import SamplingError, SamplingParams
from aegaeon.core.slo import Slo
from aegaeon.server.errors import ApiError, from_sampling, from_validation
from aegaeon.server.prompts import TOKEN_ID_LIMIT, completion_prompts, message_text

MAX_CHOICES_PER_PROMPT = 16
NO_LIMIT_TOKENS = 2**31 - 1
_SEEDS = 2**64

# Field -> values that change nothing (null never does).
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}

Count = Annotated[int, Field(ge=-NO_LIMIT_TOKENS, le=NO_LIMIT_TOKENS)]
Limit = Annotated[int, Field(ge=1, le=NO_LIMIT_TOKENS)]
TokenId = Annotated[int, Field(ge=0, lt=TOKEN_ID_LIMIT)]
TargetSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class StreamOptions(_Fields):
    """What a stream carries besides text."""

    include_usage: bool | None = None


class SloFields(_Fields):
    """Latency targets of one request, instead of its model's."""

    ttft_s: TargetSeconds
    tpot_s: TargetSeconds


def _stop_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class GenerationFields(_Fields):
    """What chat and text completions have in common."""

    model: Annotated[str, Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES_PER_PROMPT)] | None = None
    best_of: int | None = None
    max_tokens: Limit | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_stop_list)] = None
    top_k: Count | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    slo: SloFields | None = None

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts to complete, each ``choices`` times."""
        raise NotImplementedError

    @property
    def limit_tokens(self) -> int | None:
        """Most tokens to generate per choice; None: what the context leaves."""
        raise NotImplementedError

    @property
    def choices(self) -> int:
        """Answers per prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def targets(self) -> Slo | None:
        """Latency targets, if the client named some."""
        return Slo(self.slo.ttft_s, self.slo.tpot_s) if self.slo else None

    def sampling(self) -> SamplingParams:
        """Sampling of the first choice. Raises ``SamplingError``."""
        limit = self.limit_tokens
        given: dict[str, Any] = {
            "max_new_tokens": NO_LIMIT_TOKENS if limit is None else limit,
            "min_new_tokens": self.min_tokens,
            "temperature": self.temperature,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "stop": None if self.stop is None else tuple(self.stop),
            "stop_token_ids": None if self.stop_token_ids is None else tuple(self.stop_token_ids),
            "ignore_eos": self.ignore_eos,
        }
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})

    def samplings(self) -> list[SamplingParams]:
        """Sampling of every choice of a prompt: the same, but for the seed, which counts up."""
        first = self.sampling()
        if first.seed is None:
            return [first] * self.choices
        return [replace(first, seed=_wrapped(first.seed + index)) for index in range(self.choices)]


def _wrapped(seed: int) -> int:
    """The seed as a signed 64-bit number."""
    return (seed + _SEEDS // 2) % _SEEDS - _SEEDS // 2


class Message(_Fields):
    """One message of a chat; fields that only a template knows are passed on to it."""

    role: Annotated[str, Field(min_length=1)]
    content: Annotated[str | None, BeforeValidator(message_text)] = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise PydanticCustomError("missing_content", "content is required")
        return self


class ChatRequest(GenerationFields):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Limit | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        messages = tuple(message.model_dump(exclude_none=True) for message in self.messages)
        return (ChatPrompt(messages, self.chat_template_kwargs or {}),)

    @property
    def limit_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(GenerationFields):
    """Body of ``POST /v1/completions``."""

    prompt: Annotated[tuple[TextPrompt | TokenPrompt, ...], PlainValidator(completion_prompts)]

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self.prompt

    @property
    def limit_tokens(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens


Schema = TypeVar("Schema", bound=GenerationFields)


def parse(schema: type[Schema], body: bytes) -> Schema:
    """A request body as ``schema``. Raises ``ApiError`` 400, naming the field at fault."""
    try:
        fields = schema.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None
    _refuse_unsupported(fields)
    try:
        fields.sampling()
    except SamplingError as error:
        raise from_sampling(error) from None
    return fields


def _refuse_unsupported(fields: GenerationFields) -> None:
    for name, value in (fields.model_extra or {}).items():
        neutral = UNSUPPORTED.get(name)
        if neutral is not None and value is not None and not any(_same(value, item) for item in neutral):
            raise ApiError(400, f"{name} is not supported", param=name, code="unsupported_parameter")
    if fields.best_of not in (None, fields.choices):
        raise ApiError(400, "best_of is not supported (other than equal to n)", param="best_of")
    if fields.stream_options is not None and not fields.stream:
        raise ApiError(400, "stream_options is only allowed with stream", param="stream_options")


def _same(value: Any, neutral: Any) -> bool:
    # True == 1 and 0 == False in Python, not in JSON.
    return type(value) is type(neutral) and bool(value == neutral)
