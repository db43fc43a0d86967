"""What a test says: workloads, engines, and the experiments that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

from benchmark.command.errors import BenchmarkUsageError

COLUMNS = (
    "expr_id",
    "timestamp",
    "engine_id",
    "request_id",
    "TTFT",
    "throughput",
    "latency",
    "context_len",
    "query_len",
    "gpu_memory",
)
"""Of the CSV files, as the original writes them."""

Row: TypeAlias = Mapping[str, Any]
"""The columns of a request, and beside them ``cached_tokens`` and ``prompt_tokens``, as the server counts them."""


class Usecase(StrEnum):
    """What requests have in common."""

    DUMMY = "dummy"  # one context, another question each time
    VARY = "vary"  # contexts of a, 2a, 2a, 3a, 3a ... tokens
    MULTI = "multi"  # a conversation: each answer is part of the next context


@dataclass(frozen=True, slots=True)
class WorkloadConfig:
    """``requests`` that come ``gap_s`` apart; lengths in tokens."""

    requests: int
    gap_s: float
    context_tokens: int
    query_tokens: int
    output_tokens: int
    usecase: Usecase = Usecase.DUMMY

    def __post_init__(self) -> None:
        if min(self.requests, self.context_tokens, self.query_tokens, self.output_tokens) < 1 or self.gap_s < 0:
            raise BenchmarkUsageError(f"a workload needs requests, tokens, and no negative time between: {self}")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One ``aegaeon serve`` of a model. ``port`` 0: any that is free."""

    model: Path
    arguments: tuple[str, ...]
    port: int = 0


@dataclass(frozen=True, slots=True)
class HarnessCase:
    """Every workload is an experiment: all engines are started, and get the same requests at the same time."""

    workloads: Sequence[WorkloadConfig]
    engines: Sequence[EngineConfig]
