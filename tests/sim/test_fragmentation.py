"""The use of slabs over virtual time: what counts is how long it was, not how often somebody looked."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from sim.records.fragmentation import FragmentationSampler


@dataclass
class Slabs:
    """One shape, whose use is set; counts how often it is asked for."""

    assigned_bytes: int = 0
    used_bytes: int = 0
    asked: int = 0
    shapes: tuple[Any, ...] = field(default_factory=lambda: (SimpleNamespace(label="shape"),))

    def usage(self, shape: object) -> Slabs:
        self.asked += 1
        return self


def test_a_year_of_idle_time_is_looked_at_once() -> None:
    slabs = Slabs(assigned_bytes=100, used_bytes=50)
    sampler = FragmentationSampler(cast("Any", SimpleNamespace(nodes=[SimpleNamespace(slabs=slabs)])))
    year_s = 365 * 86_400.0
    assert sampler.look(year_s) == year_s
    assert slabs.asked == 1
    assert sampler.usage() == {"shape": {"assigned_bytes": 100, "used_bytes": 50}}


def test_means_are_over_time() -> None:
    slabs = Slabs(assigned_bytes=100, used_bytes=100)
    sampler = FragmentationSampler(cast("Any", SimpleNamespace(nodes=[SimpleNamespace(slabs=slabs)])))
    assert sampler.look(2.5) == 3.0
    slabs.used_bytes = 0
    assert sampler.look(12.0) == 12.0
    assert sampler.usage() == {"shape": {"assigned_bytes": 100, "used_bytes": 100 * 3 / 12}}
