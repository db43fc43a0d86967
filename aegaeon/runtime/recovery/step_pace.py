"""How long a step should take, by what the slowest of its model took so far. Pure."""

from __future__ import annotations


class StepPace:
    """Steps of each model, as (most tokens, slowest seconds); its first is left out, which compiles and captures."""

    def __init__(self) -> None:
        self._slowest: dict[str, tuple[int, float] | None] = {}  # None: after the first

    def note(self, model: str, tokens: int, took_s: float) -> None:
        """A step of so many tokens is over."""
        if model not in self._slowest:
            self._slowest[model] = None
            return
        most, slowest_s = self._slowest[model] or (0, 0.0)
        self._slowest[model] = max(most, tokens), max(slowest_s, took_s)

    def expected_s(self, model: str, tokens: int) -> float | None:
        """What a step of so many tokens may well take; None before the model's second is over."""
        slowest = self._slowest.get(model)
        if slowest is None:
            return None
        most, slowest_s = slowest
        return slowest_s * max(1.0, tokens / most)
