"""Bodies of generation requests, in the OpenAI API's words plus vLLM's names for what it lacks.

Null means default everywhere. Numbers and switches may be written as text ("8", "true"), as in vLLM; a switch is no
number. Fields that are unknown are ignored; fields that would change the answer and are not supported are refused,
unless they have the value that changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from aegaeon.core.generation import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from aegaeon.core.sampling import BeamParams, SamplingError, SamplingParams
from aegaeon.core.slo import LEAST_TARGET_S, MOST_TARGET_S, Slo
from aegaeon.server.http.errors import ApiError, from_sampling, from_validation
from aegaeon.server.http.limits import RequestLimits
from aegaeon.server.openai.prompts import TOKEN_ID_LIMIT, completion_prompts, message_content
from aegaeon.server.openai.unsupported import UNSUPPORTED, Neutral, refuse_unsupported, unsupported_parameter

MAX_CHOICES_PER_PROMPT = 16
NO_LIMIT_TOKENS = 2**31 - 1
_SEEDS = 2**64

MAX_STOP_TOKEN_IDS = 1024
MAX_SALT_CHARS = 256


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a valid number")
    return value


Whole = Annotated[int, BeforeValidator(_no_switch)]
Real = Annotated[float, BeforeValidator(_no_switch)]
Count = Annotated[Whole, Field(ge=-NO_LIMIT_TOKENS, le=NO_LIMIT_TOKENS)]
Limit = Annotated[Whole, Field(ge=1, le=NO_LIMIT_TOKENS)]
TokenId = Annotated[Whole, Field(ge=0, lt=TOKEN_ID_LIMIT)]
TargetSeconds = Annotated[Real, Field(ge=LEAST_TARGET_S, le=MOST_TARGET_S, allow_inf_nan=False)]
# What has no effect, or cannot be had, in a search by beams: but for these values.
_NOT_IN_A_SEARCH: Mapping[str, tuple[Any, ...]] = {
    "temperature": (0,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "stop": ([],),
}
# Of a list of a million wrong items one is told, and none is looked at after it.
FAIL_FAST = Field(fail_fast=True)


class _Fields(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class StreamOptions(_Fields):
    """What a stream carries besides text."""

    unsupported: ClassVar[Neutral] = {
        "continuous_usage_stats": (False, True)
    }  # how often usage is told, not the answer

    include_usage: bool | None = None


class SloFields(_Fields):
    """Latency targets of one request, instead of its model's."""

    ttft_s: TargetSeconds
    tpot_s: TargetSeconds


def _stop_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _stopping(value: Any) -> Any:
    if value in (None, "never") or isinstance(value, bool) or str(value).lower() in ("true", "false"):
        return value
    raise PydanticCustomError("early_stopping", 'Input should be true, false or "never"')


class GenerationFields(_Fields):
    """What chat and text completions have in common."""

    unsupported: ClassVar[Neutral] = UNSUPPORTED

    model: Annotated[str, Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[Whole, Field(ge=1, le=MAX_CHOICES_PER_PROMPT)] | None = None
    best_of: Annotated[Whole, Field(ge=1, le=MAX_CHOICES_PER_PROMPT)] | None = None
    max_tokens: Limit | None = None
    temperature: Real | None = None
    top_p: Real | None = None
    presence_penalty: Real | None = None
    frequency_penalty: Real | None = None
    seed: Whole | None = None
    stop: Annotated[Annotated[list[str], FAIL_FAST] | None, BeforeValidator(_stop_list)] = None
    top_k: Count | None = None
    min_p: Real | None = None
    repetition_penalty: Real | None = None
    stop_token_ids: Annotated[list[TokenId], FAIL_FAST, Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    use_beam_search: bool | None = None
    length_penalty: Real | None = None
    early_stopping: Annotated[bool | Literal["never"] | None, BeforeValidator(_stopping)] = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = None
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
    def rows(self) -> int:
        """Outputs per prompt that are worked on together, of which some are answered."""
        return self.best_of or self.choices

    @property
    def candidates(self) -> int:
        """Generations per prompt; a search by beams is one."""
        return 1 if self.use_beam_search else self.rows

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def targets(self) -> Slo | None:
        """Latency targets, if the client named some."""
        return Slo(self.slo.ttft_s, self.slo.tpot_s) if self.slo else None

    @property
    def unset(self) -> frozenset[str]:
        """Fields of ``SamplingParams`` of which the client says nothing, and that count."""
        unset = frozenset(name for name, value in self._said().items() if value is None)
        return unset & {"max_new_tokens"} if self.use_beam_search else unset

    def sampling(self) -> SamplingParams:
        """Sampling of the first choice. Raises ``SamplingError``."""
        said = {name: value for name, value in self._said().items() if value is not None}
        scored = self.candidates > self.choices
        return SamplingParams(**{"max_new_tokens": NO_LIMIT_TOKENS, **said}, scored=scored, beams=self._beams())

    def _beams(self) -> BeamParams | None:
        if not self.use_beam_search:
            return None
        penalty = 1.0 if self.length_penalty is None else self.length_penalty
        return BeamParams(self.rows, self.choices, penalty, self.early_stopping or False)

    def _said(self) -> dict[str, Any]:
        """What was said by field of ``SamplingParams``; None where nothing is."""
        return {
            "max_new_tokens": self.limit_tokens,
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

    def samplings(self) -> list[SamplingParams]:
        """Sampling of every generation of a prompt: the same, but for the seed, which counts up."""
        first = self.sampling()
        if first.seed is None:
            return [first] * self.candidates
        return [replace(first, seed=_wrapped(first.seed + index)) for index in range(self.candidates)]


def _wrapped(seed: int) -> int:
    """The seed as a signed 64-bit number."""
    return (seed + _SEEDS // 2) % _SEEDS - _SEEDS // 2


class Message(_Fields):
    """One message of a chat; fields that only a template knows are passed on to it."""

    role: Annotated[str, Field(min_length=1)]
    content: Annotated[str | list[dict[str, str]] | None, PlainValidator(message_content)] = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise PydanticCustomError("missing_content", "content is required")
        return self


class ChatRequest(GenerationFields):
    """Body of ``POST /v1/chat/completions``."""

    # A template writes the special tokens itself.
    unsupported: ClassVar[Neutral] = {**UNSUPPORTED, "add_special_tokens": (False,)}

    messages: Annotated[list[Message], FAIL_FAST, Field(min_length=1)]
    max_completion_tokens: Limit | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _ends_one_way(self) -> Self:
        if self.add_generation_prompt and self.continue_final_message:
            raise PydanticCustomError("two_ends", "add_generation_prompt and continue_final_message exclude each other")
        return self

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        messages = tuple(message.model_dump(exclude_none=True) for message in self.messages)
        ends = {
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
        }
        given = {name: value for name, value in ends.items() if value is not None}
        return (ChatPrompt(messages, {**given, **(self.chat_template_kwargs or {})}),)

    @property
    def limit_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(GenerationFields):
    """Body of ``POST /v1/completions``."""

    unsupported: ClassVar[Neutral] = {
        **UNSUPPORTED,
        "add_special_tokens": (True,),
        "add_generation_prompt": (),
        "continue_final_message": (),
        "chat_template_kwargs": ({},),
    }

    prompt: Annotated[tuple[TextPrompt | TokenPrompt, ...], PlainValidator(completion_prompts)]

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self.prompt

    @property
    def limit_tokens(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        """Some clients send the limit of a chat beside this one."""
        if (self.model_extra or {}).get("max_completion_tokens") not in (None, self.max_tokens):
            raise unsupported_parameter("max_completion_tokens", " (other than max_tokens)")
        return self


Schema = TypeVar("Schema", bound=GenerationFields)


def parse(schema: type[Schema], body: bytes, limits: RequestLimits) -> Schema:
    """A request body as ``schema``. Raises ``ApiError`` 400, naming the field at fault."""
    try:
        fields = schema.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None
    _refuse_unsupported(fields)
    _check_rows(fields)
    if fields.use_beam_search:
        _check_search(fields)
    _check_stops(fields.stop or (), limits)
    try:
        fields.sampling()
    except SamplingError as error:
        raise from_sampling(error) from None
    return fields


def _refuse_unsupported(fields: GenerationFields) -> None:
    refuse_unsupported(fields.model_extra or {}, fields.unsupported)
    if isinstance(fields, ChatRequest) and not fields.use_beam_search and fields.best_of not in (None, fields.choices):
        raise unsupported_parameter("best_of", " in chats (other than equal to n)")
    for name, neutral in (("length_penalty", 1.0), ("early_stopping", False)):
        if not fields.use_beam_search and getattr(fields, name) not in (None, neutral):
            raise unsupported_parameter(name, " without use_beam_search")
    if fields.stream_options is None:
        return
    refuse_unsupported(fields.stream_options.model_extra or {}, StreamOptions.unsupported, "stream_options.")
    if not fields.stream:
        raise ApiError(400, "stream_options is only allowed with stream", param="stream_options")


def _check_rows(fields: GenerationFields) -> None:
    if fields.rows < fields.choices:
        message = f"best_of: must be at least n, got best_of {fields.rows} and n {fields.choices}"
        raise ApiError(400, message, param="best_of")
    if fields.stream and fields.candidates > fields.choices:
        raise ApiError(400, "best_of: only best_of equal to n can be streamed", param="best_of")


def _check_search(fields: GenerationFields) -> None:
    """A search goes by the model's log probabilities as they are, and its outputs are known at its end."""
    if fields.stream:
        raise ApiError(400, "stream: the outputs of a beam search are known at its end only", param="stream")
    for name, neutral in _NOT_IN_A_SEARCH.items():
        if getattr(fields, name) not in (None, *neutral):
            message = (
                f"{name}: a beam search takes the likeliest tokens as they are; leave it out, or at {neutral[0]!r}"
            )
            raise ApiError(400, message, param=name)


def _check_stops(stops: Sequence[str], limits: RequestLimits) -> None:
    if len(stops) > limits.max_stop_strings:
        raise ApiError(400, f"stop: at most {limits.max_stop_strings} stop strings, got {len(stops)}", param="stop")
    longest_chars = max(map(len, stops), default=0)
    if longest_chars > limits.max_stop_chars:
        message = f"stop: a stop string has at most {limits.max_stop_chars} characters, got {longest_chars}"
        raise ApiError(400, message, param="stop")
