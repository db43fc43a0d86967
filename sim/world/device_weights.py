"""The weights on one instance's device: which models are there or on their way, in pages of the device's ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aegaeon.memory.page_pool import OutOfPagesError, PagePool
from sim.systems.errors import SimulationError
from sim.world.constants import Constants
from sim.world.host_cache import HostCache
from sim.world.host_link import HostLink, WeightCopy
from sim.world.model_facts import SimModel


class DeviceWeights:
    """Loads and drops models as it is told; ``landed(model, now_s)`` is called when one has come."""

    def __init__(
        self,
        owner: str,
        models: Mapping[str, SimModel],
        constants: Constants,
        pages: PagePool,
        link: HostLink,
        host: HostCache,
        landed: Callable[[str, float], None],
    ) -> None:
        self._owner = owner
        self._models = models
        self._constants = constants
        self._pages = pages
        self._link = link
        self._host = host
        self._landed = landed
        self._resident: dict[str, WeightCopy | None] = {}  # None: it is there

    def __contains__(self, model: str) -> bool:
        """Whether a model is there or on its way."""
        return model in self._resident

    def is_ready(self, model: str) -> bool:
        """Whether all of a model has landed."""
        return self._resident.get(model, self) is None

    @property
    def bytes(self) -> int:
        """Of all models that are there or on their way."""
        return sum(self._models[name].spec.weight_bytes for name in self._resident)

    def preload(self, model: str) -> None:
        """The model was there before the run began."""
        self._take_pages(model)
        self._resident[model] = None

    def want(self, model: str, now_s: float, urgent: bool) -> None:
        """Have the model brought in; ``urgent``: a turn waits for it."""
        if model in self._resident:
            copy = self._resident[model]
        else:
            copy = self._resident[model] = self._submit(model, now_s)
        if urgent and copy is not None:
            self._link.promote(copy, now_s)

    def evict(self, model: str, now_s: float) -> None:
        """Drop a model; on its way it is turned back."""
        if model not in self._resident:
            return
        copy = self._resident.pop(model)
        if copy is not None:
            self._link.cancel(copy, now_s)
        self._pages.free_owner(self._name(model))

    def _submit(self, model: str, now_s: float) -> WeightCopy:
        self._take_pages(model)
        constants, spec = self._constants, self._models[model].spec
        seconds = constants.switch_overhead_s + spec.weight_bytes / constants.weight_bytes_per_s
        in_host_s = self._host.fetch(model, now_s)
        earliest_s = max(now_s, in_host_s - seconds)  # what is read from disk goes on while the rest is read
        copy = WeightCopy(model, seconds, earliest_s, self._done)
        self._link.submit(copy, now_s)
        return copy

    def _done(self, copy: WeightCopy, now_s: float) -> None:
        self._resident[copy.model] = None
        self._landed(copy.model, now_s)

    def _take_pages(self, model: str) -> None:
        pages = -(-self._models[model].spec.weight_bytes // self._pages.page_bytes)
        try:
            self._pages.allocate(self._name(model), pages)
        except OutOfPagesError as error:
            raise SimulationError(f"{self._owner} has no room for the weights of {model}: {error}") from error

    def _name(self, model: str) -> str:
        return f"{self._owner}/{model}"
