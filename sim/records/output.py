"""The files of a sweep, as the SOSP'25 artifact names and fills them, and a summary beside each.

``sim-model<first>-<last>-rate<r>-scale-<inlen>-<outlen>.json``, with one number of models ``sim-model<n>-rate...``::

    {"(<x>, <policy>)": {"<request id>": [ttft_ms, gap_ms, ...], "<dropped request>": [-1]}}

``x`` is the number of models, or the rate where that is what is swept: ``sim-model40-rate0.05-0.7-scale-1.0-1.0.json``.
Other SLOs than the default are named after the scales: ``...-1.0-1.0-ttft5.0-tpot0.05.json``. A trace's file is
``sim-trace-<name>.json``, that of sessions ``sim-sessions<first>-<last>-rate<r>-...``.

``<same name>.summary.json``::

    {the header that ``aegaeon.run_header`` describes, "seed": .., "compat": null | "artifact",
     "constants": {..}, "no_placement": {"(<x>, <policy>)": "<why>"},
     "points": {"(<x>, <policy>)": {
        "slo_attainment", "qos", "worst_model", "busy_share": shares; "requests", "dropped", "switches", "turns",
        "events", "tokens", "devices", "disk_reads": counts; "makespan_s"; "errors": {reason: count};
        "parts": {the six parts of ``LatencyParts``: mean seconds}; "kv_sync_s": {share: seconds};
        "switch_s": {kind of model: {share: seconds}};
        "fragmentation": {block shape: {"assigned_bytes", "used_bytes"}};
        "prefix_cache": where KV was reused, {"policy", "prompt_tokens", "found_tokens", "hit_rate",
                        "evicted_bytes", "kept_bytes", "disk_tokens": read from disk};
        "bound_load": with --bound, what the bound allows is 1}}}

Quantiles are written as share of all values -> the value that they do not exceed. Files are written beside their place
and then renamed: whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegaeon.core.slo import Slo
from aegaeon.run_header import SUMMARY_SUFFIX


@dataclass(frozen=True, slots=True)
class PointOutput:
    """One system at one load: its summary and token times, or why there are none. ``body``: JSON text."""

    key: str
    summary: Mapping[str, Any]
    body: str = "{}"
    no_placement: str | None = None


def point_key(x: float, policy: str) -> str:
    """``(<x>, <policy>)``."""
    return f"({x:g}, {policy})"


def sweep_file_name(models: Sequence[int], rates: Sequence[float], inlen: float, outlen: float, slo: Slo) -> str:
    """The artifact's name of a sweep over ``models`` or ``rates``."""
    suffix = "" if slo == Slo() else f"-ttft{slo.ttft_s}-tpot{slo.tpot_s}"
    return f"sim-model{_span(models)}-rate{_span(rates)}-scale-{inlen}-{outlen}{suffix}.json"


def _span(values: Sequence[float]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]}-{values[-1]}"


def texts_body(texts: Mapping[str, str]) -> str:
    """Token times by request id as a JSON object; ids in order of arrival."""
    ordered = sorted(texts, key=lambda request_id: (len(request_id), request_id))
    return "{" + ", ".join([f'"{request_id}": {texts[request_id]}' for request_id in ordered]) + "}"


def write_sweep(path: Path, points: Iterable[PointOutput], header: Mapping[str, Any]) -> None:
    """Write both files of a sweep, points in the given order."""
    points = list(points)
    placed = [point for point in points if point.no_placement is None]
    summary = {
        **header,
        "no_placement": {point.key: point.no_placement for point in points if point.no_placement is not None},
        "points": {point.key: point.summary for point in placed},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    body = path.with_name(f".{path.name}.partial")
    digest = path.with_name(f".{path.stem}.summary.partial")
    try:
        with body.open("w", encoding="utf-8") as file:
            file.write("{\n")
            for index, point in enumerate(placed):
                file.write(f"{',' if index else ''}\n{json.dumps(point.key)}: {point.body}")
            file.write("\n}\n")
        digest.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        body.replace(path)
        digest.replace(path.with_name(f"{path.stem}{SUMMARY_SUFFIX}"))
    finally:
        body.unlink(missing_ok=True)
        digest.unlink(missing_ok=True)
