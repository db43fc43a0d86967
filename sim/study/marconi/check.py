"""The check: a trace that is given by rules, and what Marconi's own code found on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from sim.study.marconi.caching_systems import ReplaySetting
from sim.study.marconi.exploration import DEFAULT_MULTIPLIER, CachePoint, PointResult, run_point
from sim.study.marconi.hybrid_model import HybridModel
from sim.study.marconi.session_trace import check_trace
from sim.study.marconi.static_replays import StaticReplays

SYSTEMS_CHECKED = ("vLLM+", "V1", "V2", "V3", "follow")
_POINT = 1.0
_ORACLE_POINTS = 2.0


@dataclass(frozen=True, slots=True)
class CheckVector:
    """Hit rates in per cent that were published for a cache of so many GB; ``static``: of fixed weights."""

    capacity_gb: int
    rates: Mapping[str, float]
    static: Mapping[float, float]


CHECK_VECTORS = tuple(
    CheckVector(
        capacity_gb,
        MappingProxyType(dict(zip(("vLLM+", "V1", "V2", "V3"), rates, strict=True))),
        MappingProxyType(dict(zip((0.0, 0.5, 1.0, 2.0), static, strict=True))),
    )
    for capacity_gb, rates, static in (
        (1, (4.26, 40.14, 33.53, 40.25), (40.25, 37.58, 35.00, 34.75)),
        (2, (8.46, 47.77, 45.09, 62.63), (48.66, 59.42, 61.74, 62.43)),
        (3, (17.66, 60.72, 64.35, 79.75), (64.35, 77.39, 79.60, 78.80)),
    )
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Per cent or GB. ``least``: whether the bound is one from below only; ``most``: from above only."""

    capacity_gb: int
    what: str
    found: float
    wanted: float
    within: float
    least: bool = False
    most: bool = False

    @property
    def holds(self) -> bool:
        """Whether it is as near as it must be."""
        off = self.found - self.wanted
        return (off >= -self.within or self.most) and (off <= self.within or self.least)


def run_check() -> tuple[list[PointResult], list[Comparison]]:
    """The results at all cache sizes, and each number beside its bound."""
    results = [run_point(CachePoint(None, vector.capacity_gb, SYSTEMS_CHECKED)) for vector in CHECK_VECTORS]
    pairs = zip(CHECK_VECTORS, results, strict=True)
    return results, [each for vector, result in pairs for each in _compare(vector, result)]


def _compare(vector: CheckVector, result: PointResult) -> Iterator[Comparison]:
    found = {name: 100 * system["hit_rate"] for name, system in result["systems"].items()}
    size = vector.capacity_gb
    for name, wanted in vector.rates.items():
        yield Comparison(size, name, found[name], wanted, _ORACLE_POINTS if name == "V3" else _POINT)
    for alpha, rate in static_rates(vector.capacity_gb, tuple(vector.static)).items():
        yield Comparison(size, f"V3 at alpha {alpha:g}", rate, vector.static[alpha], _ORACLE_POINTS)
    peak_gb = max(system["peak_gb"] for system in result["systems"].values())
    yield Comparison(size, "most that was kept (GB)", peak_gb, size, 0.0, most=True)
    yield Comparison(size, "follow, over V1 and V2", found["follow"], max(found["V1"], found["V2"]), _POINT, least=True)


def missed_bounds(result: PointResult) -> list[str]:
    """What must hold at every point and does not: nothing above its capacity, ours not a point below V1 or V2."""
    systems, where = result["systems"], f"{result['trace']}, {result['capacity_gb']:g} GB"
    missed = [
        f"{where}: {name} kept {system['peak_gb']:.3f} GB"
        for name, system in systems.items()
        if system["peak_gb"] > result["capacity_gb"]
    ]
    if {"V1", "V2", "follow"} <= systems.keys():
        found, best = (100 * max(systems[name]["hit_rate"] for name in names) for names in (("follow",), ("V1", "V2")))
        if found < best - _POINT:
            missed.append(f"{where}: follow finds {found:.2f} %, the better of V1 and V2 {best:.2f} %")
    return missed


def static_rates(capacity_gb: float, alphas: Sequence[float]) -> dict[float, float]:
    """Hit rates in per cent on the check's trace, with fixed weights."""
    setting = ReplaySetting(check_trace(), HybridModel(), round(capacity_gb * 1e9), DEFAULT_MULTIPLIER)
    statics = StaticReplays(setting.requests, setting.model, setting.capacity_bytes)
    tokens = sum(request.prompt_tokens for request in setting.requests)
    return {alpha: 100 * sum(statics.reused(alpha, len(setting.requests))) / tokens for alpha in alphas}
