"""Models that cannot be used: which, why, and when they are tried again."""

from __future__ import annotations

import logging
from collections import defaultdict

from aegaeon.core.event import ModelFailed, ModelRecovered
from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.core.desk import Desk
from aegaeon.runtime.node.core.frontends import Frontends
from aegaeon.runtime.node.core.instances import Instances
from aegaeon.runtime.recovery.suspicion import ModelSuspicion
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.model_failure import FailureKind, ModelFailure, ModelFailures, ModelProblem

logger = logging.getLogger(__name__)

# A model whose turn is still under way where it failed is tried again only after that.
_TURN_POLL_S = 1.0


class Quarantine:
    """What speaks against models, and what becomes of those that fail of it."""

    def __init__(self, desk: Desk, instances: Instances, frontends: Frontends) -> None:
        self._desk = desk
        self._instances = instances
        self._frontends = frontends
        self._failures = ModelFailures()
        self._suspicions: defaultdict[str, ModelSuspicion] = defaultdict(ModelSuspicion)

    @property
    def states(self) -> tuple[m.ModelState, ...]:
        """What a frontend that comes late has to know."""
        return tuple(_model_state(failure) for failure in self._failures.current)

    def retry_after_s(self, model: str) -> float | None:
        """When it is looked at next, in seconds from now; None for one that has not failed."""
        return self._failures.retry_after_s(model, self._desk.now_s)

    # --- what is for a model and against it -------------------------------------------------------------------------

    def works(self, model: str) -> None:
        """It gave somebody a token: deaths and failures before this count no more."""
        self._suspicions[model].note_output()
        self._failures.works(model)

    def bound(self, model: str) -> None:
        """An instance has bound its weights."""
        self._suspicions[model].note_bound()

    def died_in_binding(self, model: str) -> None:
        """An instance died as it bound its weights."""
        self._suspicions[model].note_death_in_binding()
        self._judge(model)

    def died_alone(self, model: str, request_id: str) -> None:
        """An instance died while this request ran alone."""
        self._suspicions[model].note_death_alone(request_id)
        self._judge(model)

    def _judge(self, model: str) -> None:
        """Fail a model that instances die of, whoever asks it."""
        if self._suspicions[model].proven:
            del self._suspicions[model]
            self.fail(model, f"model {model} ended one instance after the other, and no request explains it")

    # --- failing and coming back ------------------------------------------------------------------------------------

    def fail(self, model: str, reason: str, kind: FailureKind = FailureKind.KILLS) -> None:
        """Quarantine a model until there is hope for it; one that is quarantined already stays so."""
        for incarnation in self._instances:
            incarnation.models.pop(model, None)
        if model in self._failures:
            return
        logger.error("%s", reason)
        # What is in memory may be older than what has to change.
        self._desk.put(o.DropWeights((model,)))
        self._set_back(model, ModelProblem(reason, kind))
        self._desk.dispatch(ModelFailed(model, reason))

    def examined(self, failure: ModelFailure, problem: ModelProblem | None) -> None:
        """What is still wrong with a model; where that is nothing it may be used again."""
        if problem is not None:
            self._set_back(failure.model, problem)
            return
        logger.info("model %s may be used again", failure.model)
        self._failures.recover(failure.model)
        self._frontends.tell_all(m.ModelState(failure.model, None))
        self._desk.dispatch(ModelRecovered(failure.model))

    def _set_back(self, model: str, problem: ModelProblem) -> None:
        """Say why it cannot be used, and look at it again after a pause."""
        failure = self._failures.fail(model, problem, self._desk.now_s)
        self._frontends.tell_all(_model_state(failure))
        self._desk.timers.at(failure.retry_s, lambda: self._try_again(failure))

    def _try_again(self, failure: ModelFailure) -> None:
        if any(one.turn_id is not None and one.model == failure.model for one in self._instances):
            self._desk.timers.at(self._desk.now_s + _TURN_POLL_S, lambda: self._try_again(failure))
        else:
            self._desk.put(o.ExamineModel(failure))


def _model_state(failure: ModelFailure) -> m.ModelState:
    return m.ModelState(failure.model, failure.reason, failure.retry_s, failure.kind is FailureKind.FILES)
