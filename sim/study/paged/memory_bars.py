"""Figures 2, 13 and 15: what the pool's memory holds, how many requests are batched, what sharing saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from sim.study.paged.experiment import PAGED, SYSTEMS, Experiment
from sim.study.paged.sampling import ONE, Sampling
from sim.study.paged.step_log import Column

DURATION_S = 900.0
_WARM_S, _HOT_S = 300.0, 600.0
_PARTS = ("token states", "reservation", "internal", "external")

USE_PUBLISHED: Mapping[str, tuple[float, ...]] = MappingProxyType(  # %, in the order of the parts
    dict(
        zip(
            SYSTEMS,
            ((96.3,), (38.2, 25.2, 0.0, 36.6), (26.8, 17.9, 13.6, 41.6), (20.4, 13.3, 57.3, 8.9)),
            strict=True,
        )
    )
)
BATCHED_LOADS: Mapping[str, float] = MappingProxyType({"sharegpt": 2.0, "alpaca": 30.0})
BATCHED_PUBLISHED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "sharegpt": dict(zip(SYSTEMS, (30.42, 13.62, 9.81, 7.00), strict=True)),
        "alpaca": dict(zip(SYSTEMS, (132.44, 72.75, 43.24, 7.00), strict=True)),
    }
)
SHARED_LOADS: Mapping[str, float] = MappingProxyType({"alpaca": 20.0, "sharegpt": 2.0})
SHARED_SAMPLINGS = ("n2", "n4", "n6", "n2-beam", "n4-beam", "n6-beam")
SAVING_PUBLISHED: Mapping[str, tuple[float, ...]] = MappingProxyType(  # %, by sampling; of ShareGPT only the range
    {"alpaca": (6.09, 8.53, 9.79, 37.56, 53.13, 55.16)}
)


@dataclass(frozen=True, slots=True)
class MemoryRun:
    """A run of 900 s, which is cut off then; what it was like from ``first_s`` on is of interest."""

    system: str
    dataset: str
    rate: float
    sampling: Sampling = ONE
    first_s: float = _WARM_S

    @property
    def experiment(self) -> Experiment:
        return Experiment(
            self.system, "opt-13b", self.dataset, self.rate, DURATION_S, self.sampling, timeout_s=DURATION_S
        )

    def columns(self) -> dict[str, Column]:
        return self.experiment.run().log.columns(self.first_s, DURATION_S)


def use(system: str) -> dict[str, float]:
    """Figure 2: shares of the pool, in percent. What nobody has is external fragmentation, where all is wanted."""
    run = MemoryRun(system, "sharegpt", 4.0)
    columns = run.columns()
    places = run.experiment.blocks * run.experiment.block_tokens
    tokens, useless = (float(columns[name].mean()) / places for name in ("tokens", "useless_tokens"))
    if system == PAGED:  # nothing is reserved but the rest of a block
        reserved = float(columns["used_blocks"].mean()) * run.experiment.block_tokens / places - tokens
    else:
        reserved = float(columns["reserved_tokens"].mean()) / places
    shares = (tokens, reserved, useless, 1 - tokens - reserved - useless)
    return {name: 100 * share for name, share in zip(_PARTS, shares, strict=True)}


def batched(dataset: str, system: str) -> dict[str, float]:
    """Figure 13: requests in a batch, and GB of KV in use."""
    run = MemoryRun(system, dataset, BATCHED_LOADS[dataset], first_s=_HOT_S)
    columns, studied = run.columns(), run.experiment.studied
    used_bytes = float(columns["used_blocks"].mean()) * studied.shape(run.experiment.block_tokens).block_bytes
    return {"requests": float(columns["running"].mean()), "kv_gb": used_bytes / 2**30}


def saving(dataset: str, sampling: str) -> float:
    """Figure 15: percent of the blocks that sharing saves."""
    columns = MemoryRun(PAGED, dataset, SHARED_LOADS[dataset], Sampling.parse(sampling)).columns()
    return 100 * (1 - 1 / float(np.mean(columns["logical_blocks"] / columns["used_blocks"])))
