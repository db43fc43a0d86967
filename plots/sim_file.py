"""Reads simulated records: ``sim-model<first>-<last>-rate<r>-scale-<inlen>-<outlen>.json``, in milliseconds.

With one number of models the name begins with ``sim-model<n>-rate``; targets other than the usual ones follow in it.
The artifact's own files are read too. A summary beside it, ``<same name>.summary.json``, says on which device, and has
the metrics and distributions; without it, token times alone give the metrics.

Does not know: figures, real records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aegaeon.core.slo import Slo
from aegaeon.core.timeline import LatencyParts
from aegaeon.metrics import Metric, TokenGaps
from plots.curve import UNKNOWN_DEVICE, Origin, Source
from plots.json_file import read_object, reading
from plots.outcome import Detail, Distribution, Load, Outcome, SlabUse
from plots.style import policy_of

SUMMARY_SUFFIX = ".summary.json"
NUMBER = r"(\d+(?:\.\d+)?)"
NAME = re.compile(
    rf"sim-model(\d+)(?:-(\d+))?-rate{NUMBER}(?:-{NUMBER})?-scale-{NUMBER}-{NUMBER}(?:-ttft{NUMBER}-tpot{NUMBER})?\.json"
)
KEY = re.compile(
    r"\(\s*([\d.]+)\s*,\s*['\"]?([^'\"]+?)['\"]?\s*\)"
)  # (16, sllm), (16, <sim.SeLLMPolicy object at 0x7f>)
DEVICE = re.compile(r"\b[a-z]+\d\w*")
PARTS = ("prefill_wait_s", "prefill_s", "decode_wait_s", "decode_s", "control_s", "block_s")


def read_simulation(path: Path) -> list[Outcome]:
    """An outcome per load and policy; none if the file is not of a synthetic sweep. Raises ``UsageError``."""
    matched = NAME.fullmatch(path.name)
    return list(_Contents(path, matched).outcomes()) if matched else []


class _Contents:
    """The file and its summary, read when they are asked for."""

    def __init__(self, path: Path, name: re.Match[str]) -> None:
        self._path = path
        self._summary_path = path.with_name(path.name.removesuffix(".json") + SUMMARY_SUFFIX)
        self._name = name

    def outcomes(self) -> Iterator[Outcome]:
        with reading(self._path, "points"):
            summaries = self._summary.get("points", {})
            for key in summaries or self._points:
                yield self._outcome(key, summaries.get(key, {}))
            for key, reason in self._summary.get("no_placement", {}).items():
                yield replace(self._outcome(key, {}), refused=reason)

    def _outcome(self, key: str, summary: Mapping[str, Any]) -> Outcome:
        matched = KEY.fullmatch(key)
        if matched is None:
            raise ValueError(f"{key!r} is not (x, policy)")
        return Outcome(
            policy=policy_of(matched[2]),
            source=Source(Origin.SIMULATED, self._device(policy_of(matched[2]))),
            load=self._load(float(matched[1])),
            slo=self._slo,
            gaps=lambda: self._gaps(key),
            detail=lambda: self._detail(summary),
            scores={metric: float(summary[metric]) for metric in Metric if metric in summary},
            bound_load=float(summary["bound_load"]) if "bound_load" in summary else None,
        )

    def _load(self, x: float) -> Load:
        """``x`` counts models, unless the file has one number of models and it is another number."""
        first, last, rate, _, inlen_scale, outlen_scale, _, _ = self._name.groups()
        sweeps_rate = last in (None, first) and x != int(first)
        models, rate_per_s = (int(first), x) if sweeps_rate else (int(x), float(rate))
        return Load.of(models, rate_per_s, float(inlen_scale), float(outlen_scale))

    @property
    def _slo(self) -> Slo:
        ttft_s, tpot_s = self._name.groups()[-2:]
        return Slo(float(ttft_s), float(tpot_s)) if ttft_s else Slo()

    def _device(self, policy: str) -> str:
        """``16 x H100``; from the least to the most devices where a system takes what it needs."""
        label = DEVICE.sub(lambda matched: matched[0].upper(), self._summary.get("device", UNKNOWN_DEVICE))
        count, times, kind = label.partition(" x ")
        used = self._devices_used(policy)
        if times and {str(devices) for devices in used} - {count}:
            label = f"{min(used)} to {max(used)} x {kind}"
        return f"{label}, constants of the {self._summary['compat']}" if self._summary.get("compat") else label

    def _devices_used(self, policy: str) -> list[int]:
        """At each point of a policy, where the summary says so."""
        points = self._summary.get("points", {}).items()
        named = [(policy_of(matched[2]), point) for key, point in points if (matched := KEY.fullmatch(key))]
        return [point["devices"] for name, point in named if name == policy and "devices" in point]

    def _gaps(self, key: str) -> TokenGaps:
        with reading(self._path, f"token times at {key}"):
            return TokenGaps.of(self._points[key].values(), unit_s=1e-3)

    def _detail(self, point: Mapping[str, Any]) -> Detail:
        with reading(self._summary_path, "distributions"):
            parts = point.get("parts")
            return Detail(
                parts=LatencyParts(*(float(parts[name]) for name in PARTS)) if parts else None,
                kv_sync_s=_distribution(point["kv_sync_s"]) if point.get("kv_sync_s") else None,
                switch_s={model: _distribution(values) for model, values in point.get("switch_s", {}).items()},
                slabs={
                    shape: SlabUse(use["assigned_bytes"], use["used_bytes"])
                    for shape, use in point.get("fragmentation", {}).items()
                },
            )

    @cached_property
    def _summary(self) -> dict[str, Any]:
        return read_object(self._summary_path) if self._summary_path.exists() else {}

    @cached_property
    def _points(self) -> dict[str, Any]:
        return read_object(self._path)


def _distribution(quantiles: Mapping[str, float]) -> Distribution:
    """From share -> value."""
    shares = np.array([float(share) for share in quantiles])
    return Distribution(np.array(list(quantiles.values()), dtype=float), shares)
