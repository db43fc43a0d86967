"""Conversations that are made up: a system prompt that all of a model share, and a history that grows turn by turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from aegaeon.workload import Arrival, NamedBlocks, WorkloadError

BLOCK_TOKENS = 16
SESSIONS_DURATION_S = 600.0
_FIRST_ID_BITS = 24  # a session's own blocks are numbered from its index times two to the power of this


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """Sessions of ``models`` models begin at random, ``rate_per_s`` a model.

    Defaults are of agents, about a fifth as long as those of ``agentic_claudecode_public``: half of the turns come
    within ``gap_s`` of the last answer. ``system_tokens``: of a model's system prompt and tools. ``turns`` (mean; as
    many more are as likely after any), ``input_tokens`` (a turn adds, median), ``output_tokens`` (median) and gaps are
    drawn anew each time. ``token_s``: what a client takes a token to be, between a request and the next. A session ends
    before the turn that does not fit ``max_context_tokens``.
    """

    models: int
    rate_per_s: float
    duration_s: float = SESSIONS_DURATION_S
    seed: int = 0
    system_tokens: int = 3008
    turns: float = 12.0
    input_tokens: float = 600.0
    output_tokens: float = 150.0
    gap_s: float = 10.0
    token_s: float = 0.05
    max_context_tokens: int = 32768

    def __post_init__(self) -> None:
        least = {"models": 1, "turns": 1, "seed": 0, "token_s": 0}
        for name in ("rate_per_s", "duration_s", "input_tokens", "output_tokens", "gap_s"):
            if getattr(self, name) <= 0:
                raise WorkloadError(f"sessions: {name} must be more than 0, not {getattr(self, name):g}")
        for name, value in least.items():
            if getattr(self, name) < value:
                raise WorkloadError(f"sessions: {name} must be at least {value}, not {getattr(self, name):g}")
        if self.system_tokens % BLOCK_TOKENS:
            raise WorkloadError(f"a system prompt of whole blocks of {BLOCK_TOKENS} tokens, not {self.system_tokens}")


def make_sessions(spec: SessionSpec) -> list[Arrival]:
    """All turns that come within the duration, by time. Each model has random streams of its own."""
    arrivals = [arrival for model in range(spec.models) for arrival in _of_model(spec, model)]
    return sorted(arrivals, key=lambda arrival: (arrival.time_s, arrival.model))


def _of_model(spec: SessionSpec, model: int) -> Iterator[Arrival]:
    stream = np.random.default_rng((spec.seed, model))
    start_s, session = float(stream.exponential(1.0 / spec.rate_per_s)), 1
    while start_s < spec.duration_s:
        yield from _session(spec, f"synth_model_{model:02d}", session, start_s, stream)
        start_s += float(stream.exponential(1.0 / spec.rate_per_s))
        session += 1


def _session(
    spec: SessionSpec, model: str, session: int, time_s: float, stream: np.random.Generator
) -> Iterator[Arrival]:
    history = spec.system_tokens
    for _ in range(int(stream.geometric(1.0 / spec.turns))):
        prompt = history + _around(spec.input_tokens, stream)
        output = _around(spec.output_tokens, stream)
        if time_s >= spec.duration_s or prompt + output > spec.max_context_tokens:
            return
        yield Arrival(round(time_s, 6), model, prompt, output, content=_content(spec, model, session, prompt + output))
        history = prompt + output
        time_s += output * spec.token_s + float(stream.lognormal(np.log(spec.gap_s), 1.0))


def _around(median_tokens: float, stream: np.random.Generator) -> int:
    """Lengths of turns have a long tail."""
    return max(1, round(float(stream.lognormal(np.log(median_tokens), 1.0))))


def _content(spec: SessionSpec, model: str, session: int, tokens: int) -> NamedBlocks:
    """Of prompt and output: the next turn begins with both."""
    shared = spec.system_tokens // BLOCK_TOKENS
    own = tokens // BLOCK_TOKENS - shared
    runs = [(0, shared), (session << _FIRST_ID_BITS, own)]
    return NamedBlocks(BLOCK_TOKENS, tuple(run for run in runs if run[1]), model)
