"""What Marconi's figures sweep over, and what was published for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

from sim.study.marconi.exploration import CachePoint
from sim.study.marconi.hybrid_model import HybridModel
from sim.study.marconi.session_trace import RESPONSE_S, TraceSpec

RATES = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
RESPONSES_S = (5.0, 7.5, 10.0)
CAPACITIES_GB: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"lmsys": (1, 2, 3, 4, 5), "sharegpt": (1, 2, 3, 4, 5, 10), "swebench": (40, 60, 80, 100)}
)
FIGURE_SYSTEMS = ("vLLM+", "V1", "V2", "follow")


@dataclass(frozen=True, slots=True)
class Series:
    """The points of a figure with lines. ``published``: per cent, by system; ``chosen``: what of its setting was not
    published."""

    figure: str
    x: str
    labels: tuple[str, ...]
    points: tuple[CachePoint, ...]
    published: Mapping[str, Sequence[float]]
    chosen: str = ""


def sweep(
    dataset: str,
    capacities_gb: Sequence[float] = (),
    rates: Sequence[float] = (),
    responses_s: Sequence[float] = (),
) -> Iterator[tuple[TraceSpec, float]]:
    """Traces and cache sizes of a data set's sweep; all of the artifact's where none are named."""
    responses_s = (responses_s or RESPONSES_S) if dataset == "swebench" else (RESPONSE_S,)
    for response_s, rate in product(responses_s, rates or RATES):
        for capacity_gb in capacities_gb or CAPACITIES_GB[dataset]:
            yield TraceSpec(dataset, rate, response_s), capacity_gb


def sweeps(full: bool) -> dict[str, list[CachePoint]]:
    """Of Figures 7 to 9, by data set. Not ``full``: a sixth of the points of agents, which take longest."""
    some: Mapping[str, Sequence[float]] = {} if full else {"rates": (0.5, 2.0, 10.0), "responses_s": (7.5,)}
    return {
        dataset: [
            CachePoint(trace, capacity_gb, FIGURE_SYSTEMS)
            for trace, capacity_gb in sweep(dataset, **(some if dataset == "swebench" else {}))
        ]
        for dataset in CAPACITIES_GB
    }


LENGTHS = CachePoint(TraceSpec("swebench", 10.0, 7.5), 80, FIGURE_SYSTEMS, lengths=True)
"""Figure 10."""


def _agents(
    capacity_gb: float, rate: float, response_s: float, model: HybridModel | None = None, *more: str
) -> CachePoint:
    return CachePoint(
        TraceSpec("swebench", rate, response_s), capacity_gb, (*FIGURE_SYSTEMS, *more), model or HybridModel()
    )


_CONTENTION_GB = (60, 80, 100, 120, 140)
_LAYERS = ((32, 4), (30, 5), (28, 7), (24, 12), (0, 36))
_DIMENSIONS = (128, 64, 32, 16)
_ARRIVALS = (0.5, 1.0, 2.0)

SERIES = (
    Series(
        "11",
        "cache (GB)",
        tuple(f"{size}" for size in _CONTENTION_GB),
        tuple(_agents(size, 5.0, 10.0, None, "V3") for size in _CONTENTION_GB),
        {"V2": (9.59, 22.74, 43.03, 47.92, 48.21), "V1": (7.72, 15.01, 25.57, 36.90, 43.89)},
    ),
    Series(
        "12a",
        "layers (SSM, attention)",
        tuple(f"{ssm}, {attention}" for ssm, attention in _LAYERS),
        tuple(_agents(80, 5.0, 10.0, HybridModel(ssm, attention)) for ssm, attention in _LAYERS),
        {
            "V2": (18.06, 12.30, 8.35, 5.69, 5.05),
            "V1": (11.31, 8.51, 6.62, 5.38, 5.04),
            "vLLM+": (5.01, 5.01, 5.01, 5.02, 5.04),
        },
        "80 GB, 5 sessions/s, 10 s",
    ),
    Series(
        "12b",
        "state dimension",
        tuple(f"{dimension}" for dimension in _DIMENSIONS),
        tuple(_agents(80, 5.0, 10.0, HybridModel(state_dimension=dimension)) for dimension in _DIMENSIONS),
        {
            "V2": (31.55, 29.88, 30.19, 29.36),
            "V1": (16.39, 17.39, 18.00, 18.37),
            "vLLM+": (0.89, 1.50, 3.14, 5.17),
        },
        "80 GB, 5 sessions/s, 10 s",
    ),
    Series(
        "13a",
        "sessions/s",
        tuple(f"{rate:g}" for rate in _ARRIVALS),
        tuple(_agents(100, rate, 7.5) for rate in _ARRIVALS),
        {"V2": (48.70, 44.92, 43.02), "V1": (35.18, 29.27, 26.36)},
    ),
    Series(
        "13b",
        "seconds between turns",
        tuple(f"{response_s:g}" for response_s in RESPONSES_S),
        tuple(_agents(80, 5.0, response_s) for response_s in RESPONSES_S),
        {"V2": (25.90, 24.25, 24.08), "V1": (18.83, 16.60, 15.49)},
        "80 GB, 5 sessions/s",
    ),
)
