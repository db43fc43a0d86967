"""What sets one baseline apart from another; ``TurnScheduler`` does the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from aegaeon.scheduler.policies.request_level.instance import QueueInstance, QueueJob


class Strategy(Protocol):
    """Where requests go, and what a GPU runs next.

    ``drop_after_s``: a request without a first token so long after its arrival is dropped (None: never).
    ``forgets_kv``: a model that is taken out before its requests are done loses their KV.
    """

    @property
    def drop_after_s(self) -> float | None: ...

    @property
    def forgets_kv(self) -> bool: ...

    def hosts(self, model: str, instances: Mapping[str, QueueInstance]) -> Iterable[QueueInstance]:
        """The GPUs, of those there are by id, that may ever run a model."""
        ...

    def place(self, job: QueueJob, instances: Mapping[str, QueueInstance], now_s: float) -> QueueInstance | None:
        """The GPU for the job, which must be able to hold it, of those there are by id; None: it waits for another."""
        ...

    def next_turn(self, instance: QueueInstance, now_s: float) -> Iterable[QueueJob]:
        """Jobs of the queue, all of one model, that an idle GPU runs next, in order; at least one if any waits."""
        ...

    def joiners(self, instance: QueueInstance, now_s: float) -> Iterable[QueueJob]:
        """Jobs of the queue, of the running model, that may join the turn, in order."""
        ...

    def takes_out(self, instance: QueueInstance, now_s: float) -> bool:
        """Whether the turn is to make way for what waits."""
        ...
