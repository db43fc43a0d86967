"""Figures 18b and 19: latency over the size of a block, and swapping against computing again."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sim.study.paged.experiment import PAGED, Experiment
from sim.study.paged.models import MODELS
from sim.study.paged.step_cost import StepWork

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LOADS: Mapping[str, float] = MappingProxyType({"alpaca": 30.1, "sharegpt": 2.01})
_DURATION_S = 600.0
_MOVED_TOKENS = 256
_MODEL = "opt-13b"


def latency_s(dataset: str, block_tokens: int, always_swap: bool = False) -> float:
    """Normalised latency with blocks of a size."""
    return (
        Experiment(
            PAGED, _MODEL, dataset, LOADS[dataset], _DURATION_S, block_tokens=block_tokens, always_swap=always_swap
        )
        .run()
        .normalized_latency_s()
    )


def moved_ms(block_tokens: int) -> dict[str, float]:
    """Figure 19a: what it takes to have 256 tokens again. A swap goes by the cost model, as everything here."""
    studied = MODELS[_MODEL]
    work = StepWork(_MOVED_TOKENS, _MOVED_TOKENS**2, 1, 0, 0, 0)
    swap_ms = 1e3 * -(-_MOVED_TOKENS // block_tokens) * studied.swapped_block_s(block_tokens)
    recompute_ms = 1e3 * studied.cost(block_tokens).step_s(work)
    return {"recompute": recompute_ms, "swap in": swap_ms, "swap out": swap_ms, "swap in and out": 2 * swap_ms}
