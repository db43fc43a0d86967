"""A ``Frontend`` that answers from a script, for tests of the server alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aegaeon.core.generation import (
    Delta,
    FinishReason,
    Generation,
    GenerationRequest,
    Health,
    ModelCard,
    UnknownModelError,
)
from aegaeon.core.timeline import Phase, PhaseSpan

ARRIVAL_S = 100.0
FIRST_TOKEN_S = 100.5
GAP_S = 0.25
NOW_S = 200.0
PROMPT_TOKENS = 7
CACHED_TOKENS = 3


@dataclass(frozen=True)
class Script:
    """What happens to every request: one token per text, once ``held`` is set; then a failure, a hang, or the end.

    ``logprobs``: of the requests that come, in order, each of which has a text of its own then. ``outputs``: so many of
    the last texts each end one.
    """

    texts: tuple[str, ...] = ("Hel", "lo", "!")
    logprobs: tuple[float, ...] = ()
    outputs: int = 1
    finish_reason: FinishReason | None = FinishReason.STOP
    refusal: Exception | None = None
    failure: Exception | None = None
    hangs: bool = False
    held: asyncio.Event | None = None


class ScriptedGeneration:
    """Plays a script; ``cancelled`` is set when it is cancelled before its end."""

    def __init__(self, script: Script, number: int = 0) -> None:
        self._script = script
        self._texts = (f"answer {number}",) if script.logprobs else script.texts
        self._logprob = script.logprobs[number] if script.logprobs else 0.0
        self.prompt_tokens = PROMPT_TOKENS
        self.cached_tokens = CACHED_TOKENS
        self.completion_tokens = 0
        self.arrival_s = ARRIVAL_S
        self.timeline: Sequence[PhaseSpan] = ()
        self.cancelled = asyncio.Event()
        self.ended = False

    async def __aiter__(self) -> AsyncIterator[Delta]:
        texts = self._texts
        if self._script.held is not None:
            await self._script.held.wait()
        for index, text in enumerate(texts):
            self.completion_tokens += 1
            last = index >= len(texts) - self._script.outputs and not (self._script.failure or self._script.hangs)
            reason = self._script.finish_reason if last else None
            yield Delta(text, (index,), (FIRST_TOKEN_S + index * GAP_S,), reason, self._logprob)
            await asyncio.sleep(0)
        if self._script.hangs:
            await asyncio.Event().wait()
        if self._script.failure is not None:
            raise self._script.failure
        self.timeline = (PhaseSpan(Phase.PREFILL, ARRIVAL_S, FIRST_TOKEN_S, "n0.i1"),)
        self.ended = True

    async def cancel(self) -> None:
        if not self.ended:
            self.cancelled.set()


def usage_of(prompt_tokens: int, completion_tokens: int, cached_tokens: int = CACHED_TOKENS) -> dict[str, Any]:
    """The ``usage`` object of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


@dataclass
class ScriptedFrontend:
    """Serves one script at a time; remembers what it was asked."""

    script: Script = field(default_factory=Script)
    state: Health = field(default_factory=lambda: Health(ready=True, live=True))
    refuse_after: int | None = None
    requests: list[GenerationRequest] = field(default_factory=list)
    generations: list[ScriptedGeneration] = field(default_factory=list)
    submitted: asyncio.Event = field(default_factory=asyncio.Event)
    refused: asyncio.Event = field(default_factory=asyncio.Event)

    def models(self) -> Sequence[ModelCard]:
        card = ModelCard("tiny", "LlamaForCausalLM", 4096, 1_000_000, 1_700_000_000, has_chat_template=True)
        return [card, replace(card, name="org/other", has_chat_template=False, failure="no weights")]

    def health(self) -> Health:
        return self.state

    async def generate(self, request: GenerationRequest, first: Generation | None = None) -> ScriptedGeneration:
        if request.model not in {card.name for card in self.models()}:
            raise UnknownModelError(f"no model {request.model!r}")
        if self.script.refusal is not None and len(self.generations) >= (self.refuse_after or 0):
            self.refused.set()
            raise self.script.refusal
        self.requests.append(request)
        self.generations.append(ScriptedGeneration(self.script, len(self.generations)))
        self.submitted.set()
        return self.generations[-1]
