"""Many simulations: systems x loads, on all cores, results in a fixed order."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aegaeon.core.slo import Slo
from aegaeon.latency.files.profile_book import ProfileBook
from aegaeon.run_header import Load
from aegaeon.scheduler.layout import NoPlacementError
from aegaeon.workload import Arrival, SyntheticSpec, default_lengths, read_trace, spread
from sim.records.output import PointOutput, point_key, texts_body
from sim.records.trace_recorder import TraceRecorder
from sim.study.bound import least_demand
from sim.study.hardware import Hardware, HardwareOptions, make_hardware, the_device
from sim.study.run import simulate
from sim.study.scenario import Scenario, make_scenario, read_or_make
from sim.systems.systems import find_system


@dataclass(frozen=True, slots=True)
class WorkloadChoice:
    """A synthetic workload, or a trace file whose requests are spread over ``models`` where it names one model only.

    ``file``: the synthetic workload's file is read where there is one. ``unit`` of the trace's times, where it is given
    (see ``read_trace``).
    """

    synthetic: SyntheticSpec | None = None
    file: bool = True
    trace: Path | None = None
    unit: str | None = None
    models: int = 1
    seed: int = 0

    @property
    def load(self) -> Load | None:
        """As records say it; None of a trace."""
        spec = self.synthetic
        return Load.of(spec.models, spec.rate_per_s, spec.input_scale, spec.output_scale) if spec else None


@dataclass(frozen=True, slots=True)
class Setting:
    """What all points of a sweep have in common. ``bound``: whether their loads are compared with the bound's.

    ``check``: whether schedulers are held to their contract.
    """

    hardware: HardwareOptions
    profile_dir: Path
    mix: tuple[str, ...]
    slo: Slo
    max_context_tokens: int
    bound: bool = False
    check: bool = False


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
    if workers <= 1 or len(points) == 1:
        return [_told(point, run_point(point, setting), done) for point in points]
    with ProcessPoolExecutor(min(workers, len(points)), multiprocessing.get_context("fork")) as pool:
        futures: dict[Future[PointOutput], int] = {}
        for index in sorted(range(len(points)), key=lambda index: -points[index].weight):
            futures[pool.submit(run_point, points[index], setting)] = index
        try:
            outputs = {
                futures[item]: _told(points[futures[item]], item.result(), done) for item in as_completed(futures)
            }
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [outputs[index] for index in range(len(points))]


def _told(point: Point, output: PointOutput, done: Callable[[Point, PointOutput], None]) -> PointOutput:
    done(point, output)
    return output


def run_point(point: Point, setting: Setting, recorder: TraceRecorder | None = None) -> PointOutput:
    """Simulate one point."""
    scenario, hardware = prepare(point.workload, setting)
    try:
        policy = find_system(point.policy, setting.hardware.artifact)
        system = policy.checked() if setting.check else policy
        result = simulate(system, scenario, hardware, observer=recorder)
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
    arrivals, origin = _arrivals(workload)
    scenario = make_scenario(
        arrivals, origin, _book(setting.profile_dir), device.name, setting.mix, setting.slo, setting.max_context_tokens
    )
    return scenario, make_hardware(setting.hardware, scenario.tp)


@cache
def _bound_load(workload: WorkloadChoice, setting: Setting) -> float:
    """The least work by any time, over what the devices can do until then: above 1 somebody must be late."""
    scenario, hardware = prepare(workload, setting)
    return least_demand(scenario).least_load(len(hardware.pool.devices))


@cache
def _book(directory: Path) -> ProfileBook:
    return ProfileBook.open(directory)


def _arrivals(workload: WorkloadChoice) -> tuple[list[Arrival], str]:
    if workload.trace is not None:
        return _spread_over(read_trace(workload.trace, workload.unit), workload), str(workload.trace)
    assert workload.synthetic is not None, "a workload is synthetic or a trace"
    return read_or_make(workload.synthetic, default_lengths(os.environ), workload.file)


def _spread_over(arrivals: list[Arrival], workload: WorkloadChoice) -> list[Arrival]:
    """A trace of one model only serves as one of a market where several models are asked for."""
    if workload.models <= 1 or len({arrival.model for arrival in arrivals}) > 1:
        return arrivals
    return spread(arrivals, [f"synth_model_{index:02d}" for index in range(workload.models)], workload.seed)
