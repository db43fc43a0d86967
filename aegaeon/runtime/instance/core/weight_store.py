"""The weights that an instance holds: host-cache entries that are leased to it, bound to model skeletons."""

from __future__ import annotations

from typing import Protocol

from aegaeon.runtime.wire.messages import HostWeights


class WeightError(Exception):
    """A model's weights cannot be used; the message says why."""


class WeightStore(Protocol):
    """The models of an instance."""

    def take(self, weights: HostWeights) -> None:
        """The driver has leased a model's host weights to us. Raises ``WeightError``; the lease is over then."""
        ...

    def ready(self, model: str) -> bool:
        """Whether the model can be bound now."""
        ...

    def bind(self, model: str) -> None:
        """Make it the model that runs."""
        ...

    def evict(self, model: str) -> None:
        """Drop a model's weights; unknown ones are ignored."""
        ...

    def collect_returned(self) -> list[tuple[str, int]]:
        """Leases (model, id) that are over since the last call."""
        ...

    @property
    def loading(self) -> bool:
        """Whether a copy is under way whose end nobody will announce."""
        ...

    def check_device(self) -> None:
        """Raises what the device says of itself where it is lost: nothing will run there any more."""
        ...

    def prepare_one(self) -> bool:
        """Do one thing ahead of time (build a model's skeleton, capture a graph); False when nothing is left."""
        ...

    def close(self) -> None: ...
