"""What the policy benchmark compares: contenders, ablations of ``slack``, and workloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import cycle
from pathlib import Path

import numpy as np

from aegaeon.core.cost import CostModel, ProfiledCosts
from aegaeon.core.instance import Role
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.slo import Slo
from aegaeon.latency.files.profile_book import ProfileBook
from aegaeon.latency.files.shipped import shipped_profiles
from aegaeon.scheduler.layout import Layout, ModelLoad, NoPlacementError, PlacedInstance, PoolSpec
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.paper.layout import disaggregated_layout
from aegaeon.scheduler.policies.slack.scheduler import SlackScheduler
from aegaeon.scheduler.policies.slack.tuning import Tuning
from aegaeon.scheduler.policy import Policy
from aegaeon.scheduler.scheduler import Scheduler
from aegaeon.workload import (
    Arrival,
    LengthSource,
    ObservedLengths,
    QuantileTable,
    SyntheticSpec,
    read_trace,
    synthesize,
)
from benchmark.policies.refusals import RefusalWatch, median_waits_s
from benchmark.policies.servegen import ServeGen
from sim.records.tally import Tally
from sim.study.bound import least_demand
from sim.study.hardware import HOST_MEMORY_BYTES, Hardware, HardwareOptions, make_hardware
from sim.study.run import simulate
from sim.study.scenario import SIMULATOR_MIX, Scenario, make_scenario
from sim.systems.systems import find_system

ROOT = Path(__file__).resolve().parents[2]
TRACES = ROOT.parent / "shared" / "data" / "traces"
DEVICE = "h100"
NODES = 2
DEVICES = 16
SPLITS = (4, 6, 8)  # prefill instances of 16


@dataclass(frozen=True, slots=True)
class CaseLoad:
    """``models`` of one market: ``kind`` names it, ``rate_per_s`` is the mean of a model.

    ``host_bytes``: of each node, for weights.
    """

    kind: str
    models: int
    rate_per_s: float
    duration_s: float
    seed: int
    slo_scale: float = 1.0
    devices: int = DEVICES
    host_bytes: int = HOST_MEMORY_BYTES


@dataclass(frozen=True, slots=True)
class Contender:
    """A system under some constants."""

    name: str
    system: Policy
    paper_constants: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """What came of one run; attainments are 0 where there was no placement."""

    attainment: float
    worst_model: float
    switches: int = 0
    devices: int = 0
    disk_reads: int = 0


def contenders() -> dict[str, Contender]:
    """The systems by name; ``aegaeon/<n>`` are splits, of which the best one counts."""
    aegaeon = find_system("aegaeon")
    found = [Contender("slack", find_system("slack"))]
    found += [Contender(f"aegaeon/{n}", replace(aegaeon, layout=partial(_split_layout, n))) for n in SPLITS]
    found += [Contender("aegaeon (paper's constants)", aegaeon, paper_constants=True)]
    found += [Contender(name, find_system(name)) for name in ("sllm", "sllm+", "muxserve")]
    return {contender.name: contender for contender in found}


def ablations() -> dict[str, Contender]:
    """``slack`` without one idea, without all of them, and with each one alone."""
    off: Mapping[str, dict[str, float]] = {
        "many residents": {"max_residents": 2},
        "worth of a turn": {"horizon_s": 0.0, "recover_s": 0.0},
        "late yield": {"patience_s": 0.0},
        "fairness": {"fairness": 0.0},
        "short turns": {"turn_s": 1.0},
    }
    cases = {"all": Tuning()}
    cases |= {f"without {idea}": replace(Tuning(), **change) for idea, change in off.items()}  # type: ignore[arg-type]
    none = {name: value for change in off.values() for name, value in change.items()}
    cases["none of them"] = replace(Tuning(), **none)  # type: ignore[arg-type]
    for idea, change in off.items():
        rest = {name: value for name, value in none.items() if name not in change}
        cases[f"only {idea}"] = replace(Tuning(), **rest)  # type: ignore[arg-type]
    found = {name: Contender(name, tuned(tuning)) for name, tuning in cases.items()}
    found["without chunked prefill"] = Contender(
        "without chunked prefill", replace(find_system("slack"), prefill_chunk_tokens=None)
    )
    return found


def tuned(tuning: Tuning) -> Policy:
    """``slack`` with other numbers."""
    return replace(find_system("slack"), scheduler=partial(_slack, tuning))


def _slack(
    tuning: Tuning,
    models: Sequence[ModelSpec],
    costs: CostModel,
    limits: PoolLimits,
    instances: Sequence[PlacedInstance],
) -> Scheduler:
    return SlackScheduler(models, costs, limits, tuning)


def misled(contender: Contender, error: float) -> Contender:
    """The contender with profiles that are wrong by a factor."""
    system = replace(contender.system, scheduler=partial(_misled, error, contender.system))
    return replace(contender, name=f"{contender.name} x{error:g}", system=system)


def _misled(
    error: float,
    system: Policy,
    models: Sequence[ModelSpec],
    costs: CostModel,
    limits: PoolLimits,
    instances: Sequence[PlacedInstance],
) -> Scheduler:
    assert isinstance(costs, ProfiledCosts)
    wrong = {name: _scaled(profile, error) for name, profile in costs.profiles.items()}
    return system.scheduler(models, replace(costs, profiles=wrong), limits, instances)


def _scaled(profile: LatencyProfile, factor: float) -> LatencyProfile:
    return LatencyProfile(*(factor * getattr(profile, name) for name in LatencyProfile.__slots__))


def _split_layout(
    prefills: int, pool: PoolSpec, models: Sequence[ModelSpec], load: Mapping[str, ModelLoad], costs: CostModel
) -> Layout:
    """The paper's layout with another number of prefill instances in 16."""
    layout = disaggregated_layout(pool, models, load, costs)
    placed: list[PlacedInstance] = []
    for node in layout.nodes:
        here = layout.on_node(node)
        first = round(len(here) * prefills / DEVICES)
        roles = [Role.PREFILL if index < first else Role.DECODE for index in range(len(here))]
        placed += [replace(item, spec=replace(item.spec, role=role)) for item, role in zip(here, roles, strict=True)]
    return replace(layout, instances=tuple(placed))


# --- workloads


def has_traces() -> bool:
    """Whether the published traces are at hand."""
    return (TRACES / "azure2023_conv.csv.gz").is_file()


@lru_cache(maxsize=2)
def scenario_of(load: CaseLoad) -> Scenario:
    """The requests of a load; the same load always gives the same."""
    slo = Slo().scaled(load.slo_scale)
    return make_scenario(_arrivals(load), load.kind, _book(), DEVICE, slo=slo)


def _arrivals(load: CaseLoad) -> list[Arrival]:
    """Poisson per model. The even market is the artifact's: at most ``duration * rate`` requests a model."""
    if load.kind == "servegen":
        return _within_windows(_servegen().arrivals(load.models, load.duration_s, load.seed))
    lengths = _lengths(load.kind)
    if load.kind == "even":
        return synthesize(SyntheticSpec(load.models, load.rate_per_s, load.duration_s, seed=load.seed), lengths)
    rates = _rates(load)
    arrivals = []
    for index, rate_per_s in enumerate(rates):
        stream = np.random.default_rng((load.seed, index))
        count = stream.poisson(rate_per_s * load.duration_s)
        times_s = np.sort(stream.random(count) * load.duration_s)
        for time_s, (inputs, outputs) in zip(times_s, lengths.draw(stream.random((count, 2))), strict=True):
            name = f"synth_model_{index:03d}"
            arrivals.append(Arrival(round(float(time_s), 3), name, max(1, int(inputs)), max(16, int(outputs))))
    return sorted(arrivals, key=lambda arrival: (arrival.time_s, arrival.model))


def _within_windows(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Arrivals cut to the context windows of the models that ``make_scenario`` will take: no client can send more."""
    book, names = _book(), dict.fromkeys(arrival.model for arrival in arrivals)
    sizes = [book.find(kind, DEVICE).max_context_tokens for kind in SIMULATOR_MIX]
    windows = dict(zip(names, cycle(sizes), strict=False))
    return [_cut(arrival, windows[arrival.model]) for arrival in arrivals]


def _cut(arrival: Arrival, window_tokens: int) -> Arrival:
    output_tokens = min(arrival.output_tokens, window_tokens - 1)
    return replace(
        arrival,
        input_tokens=min(arrival.input_tokens, window_tokens - output_tokens),
        output_tokens=output_tokens,
    )


def _rates(load: CaseLoad) -> list[float]:
    """Per model. Markets other than ``azure`` are skewed; the mean is the load's."""
    if load.kind == "two-tier":  # the paper's fleet: 5.9 % of the models get 98.65 % of the requests
        hot = max(1, round(0.059 * load.models))
        shares = np.concatenate([0.9865 * _zipf(hot), 0.0135 * _zipf(load.models - hot)])
    elif load.kind == "arena":
        counts = sorted(_arena_counts(), reverse=True)
        shares = np.interp(np.linspace(0, len(counts) - 1, load.models), np.arange(len(counts)), counts)
        shares /= shares.sum()
    else:
        shares = np.full(load.models, 1.0 / load.models)
    return [float(share) * load.models * load.rate_per_s for share in np.random.default_rng(load.seed).permuted(shares)]


def _zipf(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    weights = 1.0 / np.arange(1.0, count + 1)
    return np.asarray(weights / weights.sum())


@lru_cache(maxsize=1)
def _arena_counts() -> tuple[int, ...]:
    arrivals = read_trace(TRACES / "vtc_lmsys_arena_27models.csv.gz")
    return tuple(np.unique([arrival.model for arrival in arrivals], return_counts=True)[1].tolist())


@lru_cache(maxsize=2)
def _lengths(kind: str) -> LengthSource:
    trace = {"azure": "azure2023_conv.csv.gz", "arena": "vtc_lmsys_arena_27models.csv.gz"}.get(kind)
    if trace is None:
        return QuantileTable.shipped()
    pairs = [(arrival.input_tokens, arrival.output_tokens) for arrival in read_trace(TRACES / trace)]
    return ObservedLengths(trace, np.array(pairs, dtype=np.int64))


@lru_cache(maxsize=1)
def _servegen() -> ServeGen:
    return ServeGen.open(TRACES)


@lru_cache(maxsize=1)
def _book() -> ProfileBook:
    return ProfileBook.open(shipped_profiles())


@lru_cache(maxsize=2)
def _hardware(paper_constants: bool, devices: int, host_bytes: int) -> Hardware:
    kinds = (DEVICE,) * devices
    options = HardwareOptions(kinds, min(NODES, devices), host_memory_bytes=host_bytes, artifact=paper_constants)
    return make_hardware(options, 1)


# --- runs


def run(contender: Contender, load: CaseLoad) -> Score:
    """Simulate to the end."""
    hardware = _hardware(contender.paper_constants, load.devices, load.host_bytes)
    try:
        done = simulate(contender.system, scenario_of(load), hardware, Tally(keep_text=False)).summary
    except NoPlacementError:
        return Score(0.0, 0.0)
    return Score(done["slo_attainment"], done["worst_model"], done["switches"], done["devices"], done["disk_reads"])


@dataclass(frozen=True, slots=True)
class Refused:
    """What a bounded queue came to: the share refused, what became of the others, and what the refused were told.

    ``told_s`` and ``waited_s``: medians of ``Retry-After`` and of what it came to.
    """

    refused: float
    of_accepted: float
    told_s: float
    waited_s: float


def run_bounded(contender: Contender, load: CaseLoad, most_queued: int) -> Refused:
    """Simulate with a queue of at most ``most_queued`` prompts on each node."""
    watches: list[RefusalWatch] = []

    def bounded(
        models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits, instances: Sequence[PlacedInstance]
    ) -> Scheduler:
        limits = replace(limits, max_queued_requests=most_queued)
        watches.append(RefusalWatch(contender.system.scheduler(models, costs, limits, instances)))
        return watches[-1]

    system = replace(contender.system, scheduler=bounded)
    hardware = _hardware(contender.paper_constants, load.devices, load.host_bytes)
    done = simulate(system, scenario_of(load), hardware, Tally(keep_text=False)).summary
    refused = done["dropped"] / done["requests"]
    return Refused(refused, done["slo_attainment"] / (1.0 - refused), *median_waits_s(watches))


def bound_load(load: CaseLoad) -> float:
    """``max D(T) / (G * T)``: above 1 nobody can keep every deadline."""
    return least_demand(scenario_of(load)).least_load(load.devices)


def steady_load(load: CaseLoad) -> float:
    """The least work over the time in which it arrives: above 1 the pool falls behind for as long as it goes on so."""
    demand = least_demand(scenario_of(load))
    return float(demand.work_s[-1]) / (load.devices * load.duration_s)


def devices_needed(contender: Contender, load: CaseLoad, level: float = 0.99, most: int = 128) -> int:
    """The fewest devices on which the load is served at that attainment, by bisection; ``most`` must be enough."""
    few, enough = 0, most
    while enough - few > 1:
        middle = (few + enough) // 2
        if run(contender, replace(load, devices=middle)).attainment >= level:
            enough = middle
        else:
            few = middle
    return enough
