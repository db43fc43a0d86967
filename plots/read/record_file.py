"""Reads a file of records, real or simulated: ``<name>.json`` has token times, ``<name>.summary.json`` beside it the
header (``aegaeon.run_header``) and, of a simulation, metrics and distributions. Without a header the file's name says
what is in it (``plots.read.artifact_files``); without a summary token times alone give the metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aegaeon.core.slo import Slo
from aegaeon.core.timeline import LatencyParts
from aegaeon.metrics import Metric, TokenGaps
from aegaeon.run_header import SUMMARY_SUFFIX, Load, Origin, RunHeader
from plots.curves.curve import UNKNOWN_DEVICE, Source
from plots.curves.outcome import Detail, Distribution, Outcome, SlabUse
from plots.curves.usage import PlotUsageError
from plots.read.artifact_files import imported_header, result_header
from plots.read.json_file import read_object, reading

_DEVICE = re.compile(r"\b[a-z]+\d\w*")
_POINT_PARTS = ("prefill_wait_s", "prefill_s", "decode_wait_s", "decode_s", "control_s", "block_s")
_REQUEST_PARTS = (
    "prefill_wait_time",
    "prefill_time",
    "decode_wait_time",
    "decode_time",
    "control_overhead",
    "block_overhead",
)


def read_record_file(path: Path, measured_on: str | None = None) -> list[Outcome]:
    """An outcome for each system and synthetic load; none where the file holds no records.

    ``measured_on``: what real runs ran on that do not say it. Raises ``PlotUsageError``.
    """
    file = _RecordFile(path, measured_on)
    with reading(path, "header"):
        header = RunHeader.read(file.summary) or imported_header(path, file.summary)
    return list(file.outcomes(header)) if header else []


def read_artifact_results(path: Path, device: str, slos: Sequence[Slo]) -> list[Outcome]:
    """A result for Figure 17 that the artifact comes with, as an outcome for each of the targets it is scored by."""
    file = _RecordFile(path, device)
    headers = [header for slo in slos if (header := result_header(path, slo)) is not None]
    return [outcome for header in headers for outcome in file.outcomes(header)]


class _RecordFile:
    """A file of records and its summary, read when they are asked for."""

    def __init__(self, path: Path, measured_on: str | None) -> None:
        self._path = path
        self._summary_path = path.with_name(path.name.removesuffix(".json") + SUMMARY_SUFFIX)
        self._measured_on = measured_on

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Empty where there is none."""
        return read_object(self._summary_path) if self._summary_path.exists() else {}

    @cached_property
    def _content(self) -> dict[str, Any]:
        return read_object(self._path)

    def outcomes(self, header: RunHeader) -> Iterator[Outcome]:
        """The outcomes of the runs whose load is a synthetic one."""
        for name, run in header.runs.items():
            if run.load is None:
                continue
            if run.policy is None:
                raise PlotUsageError(f"{self._path} does not say which policy ran: move it away")
            yield self._outcome(header, name, run.policy, run.load)

    def _outcome(self, header: RunHeader, name: str, policy: str, load: Load) -> Outcome:
        simulated = header.origin is Origin.SIMULATED
        point = self.summary.get("points", {}).get(name, {})
        with reading(self._summary_path, "points"):
            return Outcome(
                policy=policy,
                source=Source(header.origin, self._device(header, policy)),
                load=load,
                slo=header.slo,
                gaps=lambda: self._simulated_gaps(name) if simulated else self._measured_gaps(),
                detail=lambda: self._simulated_detail(point) if simulated else self._measured_detail(),
                scores={metric: float(point[metric]) for metric in Metric if metric in point},
                bound_load=float(point["bound_load"]) if "bound_load" in point else None,
                refused=self.summary.get("no_placement", {}).get(name, ""),
            )

    def _device(self, header: RunHeader, policy: str) -> str:
        """``16 x H100``; from the least to the most devices where a system takes what it needs."""
        if header.origin is Origin.MEASURED:
            return header.device or self._measured_on or UNKNOWN_DEVICE
        label = _DEVICE.sub(lambda matched: matched[0].upper(), header.device or UNKNOWN_DEVICE)
        count, times, kind = label.partition(" x ")
        points = self.summary.get("points", {})
        own = [points[name] for name, run in header.runs.items() if run.policy == policy and name in points]
        used = [point["devices"] for point in own if "devices" in point]
        if times and {str(devices) for devices in used} - {count}:
            label = f"{min(used)} to {max(used)} x {kind}"
        return f"{label}, constants of the {self.summary['compat']}" if self.summary.get("compat") else label

    def _simulated_gaps(self, name: str) -> TokenGaps:
        with reading(self._path, f"token times at {name}"):
            return TokenGaps.of(self._content[name].values(), unit_s=1e-3)

    def _measured_gaps(self) -> TokenGaps:
        with reading(self._path, "per_token times"):
            return TokenGaps.of([request["per_token"] for request in self._content.values()], unit_s=1.0)

    def _simulated_detail(self, point: Mapping[str, Any]) -> Detail:
        with reading(self._summary_path, "distributions"):
            parts = point.get("parts")
            return Detail(
                parts=LatencyParts(*(float(parts[name]) for name in _POINT_PARTS)) if parts else None,
                kv_sync_s=_distribution(point["kv_sync_s"]) if point.get("kv_sync_s") else None,
                switch_s={model: _distribution(values) for model, values in point.get("switch_s", {}).items()},
                slabs={
                    shape: SlabUse(use["assigned_bytes"], use["used_bytes"])
                    for shape, use in point.get("fragmentation", {}).items()
                },
            )

    def _measured_detail(self) -> Detail:
        """The detail of the requests that completed and told a timeline."""
        with reading(self._path, "latency parts"):
            told = [[each[part] for part in _REQUEST_PARTS] for each in self._content.values() if each["ttft"] >= 0]
            parts_s = np.array([parts for parts in told if None not in parts], dtype=float)
        if not len(parts_s):
            return Detail()
        return Detail(LatencyParts(*map(float, parts_s.mean(axis=0))), Distribution.of(parts_s[:, -2:].sum(axis=1)))


def _distribution(quantiles: Mapping[str, float]) -> Distribution:
    """The distribution that quantiles, share -> value, stand for."""
    shares = np.array([float(share) for share in quantiles])
    return Distribution(np.array(list(quantiles.values()), dtype=float), shares)
