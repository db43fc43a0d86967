"""What a scheduler had instances do, counted from its log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from aegaeon.core.command import EvictWeights, LoadWeights, StartTurn
from aegaeon.scheduler.log import LogEntry


@dataclass(frozen=True, slots=True)
class PoolCommands:
    """``switches``: turns of another model than the instance's turn before. ``loads``: models brought to a device."""

    turns: int
    switches: int
    loads: int

    @classmethod
    def of(cls, log: Iterable[LogEntry], start_s: float) -> Self:
        """Those from ``start_s`` on; the log begins with the instances."""
        turns = switches = loads = 0
        running: dict[str, str] = {}
        resident: defaultdict[str, set[str]] = defaultdict(set)
        for entry in log:
            counts = entry.now_s >= start_s
            for command in entry.commands:
                match command:
                    case StartTurn(instance_id=instance, model=model):
                        turns += counts
                        switches += counts and running.get(instance) != model
                        loads += counts and model not in resident[instance]
                        running[instance] = model
                        resident[instance].add(model)
                    case LoadWeights(instance_id=instance, model=model):
                        loads += counts and model not in resident[instance]
                        resident[instance].add(model)
                    case EvictWeights(instance_id=instance, model=model):
                        resident[instance].discard(model)
                    case _:
                        pass  # moves no model
        return cls(turns, switches, loads)
