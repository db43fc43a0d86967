"""What a file of records says of itself: what ran, on what, under which load, for which targets, and whose code it was.
What a file of results says: what it is of, of which day and whose code.

It stands in ``<name>.summary.json``, beside the token times in ``<name>.json``; the names are for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

import aegaeon
from aegaeon.core.slo import Slo
from aegaeon.source_commit import source_commit

FORMAT = "aegaeon-records-1"
SUMMARY_SUFFIX = ".summary.json"


class Origin(StrEnum):
    """Whether a clock or a simulator gave the times."""

    SIMULATED = "simulated"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Load:
    """A synthetic workload: so many models, requests/s of each, and factors on prompt and output lengths."""

    models: int
    rate: float
    inlen_scale: float = 1.0
    outlen_scale: float = 1.0

    @classmethod
    def of(cls, models: int, rate: float, inlen_scale: float = 1.0, outlen_scale: float = 1.0) -> Self:
        """A load with the rate that is meant: ``3 * 0.05`` is 0.15000000000000002 in names of the artifact's files."""
        return cls(models, round(rate, 6), inlen_scale, outlen_scale)


@dataclass(frozen=True, slots=True)
class SystemRun:
    """One system under one load; None where nobody knows the policy, or where the workload is no synthetic one."""

    policy: str | None
    load: Load | None


@dataclass(frozen=True, slots=True)
class RunHeader:
    """``runs`` by the names that they have in the file. ``device``: what they ran on, None where nobody knows."""

    origin: Origin
    device: str | None
    slo: Slo
    runs: Mapping[str, SystemRun]
    version: str
    commit: str

    @classmethod
    def here(cls, origin: Origin, device: str | None, slo: Slo, runs: Mapping[str, SystemRun]) -> Self:
        """The header of runs that this very code has made."""
        return cls(origin, device, slo, runs, aegaeon.__version__, source_commit())

    def plain(self) -> dict[str, Any]:
        """The header as it stands in a file."""
        return {
            "format": FORMAT,
            "world": self.origin.value,
            "device": self.device,
            "slo": asdict(self.slo),
            "version": self.version,
            "commit": self.commit,
            "runs": {name: asdict(run) for name, run in self.runs.items()},
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Self | None:
        """A summary's header, if any. Raises ``ValueError``, ``TypeError`` or ``KeyError`` for a wrong one."""
        if plain.get("format") != FORMAT:
            return None
        return cls(
            Origin(plain["world"]),
            plain["device"],
            Slo(**plain["slo"]),
            {name: _run(run) for name, run in plain["runs"].items()},
            plain["version"],
            plain["commit"],
        )


def _run(plain: Mapping[str, Any]) -> SystemRun:
    return SystemRun(plain["policy"], Load(**plain["load"]) if plain["load"] is not None else None)


def result_header(benchmark: str) -> dict[str, str]:
    """What a file of results of this very code begins with, made now."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).date().isoformat(),
        "version": aegaeon.__version__,
        "commit": source_commit(),
    }
