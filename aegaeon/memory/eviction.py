"""Which kept block of KV is given up next: small policies, by name.

A policy gives a block a value when the last request lets go of it, and the least value goes first; of two of one value
the one that was used less recently. It knows neither bytes nor blocks: what keeping one is *worth* it is told.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol


class KeptBlock(Protocol):
    """``used``: when a request last went through it (a count of uses of all blocks), ``age``: the policy's age then,
    ``uses``: how many did, ``worth``: seconds of prefill that it saves, per byte."""

    @property
    def used(self) -> int: ...

    @property
    def age(self) -> float: ...

    @property
    def uses(self) -> int: ...

    @property
    def worth(self) -> float: ...


class Eviction(ABC):
    """``age``: the highest value that was ever given up. What is valued from its own age on, that of its last use,
    stays as long as others of its worth, and not for ever."""

    def __init__(self) -> None:
        self.age = 0.0

    @abstractmethod
    def value(self, block: KeptBlock) -> float: ...

    def worth(self, own: float, before: float | None) -> float:
        """What a block of a worth counts as, that follows on one of worth ``before`` (None: on none)."""
        return own

    def evicted(self, value: float) -> None:
        """A block of this value was given up."""
        self.age = max(self.age, value)


class Lru(Eviction):
    """Least recently used."""

    def value(self, block: KeptBlock) -> float:
        return block.used


class Lfu(Eviction):
    """Least frequently used, with dynamic ageing: what was in demand long ago goes in the end (Arlitt et al., 2000)."""

    def value(self, block: KeptBlock) -> float:
        return block.age + block.uses


class GreedyDual(Eviction):
    """What is worth most per byte stays longest, and everything goes in the end if nobody uses it (Young, 1994; Cao and
    Irani, 1997). Where all blocks are worth the same this is LRU.

    The blocks of a path count as much as its first: models differ, and places do not. A block far into a context saves
    more seconds than one at its start, but weighed by that the ends of dead conversations outlive the living (up to 1.5
    points of hit rate less than LRU on Mooncake's trace).
    """

    def worth(self, own: float, before: float | None) -> float:
        return own if before is None else before

    def value(self, block: KeptBlock) -> float:
        return block.age + block.worth


class FlopAware(Eviction):
    """Recency and ``alpha`` times the efficiency of what is kept, both from 0 to 1 (Marconi: Pan et al., MLSys 2025).

    Marconi's recency is 1 / (time since the last use), which changes all the time, and its efficiency is FLOPs saved
    per byte of the whole prefix. Here a block is given its value once: its last use, between that of the block given up
    last and the newest; its efficiency is ``worth``, between the least and the most seen. Its tuner of ``alpha`` has
    no place here.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        self._alpha = alpha
        self._newest = 0
        self._least = float("inf")
        self._most = 0.0

    def value(self, block: KeptBlock) -> float:
        self._newest = max(self._newest, block.used)
        self._least, self._most = min(self._least, block.worth), max(self._most, block.worth)
        spread = self._most - self._least
        efficiency = (block.worth - self._least) / spread if spread else 0.0
        return block.used + self._alpha * efficiency * max(0.0, self._newest - self.age)


EVICTIONS: Mapping[str, Callable[[], Eviction]] = MappingProxyType(
    {"lru": Lru, "lfu": Lfu, "slo": GreedyDual, "flop": FlopAware}
)
"""``slo``: ``GreedyDual`` over the seconds of prefill that a model's blocks save, per byte."""
