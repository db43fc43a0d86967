"""Static placement: every GPU (or share of one) has one model for good."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from aegaeon.scheduler.policies.request_level.instance import QueueInstance, QueueJob


class StaticStrategy:
    """A ``Strategy``: a request goes to the instance of its model with the fewest requests."""

    drop_after_s: float | None = None
    forgets_kv: bool = False

    def __init__(self, homes: Mapping[str, str]) -> None:
        """``homes``: the model of every instance, by instance id."""
        self._instances: dict[str, list[str]] = {}
        for instance_id, model in homes.items():
            self._instances.setdefault(model, []).append(instance_id)

    def hosts(self, model: str, instances: Mapping[str, QueueInstance]) -> Iterable[QueueInstance]:
        return (instances[name] for name in self._instances.get(model, ()) if name in instances)

    def place(self, job: QueueJob, instances: Mapping[str, QueueInstance], now_s: float) -> QueueInstance | None:
        own = self.hosts(job.model, instances)
        return min(
            (instance for instance in own if instance.can_hold(job)),
            key=lambda instance: (instance.load, instance.joined),
            default=None,
        )

    def next_turn(self, instance: QueueInstance, now_s: float) -> Iterable[QueueJob]:
        return islice(instance.queue.values(), instance.spec.max_batch_requests)

    def joiners(self, instance: QueueInstance, now_s: float) -> Iterable[QueueJob]:
        return islice(instance.queue.values(), instance.spec.max_batch_requests)

    def takes_out(self, instance: QueueInstance, now_s: float) -> bool:
        return False
