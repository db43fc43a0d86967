"""ServerlessLLM, as the Aegaeon artifact (SOSP'25) simulates it: request-level scaling, first come first served.

A GPU runs one model until all of its requests are done, those included that came after another model's (continuous
batching). Four slots per GPU and model, no preemption by other models; a request without a first token 15 s after its
arrival is dropped.

Does not know: output lengths, SLOs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aegaeon.core.cost import CostModel
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.request_level.gpu import Gpu, PlacedJob
from aegaeon.scheduler.request_level.slots import DROP_AFTER_S, SLOTS, place_by_slot
from aegaeon.scheduler.request_level.turn_scheduler import TurnScheduler


@dataclass(frozen=True, slots=True)
class SllmStrategy:
    """A ``Strategy``: queues are served in order."""

    costs: CostModel
    idle_first: bool = True
    slots: int = SLOTS
    drop_after_s: float | None = DROP_AFTER_S
    forgets_kv: bool = False

    def hosts(self, model: str, gpus: Mapping[str, Gpu]) -> Iterable[Gpu]:
        return gpus.values()

    def place(self, job: PlacedJob, gpus: Mapping[str, Gpu], now_s: float) -> Gpu | None:
        return place_by_slot(job, gpus.values(), self.slots, self.costs, now_s, self.idle_first)

    def next_run(self, gpu: Gpu, now_s: float) -> Iterable[PlacedJob]:
        return _of_model(gpu, next(iter(gpu.queue.values())).model)

    def joiners(self, gpu: Gpu, now_s: float) -> Iterable[PlacedJob]:
        return _of_model(gpu, gpu.run.model) if gpu.run is not None else ()

    def takes_out(self, gpu: Gpu, now_s: float) -> bool:
        return False


def make_sllm(models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits) -> TurnScheduler:
    """The policy ``sllm`` of a pool; its instances must be mixed ones."""
    return TurnScheduler(models, limits, SllmStrategy(costs))


def _of_model(gpu: Gpu, model: str) -> Iterable[PlacedJob]:
    return [job for job in gpu.queue.values() if job.model == model]
