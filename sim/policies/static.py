"""Static placement: every GPU (or share of one) has one model for good.

Does not know: which model was placed where, or why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from aegaeon.scheduler.request_level.gpu import Gpu, PlacedJob


class StaticStrategy:
    """A ``Strategy``: a request goes to the instance of its model with the fewest requests."""

    drop_after_s: float | None = None
    forgets_kv: bool = False

    def __init__(self, homes: Mapping[str, str]) -> None:
        """``homes``: the model of every instance, by instance id."""
        self._instances: dict[str, list[str]] = {}
        for instance_id, model in homes.items():
            self._instances.setdefault(model, []).append(instance_id)

    def hosts(self, model: str, gpus: Mapping[str, Gpu]) -> Iterable[Gpu]:
        return (gpus[name] for name in self._instances.get(model, ()) if name in gpus)

    def place(self, job: PlacedJob, gpus: Mapping[str, Gpu], now_s: float) -> Gpu | None:
        own = self.hosts(job.model, gpus)
        return min((gpu for gpu in own if gpu.can_hold(job)), key=lambda gpu: (gpu.load, gpu.joined), default=None)

    def next_run(self, gpu: Gpu, now_s: float) -> Iterable[PlacedJob]:
        return islice(gpu.queue.values(), gpu.spec.max_batch_requests)

    def joiners(self, gpu: Gpu, now_s: float) -> Iterable[PlacedJob]:
        return islice(gpu.queue.values(), gpu.spec.max_batch_requests)

    def takes_out(self, gpu: Gpu, now_s: float) -> bool:
        return False
