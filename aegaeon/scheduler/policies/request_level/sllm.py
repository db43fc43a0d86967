"""ServerlessLLM, as the Aegaeon artifact (SOSP'25) simulates it: request-level scaling, first come first served.

A GPU runs one model until all of its requests are done, those included that came after another model's (continuous
batching). Four slots per GPU and model, no preemption by other models; a request without a first token 15 s after its
arrival is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aegaeon.core.cost import CostModel
from aegaeon.scheduler.policies.request_level.instance import QueueInstance, QueueJob
from aegaeon.scheduler.policies.request_level.slots import DROP_AFTER_S, SLOTS, place_by_slot


@dataclass(frozen=True, slots=True)
class SllmStrategy:
    """A ``Strategy``: queues are served in order."""

    costs: CostModel
    idle_first: bool = True
    slots: int = SLOTS
    drop_after_s: float | None = DROP_AFTER_S
    forgets_kv: bool = False

    def hosts(self, model: str, instances: Mapping[str, QueueInstance]) -> Iterable[QueueInstance]:
        return instances.values()

    def place(self, job: QueueJob, instances: Mapping[str, QueueInstance], now_s: float) -> QueueInstance | None:
        return place_by_slot(job, instances.values(), self.slots, self.costs, now_s, self.idle_first)

    def next_turn(self, instance: QueueInstance, now_s: float) -> Iterable[QueueJob]:
        return _of_model(instance, next(iter(instance.queue.values())).model)

    def joiners(self, instance: QueueInstance, now_s: float) -> Iterable[QueueJob]:
        return _of_model(instance, instance.turn.model) if instance.turn is not None else ()

    def takes_out(self, instance: QueueInstance, now_s: float) -> bool:
        return False


def _of_model(instance: QueueInstance, model: str) -> Iterable[QueueJob]:
    return [job for job in instance.queue.values() if job.model == model]
