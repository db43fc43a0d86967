"""What the real pool did, kept in a file, so that the simulated side can be compared anew without measuring again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from aegaeon.core.record import RequestRecord
from aegaeon.core.slo import Slo
from benchmark.fidelity.turns import TurnCosts


@dataclass(frozen=True, slots=True)
class RealRun:
    """What the clients of one load saw. ``own_cores``: compute of the pool and its clients; the rest is others'."""

    records: list[RequestRecord]
    duration_s: float
    own_cores: float
    other_cores: float

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """Read back."""
        return cls(**{**plain, "records": [_record(record) for record in plain["records"]]})


@dataclass(frozen=True, slots=True)
class MeasuredLoad:
    """``runs``, one a round; ``way_s`` (of a request to the pool and back) and ``turns`` of the loads beside them.

    ``slowness``: what steps took in each run, over what ``turns`` says.
    """

    way_s: float
    turns: TurnCosts
    slowness: list[float]
    runs: list[RealRun]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """Read back."""
        runs = [RealRun.of(run) for run in plain["runs"]]
        return cls(plain["way_s"], TurnCosts(**plain["turns"]), plain["slowness"], runs)


@dataclass(frozen=True, slots=True)
class Measured:
    """The loads by rate."""

    loads: Mapping[float, MeasuredLoad]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps([[rate, asdict(load)] for rate, load in self.loads.items()]), "utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls({rate: MeasuredLoad.of(load) for rate, load in json.loads(path.read_bytes())})


def _record(plain: Mapping[str, Any]) -> RequestRecord:
    """A record without the parts of its life: they are not compared."""
    times = tuple(plain["token_times_s"])
    return RequestRecord(**{**plain, "token_times_s": times, "slo": Slo(**plain["slo"]), "parts": None})
