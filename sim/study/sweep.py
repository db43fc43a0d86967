"""Many simulations: systems x loads, on all cores, results in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from aegaeon.core.config import PREFIX_CACHE
from aegaeon.core.slo import Slo
from aegaeon.latency.files.profile_book import ProfileBook
from aegaeon.run_header import Load
from aegaeon.scheduler.layout import NoPlacementError
from aegaeon.workload import Arrival, SyntheticSpec, default_lengths, read_trace, spread
from sim.records.output import PointOutput, point_key, texts_body
from sim.records.trace_recorder import TraceRecorder
from sim.study.bound import least_demand
from sim.study.hardware import Hardware, HardwareOptions, make_hardware, the_device
from sim.study.processes import run_in_processes
from sim.study.run import simulate
from sim.study.scenario import Scenario, make_scenario, read_or_make
from sim.systems.errors import InputError
from sim.systems.systems import find_system
from sim.workloads.conversation_trace import is_conversations, read_conversations, within
from sim.workloads.sessions import SessionSpec, make_sessions

TRACE_SESSION_RATE_PER_S = 1 / 60


@dataclass(frozen=True, slots=True)
class WorkloadChoice:
    """A synthetic workload, sessions, or a trace file, spread over ``models`` where it names one model only.

    ``file``: the synthetic workload's file is read where there is one. ``unit`` of the trace's times, where it is given
    (see ``read_trace``). ``session_rate_per_s``: at which the conversations of a trace begin.
    """

    synthetic: SyntheticSpec | None = None
    sessions: SessionSpec | None = None
    file: bool = True
    trace: Path | None = None
    unit: str | None = None
    models: int = 1
    seed: int = 0
    session_rate_per_s: float = TRACE_SESSION_RATE_PER_S

    @property
    def load(self) -> Load | None:
        """The load as records say it; None of a trace."""
        spec = self.synthetic
        return Load.of(spec.models, spec.rate_per_s, spec.input_scale, spec.output_scale) if spec else None


@dataclass(frozen=True, slots=True)
class Setting:
    """What all points of a sweep have in common. ``bound``: whether their loads are compared with the bound's.

    ``check``: whether schedulers are held to their contract. ``prefix_cache``: see ``SimPool``.
    """

    hardware: HardwareOptions
    profile_dir: Path
    mix: tuple[str, ...]
    slo: Slo
    max_context_tokens: int
    bound: bool = False
    check: bool = False
    prefix_cache: str = PREFIX_CACHE


@dataclass(frozen=True, slots=True)
class Point:
    """One system at one load. ``weight`` grows with the time that it takes to simulate."""

    x: float
    policy: str
    workload: WorkloadChoice
    weight: float = 0.0

    @property
    def key(self) -> str:
        return point_key(self.x, self.policy)


def run_sweep(
    points: Sequence[Point], setting: Setting, workers: int, done: Callable[[Point, PointOutput], None]
) -> list[PointOutput]:
    """Results in the order of ``points``; ``done`` is told of each as it comes. The longest ones are begun first."""
    outputs: dict[Point, PointOutput] = {}
    longest_first = sorted(points, key=lambda point: -point.weight)
    for point, output in run_in_processes(partial(run_point, setting=setting), longest_first, workers):
        done(point, output)
        outputs[point] = output
    return [outputs[point] for point in points]


def run_point(point: Point, setting: Setting, recorder: TraceRecorder | None = None) -> PointOutput:
    """Simulate one point."""
    scenario, hardware = prepare(point.workload, setting)
    try:
        policy = find_system(point.policy, setting.hardware.artifact)
        system = policy.checked() if setting.check else policy
        result = simulate(system, scenario, hardware, observer=recorder, prefix_cache=setting.prefix_cache)
    except NoPlacementError as error:
        return PointOutput(point.key, {}, no_placement=str(error))
    summary = {**result.summary, "models": len(scenario.models), "workload": scenario.origin}
    if setting.bound:
        summary["bound_load"] = _bound_load(point.workload, setting)
    return PointOutput(point.key, summary, texts_body(result.texts))


@cache  # filled before processes are forked, which then share it
def prepare(workload: WorkloadChoice, setting: Setting) -> tuple[Scenario, Hardware]:
    """The scenario of a point and the hardware it runs on; systems of one point share them."""
    device = the_device(setting.hardware)
    arrivals, origin = _arrivals(workload, setting.max_context_tokens)
    scenario = make_scenario(
        arrivals, origin, _book(setting.profile_dir), device.name, setting.mix, setting.slo, setting.max_context_tokens
    )
    if setting.bound and scenario.contents and setting.prefix_cache != "off":
        raise InputError(f"{origin}: --bound is of prompts that are computed whole; add --prefix-cache off")
    return scenario, make_hardware(setting.hardware, scenario.tp)


@cache
def _bound_load(workload: WorkloadChoice, setting: Setting) -> float:
    """The least work by any time, over what the devices can do until then: above 1 somebody must be late."""
    scenario, hardware = prepare(workload, setting)
    return least_demand(scenario).least_load(len(hardware.pool.devices))


@cache
def _book(directory: Path) -> ProfileBook:
    return ProfileBook.open(directory)


def _arrivals(workload: WorkloadChoice, limit_tokens: int) -> tuple[list[Arrival], str]:
    if workload.trace is not None:
        return _spread_over(_traced(workload, workload.trace, limit_tokens), workload), str(workload.trace)
    if workload.sessions is not None:
        return make_sessions(workload.sessions), f"sessions, seed {workload.sessions.seed}"
    assert workload.synthetic is not None, "a workload is synthetic, sessions or a trace"
    return read_or_make(workload.synthetic, default_lengths(os.environ), workload.file)


def _traced(workload: WorkloadChoice, path: Path, limit_tokens: int) -> list[Arrival]:
    if is_conversations(path):
        return within(read_conversations(path, workload.session_rate_per_s, workload.seed), limit_tokens)
    return read_trace(path, workload.unit)


def _spread_over(arrivals: list[Arrival], workload: WorkloadChoice) -> list[Arrival]:
    """A trace of one model only serves as one of a market where several models are asked for."""
    if workload.models <= 1 or len({arrival.model for arrival in arrivals}) > 1:
        return arrivals
    return spread(arrivals, [f"synth_model_{index:02d}" for index in range(workload.models)], workload.seed)
