"""Reads the records of a real run: ``run-<models>-<rate>-<inlen>-<outlen>-ttft<TTFT>-tpot<TPOT>.json``, in seconds.

Each record says which ``policy`` ran. The artifact's do not: there is one.

Does not know: figures, simulated records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aegaeon.core.slo import Slo
from aegaeon.core.timeline import LatencyParts
from aegaeon.metrics import TokenGaps
from plots.curve import Origin, Source
from plots.json_file import read_object, reading
from plots.outcome import Detail, Distribution, Load, Outcome
from plots.usage import PlotUsageError

NUMBER = r"(\d+(?:\.\d+)?)"
NAME = re.compile(rf"run-(\d+)-{NUMBER}-{NUMBER}-{NUMBER}-ttft{NUMBER}-tpot{NUMBER}\.json")
ARTIFACT_NAME = re.compile(rf"(\d+)-{NUMBER}\.json")  # of the results for Figure 17 that the artifact comes with
OUR_IDS = re.compile(r".+-\d{5}")  # of requests in records of this project
POLICY = "aegaeon"  # of records that do not say it: the artifact's, which has no other
PARTS = ("prefill_wait_time", "prefill_time", "decode_wait_time", "decode_time", "control_overhead", "block_overhead")


def read_run(path: Path, device: str) -> Outcome | None:
    """What the file holds, ``device`` being what it was measured on; None if it is not the run of a synthetic workload.

    Raises ``PlotUsageError`` if the file holds no records.
    """
    matched = NAME.fullmatch(path.name)
    if matched is None:
        return None
    models, *numbers = matched.groups()
    rate, inlen_scale, outlen_scale, ttft_s, tpot_s = map(float, numbers)
    load = Load.of(int(models), rate, inlen_scale, outlen_scale)
    return _outcome(_Contents(path), device, load, Slo(ttft_s, tpot_s))


def read_artifact_run(path: Path, device: str, slos: Sequence[Slo]) -> list[Outcome]:
    """``<models>-<rate>.json``, as an outcome for each of the targets it is scored by; none if it is no such file."""
    matched = ARTIFACT_NAME.fullmatch(path.name)
    if matched is None:
        return []
    contents = _Contents(path)
    load = Load.of(int(matched[1]), float(matched[2]))
    return [_outcome(contents, device, load, slo) for slo in slos]


def _outcome(contents: _Contents, device: str, load: Load, slo: Slo) -> Outcome:
    return Outcome(
        policy=contents.policy,
        source=Source(Origin.MEASURED, device),
        load=load,
        slo=slo,
        gaps=lambda: contents.gaps,
        detail=lambda: contents.detail,
    )


class _Contents:
    """What is in the file, read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _requests(self) -> Mapping[str, Mapping[str, Any]]:
        return read_object(self._path)

    @cached_property
    def policy(self) -> str:
        """What the server ran."""
        with reading(self._path, "policy"):
            stated = {str(request["policy"]) for request in self._requests.values() if "policy" in request}
        if len(stated) > 1:
            raise PlotUsageError(f"{self._path} has records of several policies: {', '.join(sorted(stated))}")
        if not stated and any(map(OUR_IDS.fullmatch, self._requests)):
            raise PlotUsageError(f"{self._path} does not say which policy ran (earlier versions did not): move it away")
        return stated.pop() if stated else POLICY

    @cached_property
    def gaps(self) -> TokenGaps:
        with reading(self._path, "per_token times"):
            return TokenGaps.of([request["per_token"] for request in self._requests.values()], unit_s=1.0)

    @cached_property
    def detail(self) -> Detail:
        """Of the requests that completed and told a timeline."""
        with reading(self._path, "latency parts"):
            told = [[request[part] for part in PARTS] for request in self._requests.values() if request["ttft"] >= 0]
            parts_s = np.array([parts for parts in told if None not in parts], dtype=float)
        if not len(parts_s):
            return Detail()
        return Detail(LatencyParts(*map(float, parts_s.mean(axis=0))), Distribution.of(parts_s[:, -2:].sum(axis=1)))
