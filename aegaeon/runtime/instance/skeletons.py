"""Models without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aegaeon.core.kv_shape import KvShape
from aegaeon.engine.errors import ModelError
from aegaeon.engine.step.runner import ModelRunner
from aegaeon.runtime.instance.core.weight_store import WeightError


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's configuration is, the shape of its KV, and what was settled when it was inspected."""

    path: Path
    kv_shape: KvShape
    dtype: str
    max_context_tokens: int


MakeRunner = Callable[[ModelSource], ModelRunner]
"""Builds a model without weights; raises ``ModelError`` where it does not build."""


class Skeletons:
    """Model skeletons on the meta device, built when first needed or when the instance is idle, and kept."""

    def __init__(self, sources: Mapping[str, ModelSource], make_runner: MakeRunner) -> None:
        self._sources = sources
        self._make_runner = make_runner
        self._runners: dict[str, ModelRunner] = {}
        self._unbuilt = list(sources)

    def runner(self, name: str) -> ModelRunner:
        """Raises ``WeightError`` where the architecture does not build."""
        if name not in self._runners:
            try:
                self._runners[name] = self._make_runner(self._sources[name])
            except ModelError as error:
                raise WeightError(str(error)) from error
        return self._runners[name]

    def prepare_one(self) -> bool:
        """Build the next one that is missing. One that fails is left to fail when it is needed."""
        while self._unbuilt:
            name = self._unbuilt.pop(0)
            if name in self._runners:
                continue
            try:
                self.runner(name)
            except WeightError:
                continue
            return True
        return False
