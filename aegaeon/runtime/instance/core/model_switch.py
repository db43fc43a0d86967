"""The models of an instance: whose weights come and go, and which one is bound."""

from __future__ import annotations

import logging

from aegaeon.runtime.instance.core.members import in_a_line
from aegaeon.runtime.instance.core.outbox import Outbox
from aegaeon.runtime.instance.core.weight_store import WeightError, WeightStore
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.model_failure import failure_kind

logger = logging.getLogger(__name__)


class ModelSwitch:
    """Takes weights, and binds the model that runs. What cannot be used is refused, and the driver told why."""

    def __init__(self, instance_id: str, weights: WeightStore, outbox: Outbox) -> None:
        self._instance_id = instance_id
        self._weights = weights
        self._outbox = outbox
        self.bound: str | None = None

    def take(self, message: m.HostWeights) -> bool:
        """Take weights that the driver has leased to us; False where they were refused."""
        self.evict(message.model)  # what is there of it was given up with the model when it failed elsewhere
        try:
            self._weights.take(message)
        except WeightError as error:
            self._refuse(message.model, message.lease_id, str(error), error)
            return False
        except Exception as error:
            self._weights.check_device()
            logger.exception("instance %s cannot take the weights of %s", self._instance_id, message.model)
            reason = f"model {message.model} cannot be loaded: {in_a_line(error)}"
            self._refuse(message.model, message.lease_id, reason, error)
            return False
        return True

    def bind(self, model: str) -> bool:
        """Make it the model that runs; False where its weights do not fit it, and were refused."""
        try:
            self._weights.bind(model)
        except Exception as error:
            logger.exception("model %s cannot be bound on instance %s", model, self._instance_id)
            self._weights.check_device()
            self.evict(model)
            self._refuse(model, None, str(error) or type(error).__name__, error)
            return False
        self.bound = model
        return True

    def _refuse(self, model: str, lease_id: int | None, reason: str, error: Exception) -> None:
        self._outbox.report(m.WeightsRefused(model, lease_id, reason, failure_kind(error)))

    def evict(self, model: str) -> None:
        """Drop a model's weights."""
        if self.bound == model:
            self.bound = None
        self._weights.evict(model)

    def return_leases(self) -> None:
        """Tell the driver which leases are over."""
        for model, lease_id in self._weights.collect_returned():
            self._outbox.report(m.WeightsReturned(model, lease_id))

    def prepare(self) -> bool:
        """Use an idle moment, and say whether there is more to do; what fails ahead of time is left to fail when it is
        needed."""
        try:
            return self._weights.prepare_one()
        except Exception:
            self._weights.check_device()
            logger.exception("instance %s cannot prepare something", self._instance_id)
            return True
