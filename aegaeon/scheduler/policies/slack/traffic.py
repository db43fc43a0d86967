"""How much of a pool's traffic each model has, lately."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

_MEMORY_S = 60.0  # time constant: what was longer ago fades


@dataclass(slots=True)
class _Count:
    """Requests, as of ``noted_s``."""

    value: float = 0.0
    noted_s: float = 0.0

    def at(self, now_s: float) -> float:
        return self.value * math.exp((self.noted_s - now_s) / _MEMORY_S)

    def add(self, now_s: float) -> None:
        self.value, self.noted_s = self.at(now_s) + 1.0, now_s


class Traffic:
    """Requests counted by model."""

    def __init__(self) -> None:
        self._all = _Count()
        self._of_model: defaultdict[str, _Count] = defaultdict(_Count)

    def note(self, model: str, now_s: float) -> None:
        """A request of the model has arrived."""
        self._all.add(now_s)
        self._of_model[model].add(now_s)

    def share(self, model: str, now_s: float) -> float:
        """A model's share of all requests, lately; between 0 and 1."""
        requests = self._all.at(now_s)
        return self._of_model[model].at(now_s) / requests if requests else 0.0
