"""Models that cannot be used now, and what their clients hear."""

from __future__ import annotations

import math
from collections.abc import Iterator

from aegaeon.core.generation import ModelUnavailableError
from aegaeon.runtime.wire import messages as m


class FailedModels:
    """What nodes have said of models that they gave up."""

    def __init__(self) -> None:
        self._states: dict[str, m.ModelState] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def note(self, message: m.ModelState) -> None:
        """A model has failed, or is back."""
        if message.failure is None:
            self._states.pop(message.model, None)
        else:
            self._states[message.model] = message

    def clear(self) -> None:
        """Forget them all."""
        self._states.clear()

    def error(self, model: str, now_s: float) -> ModelUnavailableError | None:
        """Why a model cannot be used now, and when to come again; None where it can."""
        state = self._states.get(model)
        if state is None:
            return None
        left_s = None if state.retry_s is None else max(0.0, state.retry_s - now_s)
        if state.awaits_files:
            return ModelUnavailableError(f"{state.failure}; it is tried again when its files change", left_s)
        if left_s is None:
            return ModelUnavailableError(str(state.failure))
        return ModelUnavailableError(f"{state.failure}; it is tried again in {math.ceil(left_s)} s", left_s)
