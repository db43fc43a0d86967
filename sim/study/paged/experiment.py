"""One run of one system at one rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.study.paged.engine import FcfsEngine
from sim.study.paged.lengths import DATASETS, LengthPairs, read_lengths, shorter
from sim.study.paged.models import BLOCK_TOKENS, MEMORY_UTIL, MODELS, StudiedModel
from sim.study.paged.sampling import ONE, Sampling
from sim.study.paged.step_log import StepLog
from sim.systems.errors import InputError
from sim.systems.kv.group import SequenceGroup
from sim.systems.kv.manager import KvManager
from sim.systems.kv.orca import MOST_TOKENS, OrcaKv
from sim.systems.kv.paged import PagedKv

PAGED = "astra"  # vLLM's name in its artifact
ORCA = "orca-"
SYSTEMS = (PAGED, f"{ORCA}oracle", f"{ORCA}power2", f"{ORCA}constant")
QUANTUM_S = 0.01  # of arrivals


@dataclass(frozen=True, slots=True)
class Experiment:
    """``prefix_tokens``: with which every prompt begins. Paged KV keeps them once, and computes what is left."""

    system: str
    model: str
    dataset: str
    rate: float
    duration_s: float
    sampling: Sampling = ONE
    seed: int = 0
    block_tokens: int = BLOCK_TOKENS
    always_swap: bool = False
    memory_util: float = MEMORY_UTIL
    prefix_tokens: int = 0
    timeout_s: float = float("inf")
    lengths: Path | None = None

    def __post_init__(self) -> None:
        if not (0 < self.rate < float("inf") and 0 < self.duration_s < float("inf") and self.timeout_s > 0):
            raise InputError(f"rates, durations and timeouts are positive: {self.rate:g}/s for {self.duration_s:g} s")
        if not 1 <= self.block_tokens <= 256:
            raise InputError(f"--block-size {self.block_tokens} is not between 1 and 256")
        if not 0 < self.memory_util <= 1:
            raise InputError(f"--memory-util {self.memory_util:g} is not a share of the memory")

    @property
    def studied(self) -> StudiedModel:
        return MODELS[self.model]

    @property
    def blocks(self) -> int:
        """Blocks of the pool, the shared prefix among them."""
        return self.studied.blocks(self.block_tokens, self.memory_util)

    @property
    def shared_tokens(self) -> int:
        """Tokens of the prefix that every table begins with: whole blocks."""
        return self.prefix_tokens // self.block_tokens * self.block_tokens if self.system == PAGED else 0

    def groups(self) -> list[SequenceGroup]:
        """The requests, in order of arrival. Raises ``InputError`` where none arrives."""
        chance = np.random.default_rng(self.seed)
        counts = chance.poisson(self.rate * QUANTUM_S, round(self.duration_s / QUANTUM_S))
        arrivals = np.repeat(np.arange(len(counts)) * QUANTUM_S, counts)
        if not len(arrivals):
            raise InputError(f"nobody arrives at {self.rate:g}/s in {self.duration_s:g} s: take more of either")
        pairs = np.resize(self._pairs(), (len(arrivals), 2))
        chance.shuffle(pairs)
        return [
            SequenceGroup(
                float(arrival),
                int(prompt) + self.prefix_tokens - self.shared_tokens,
                int(output),
                self.sampling.sequences,
                self.sampling.forks(f"{self.seed}:{index}") if self.system == PAGED else None,
            )
            for index, (arrival, (prompt, output)) in enumerate(zip(arrivals, pairs, strict=True))
        ]

    def _pairs(self) -> LengthPairs:
        pairs = read_lengths(self.lengths) if self.lengths is not None else DATASETS[self.dataset].draw()
        return shorter(pairs, MOST_TOKENS - self.prefix_tokens)

    def manager(self) -> KvManager:
        if self.system != PAGED:
            return OrcaKv(self.block_tokens, self.blocks, self.system.removeprefix(ORCA))
        free = self.blocks - self.shared_tokens // self.block_tokens
        shape = self.studied.shape(self.block_tokens)
        return PagedKv(shape, free, self.studied.host_blocks(self.block_tokens))

    def run(self) -> Served:
        """Simulate it. Raises ``InputError`` where a request does not fit the pool."""
        groups = self.groups()
        cost = self.studied.cost(self.block_tokens).beside(self.shared_tokens)
        engine = FcfsEngine(self.manager(), cost, groups, self.always_swap)
        return Served(self, groups, engine.run(self.timeout_s))


@dataclass(frozen=True, slots=True)
class Served:
    """What came of an experiment."""

    experiment: Experiment
    groups: Sequence[SequenceGroup]
    log: StepLog

    @property
    def finished(self) -> list[SequenceGroup]:
        return [group for group in self.groups if group.finish_s is not None]

    def normalized_latency_s(self, warmup_s: float = 0.0) -> float:
        """Mean over the requests that have ended; not a number where there are none."""
        latencies = [group.normalized_latency_s for group in self.finished if group.arrival_s >= warmup_s]
        return float(np.mean(latencies)) if latencies else float("nan")
