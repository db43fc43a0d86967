"""Points of sweeps over traces, cache sizes and models, and what every system found there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

from sim.study.marconi.caching_systems import ReplayedRun, ReplaySetting, replay_systems
from sim.study.marconi.hybrid_model import HybridModel
from sim.study.marconi.session_trace import SessionRequest, TraceSpec, check_trace, make_trace
from sim.study.processes import run_in_processes
from sim.systems.errors import InputError

MULTIPLIERS: Mapping[str, int] = MappingProxyType({"lmsys": 15})
DEFAULT_MULTIPLIER = 5
BIN_TOKENS = 1000
_TTFT_MS, _TTFT_MS_PER_TOKEN = 14.5, 0.0531  # Jamba-1.5-Mini on 4 A100, a line through Marconi's measurements


@dataclass(frozen=True, slots=True)
class CachePoint:
    """A trace (None: the check's) on a cache. ``lengths``: whether rates are wanted by length of the input, too."""

    trace: TraceSpec | None
    capacity_gb: float
    systems: tuple[str, ...]
    model: HybridModel = field(default_factory=HybridModel)
    multiplier: int | None = None
    lengths: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.capacity_gb < float("inf"):
            raise InputError(f"a cache of {self.capacity_gb:g} GB is none")
        if self.multiplier is not None and self.multiplier < 1:
            raise InputError(f"a bootstrap multiplier must be at least 1, not {self.multiplier}")

    @property
    def window_multiplier(self) -> int:
        """What was asked for, or what the artifact takes for the data set."""
        if self.multiplier is not None:
            return self.multiplier
        return MULTIPLIERS.get(self.trace.dataset, DEFAULT_MULTIPLIER) if self.trace else DEFAULT_MULTIPLIER


PointResult = dict[str, Any]


def run_points(
    points: Sequence[CachePoint], workers: int, done: Callable[[CachePoint, PointResult], None]
) -> list[PointResult]:
    """Results in the order of the points; ``done`` is told of each as it comes."""
    results: dict[CachePoint, PointResult] = {}
    for point, result in run_in_processes(run_point, points, workers):
        done(point, result)
        results[point] = result
    return [results[point] for point in points]


def run_point(point: CachePoint) -> PointResult:
    """What each system found, as it stands in a file of results."""
    requests = _requests(point.trace)
    setting = ReplaySetting(requests, point.model, round(point.capacity_gb * 1e9), point.window_multiplier)
    runs = replay_systems(setting, point.systems)
    return {
        "trace": point.trace.name if point.trace else "check",
        "dataset": point.trace.dataset if point.trace else "check",
        "sessions_per_s": point.trace.sessions_per_s if point.trace else None,
        "response_s": point.trace.response_s if point.trace else None,
        "capacity_gb": point.capacity_gb,
        "model": asdict(point.model),
        "multiplier": point.window_multiplier,
        "requests": len(requests),
        "prompt_tokens": sum(request.prompt_tokens for request in requests),
        "ttft_p95_ms": _ttft_p95_ms(requests, [0] * len(requests)),
        "systems": {name: _plain(requests, run, point.lengths) for name, run in runs.items()},
    }


@lru_cache(maxsize=4)
def _requests(spec: TraceSpec | None) -> Sequence[SessionRequest]:
    return make_trace(spec) if spec is not None else check_trace()


def _plain(requests: Sequence[SessionRequest], run: ReplayedRun, lengths: bool) -> dict[str, Any]:
    found = {
        "hit_rate": sum(run.reused) / sum(request.prompt_tokens for request in requests),
        "request_hit_rate": sum(tokens > 0 for tokens in run.reused) / len(requests),
        "flops_saved": run.flops,
        "peak_gb": run.peak_bytes / 1e9,
        "ttft_p95_ms": _ttft_p95_ms(requests, run.reused),
    }
    tuned = {name: getattr(run, name) for name in ("alpha", "window", "switches")}
    by_length = {"by_length": _by_length(requests, run.reused)} if lengths else {}
    return found | {name: value for name, value in tuned.items() if value is not None} | by_length


def _ttft_p95_ms(requests: Sequence[SessionRequest], reused: Sequence[int]) -> float:
    left = [request.prompt_tokens - found for request, found in zip(requests, reused, strict=True)]
    return _TTFT_MS + _TTFT_MS_PER_TOKEN * float(np.quantile(left, 0.95))


def _by_length(requests: Sequence[SessionRequest], reused: Sequence[int]) -> list[tuple[int, float]]:
    """(input tokens, rounded down to thousands; hit rate of these requests)"""
    sums: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for request, found in zip(requests, reused, strict=True):
        both = sums[request.prompt_tokens // BIN_TOKENS * BIN_TOKENS]
        both[0] += found
        both[1] += request.prompt_tokens
    return [(length, found / tokens) for length, (found, tokens) in sorted(sums.items())]
