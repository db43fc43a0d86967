"""Reads the records of a real run: ``run-<models>-<rate>-<inlen>-<outlen>-ttft<TTFT>-tpot<TPOT>.json``, in seconds.

Does not know: figures, simulated records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aegaeon.core.slo import Slo
from aegaeon.core.timeline import LatencyParts
from plots.curve import Origin, Source
from plots.json_file import read_object, reading
from plots.outcome import Detail, Distribution, Load, Outcome
from plots.token_gaps import TokenGaps

NUMBER = r"(\d+(?:\.\d+)?)"
NAME = re.compile(rf"run-(\d+)-{NUMBER}-{NUMBER}-{NUMBER}-ttft{NUMBER}-tpot{NUMBER}\.json")
POLICY = "aegaeon"  # what a pool runs; its records do not name it
PARTS = ("prefill_wait_time", "prefill_time", "decode_wait_time", "decode_time", "control_overhead", "block_overhead")


def read_run(path: Path, device: str) -> Outcome | None:
    """What the file holds, ``device`` being what it was measured on; None if it is not the run of a synthetic workload.

    Raises ``UsageError``, when it is asked for its contents, if they are not records.
    """
    matched = NAME.fullmatch(path.name)
    if matched is None:
        return None
    models, *numbers = matched.groups()
    contents = _Contents(path)
    rate, inlen_scale, outlen_scale, ttft_s, tpot_s = map(float, numbers)
    return Outcome(
        policy=POLICY,
        source=Source(Origin.MEASURED, device),
        load=Load(int(models), rate, inlen_scale, outlen_scale),
        slo=Slo(ttft_s, tpot_s),
        gaps=lambda: contents.gaps,
        detail=lambda: contents.detail,
    )


class _Contents:
    """What is in the file, read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _requests(self) -> list[Mapping[str, Any]]:
        return list(read_object(self._path).values())

    @cached_property
    def gaps(self) -> TokenGaps:
        with reading(self._path, "per_token times"):
            return TokenGaps.of([request["per_token"] for request in self._requests], unit_s=1.0)

    @cached_property
    def detail(self) -> Detail:
        """Of the requests that completed and told a timeline."""
        with reading(self._path, "latency parts"):
            told = [[request[part] for part in PARTS] for request in self._requests if request["ttft"] >= 0]
            parts_s = np.array([parts for parts in told if None not in parts], dtype=float)
        if not len(parts_s):
            return Detail()
        return Detail(LatencyParts(*map(float, parts_s.mean(axis=0))), Distribution.of(parts_s[:, -2:].sum(axis=1)))
