"""Steps as an instance process computes them: runners over the weights and the KV that it has, and a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.sampling.choice import Choice, Wish
from aegaeon.engine.sampling.chooser import Chooser
from aegaeon.engine.step.runner import ModelRunner
from aegaeon.runtime.instance.core.kv_place import KvPlace
from aegaeon.runtime.instance.core.weight_store import WeightStore
from aegaeon.runtime.recovery.step_pace import StepPace
from aegaeon.runtime.wire.clock import Clock
from aegaeon.runtime.wire.pulse import LoopPulse


class EngineWeights(WeightStore, Protocol):
    """Weights that can be run."""

    def runner(self, model: str) -> ModelRunner:
        """The runner of a model that is bound."""
        ...


class EngineKv(KvPlace, Protocol):
    """KV that can be attended."""

    def arena(self, model: str) -> KvArena:
        """The memory that a model's block tables point into."""
        ...


class ModelEngine:
    """A ``StepEngine``. Tells the pulse, before each step, how long it should take by those that were."""

    def __init__(self, weights: EngineWeights, kv: EngineKv, chooser: Chooser, clock: Clock, pulse: LoopPulse) -> None:
        self._weights = weights
        self._kv = kv
        self._chooser = chooser
        self._clock = clock
        self._pulse = pulse
        self._pace = StepPace()

    def step(self, model: str, slices: Sequence[SequenceSlice], wishes: Sequence[Wish]) -> Sequence[Choice | None]:
        start_s, tokens = self._clock.now_s(), sum(len(one.token_ids) for one in slices)
        self._pulse.work(self._pace.expected_s(model, tokens))
        logits = self._weights.runner(model).step(slices, self._kv.arena(model))
        chosen = self._chooser.choose(logits, wishes) if wishes else []
        self._pace.note(model, tokens, self._clock.now_s() - start_s)
        return chosen
