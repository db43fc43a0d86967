"""Requests to send: a workload's arrivals, mapped onto the models that a server offers."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aegaeon.core.request import Request
from aegaeon.core.slo import Slo
from aegaeon.workload import Arrival

# Ids that every vocabulary has and that are no special tokens of the usual tokenizers.
PROMPT_ID_RANGE = (32, 224)


@dataclass(frozen=True, slots=True)
class TargetModel:
    """A model that the server offers; its context limit where the server tells it."""

    name: str
    max_context_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class LengthLimits:
    """Caps on prompt and output, so that small models can be driven by workloads made for large ones."""

    max_input_tokens: int | None = None
    max_output_tokens: int | None = None

    def apply(self, arrival: Arrival, context_tokens: int | None) -> tuple[int, int]:
        """Prompt and output tokens of an arrival, within the caps and the model's context."""
        inputs = min(arrival.input_tokens, self.max_input_tokens or arrival.input_tokens)
        outputs = min(arrival.output_tokens, self.max_output_tokens or arrival.output_tokens)
        if context_tokens is None:
            return inputs, outputs
        outputs = min(outputs, context_tokens - 1)
        return min(inputs, context_tokens - outputs), outputs


@dataclass(frozen=True, slots=True)
class ReplayJob:
    """One request to send, ``time_s`` after the replay's start."""

    request_id: str
    model: str
    time_s: float
    prompt_tokens: int
    new_tokens: int

    @property
    def prompt(self) -> list[int]:
        """Token ids, different for each request (so that no prefix is shared), the same in every run."""
        generator = np.random.default_rng(zlib.crc32(self.request_id.encode()))
        ids: list[int] = generator.integers(*PROMPT_ID_RANGE, self.prompt_tokens).tolist()
        return ids

    def simulated(self, slo: Slo, way_s: float = 0.0) -> tuple[Request, int]:
        """The request as a simulated pool gets it, ``way_s`` after it was sent, and the tokens that it will produce."""
        request = Request(self.request_id, self.model, self.time_s + way_s, self.prompt_tokens, self.new_tokens, slo)
        return request, self.new_tokens

    def body(self, slo: Slo, *, foreign: bool) -> dict[str, Any]:
        """The completion request. ``foreign``: to a server that is not ours, which is asked for the ids of tokens, as
        vLLM can tell them; it ignores ``slo``."""
        body = {
            "model": self.model,
            "prompt": self.prompt,
            "max_tokens": self.new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "slo": {"ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s},
        }
        return body | {"return_token_ids": True} if foreign else body


def plan_jobs(arrivals: Sequence[Arrival], served: Sequence[TargetModel], limits: LengthLimits) -> list[ReplayJob]:
    """Map a workload's models onto the served ones in order (over again, where the workload has more)."""
    names = sorted({arrival.model for arrival in arrivals}, key=lambda name: (len(name), name))
    target = {name: served[index % len(served)] for index, name in enumerate(names)}
    jobs = []
    for index, arrival in enumerate(arrivals):
        model = target[arrival.model]
        inputs, outputs = limits.apply(arrival, model.max_context_tokens)
        jobs.append(ReplayJob(f"{arrival.model}-{index:05d}", model.name, arrival.time_s, inputs, outputs))
    return jobs
