"""Records of a run: the record file, the summary and the table per model."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from aegaeon.cli.gpus import gpus
from aegaeon.core.record import RequestRecord
from aegaeon.core.slo import Slo
from aegaeon.metrics import Percentiles, RunMetrics, by_model
from aegaeon.run_header import SUMMARY_SUFFIX, Load, Origin, RunHeader, SystemRun

RUN = "run"  # what the only run of a record file is called
DROPPED = -1.0  # what stands in for times that never came to be, as in the simulator's files


def record_file_name(label: str, slo: Slo) -> str:
    """``run-<label>-ttft<TTFT>-tpot<TPOT>.json``, the targets in seconds."""
    return f"run-{label}-ttft{slo.ttft_s}-tpot{slo.tpot_s}.json"


def record_entry(record: RequestRecord) -> dict[str, Any]:
    """One request in the record file, as the artifact has it; seconds. Parts are null where the server told no
    timeline."""
    parts = record.parts
    return {
        "ttft": record.ttft_s if record.completed else DROPPED,
        "qos": record.qos,
        "per_token": list(record.per_token_s) if record.completed else [DROPPED],
        "prefill_wait_time": parts.prefill_wait_s if parts else None,
        "prefill_time": parts.prefill_s if parts else None,
        "decode_wait_time": parts.decode_wait_s if parts else None,
        "decode_time": parts.decode_s if parts else None,
        "control_overhead": parts.control_s if parts else None,
        "block_overhead": parts.block_s if parts else None,
    }


def write_records(records: Sequence[RequestRecord], path: Path, header: RunHeader) -> None:
    """Write the record file, one request to a line, and its header beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{json.dumps(record.request_id)}: {json.dumps(record_entry(record))}" for record in records)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    summary = path.with_name(f"{path.stem}{SUMMARY_SUFFIX}")
    summary.write_text(json.dumps(header.plain(), indent=1) + "\n", encoding="utf-8")


def local_device() -> str:
    """What a pool that is started on this machine runs on."""
    found, _ = gpus()
    return f"{len(found)} x {found[0].name}" if found else f"{os.cpu_count()}-core CPU"


def run_header(policy: str | None, load: Load | None, slo: Slo, device: str | None) -> RunHeader:
    """The header of a real run; None for what nobody knows."""
    return RunHeader.here(Origin.MEASURED, device, slo, {RUN: SystemRun(policy, load)})


def failures(records: Sequence[RequestRecord]) -> Counter[str]:
    """How many requests failed of what."""
    return Counter(record.error for record in records if record.error is not None)


def summary_table(records: Sequence[RequestRecord], duration_s: float) -> Table:
    """The run in a few lines."""
    table = Table(title="summary", show_header=False, box=SIMPLE_HEAD, pad_edge=False)
    seen = RunMetrics.of(records)
    table.add_row("requests", f"{seen.requests}, {seen.failed} failed")
    table.add_row("slo_attainment", f"{seen.slo_attainment:.4f}   share of tokens on time")
    table.add_row("qos", f"{seen.qos:.4f}   share of service time on target")
    table.add_row("TTFT p50 / p99", f"{_p50_p99_ms(seen.ttft_s)} ms")
    table.add_row("TPOT p50 / p99", f"{_p50_p99_ms(seen.tpot_s)} ms")
    table.add_row("output", f"{seen.tokens} tokens in {duration_s:.1f} s, {seen.tokens / duration_s:.1f} tokens/s")
    return table


def model_table(records: Sequence[RequestRecord], switches: Mapping[str, int]) -> Table:
    """One row per model. ``switches``: how often an instance changed over to the model."""
    table = Table(title="per model", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    for heading in ("requests", "TTFT (ms)\np50 / p99", "TPOT (ms)\np50 / p99", "on time", "switches\nto it"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model, group in by_model(records).items():
        seen = RunMetrics.of(group)
        table.add_row(
            model,
            f"{seen.requests}, {seen.failed} failed" if seen.failed else str(seen.requests),
            _p50_p99_ms(seen.ttft_s),
            _p50_p99_ms(seen.tpot_s),
            f"{seen.slo_attainment:.1%}",
            str(switches.get(model, 0)),
        )
    return table


def _p50_p99_ms(times_s: Percentiles) -> str:
    values_ms = [seconds * 1e3 for seconds in (times_s.p50, times_s.p99)]
    if isnan(values_ms[0]):
        return "-"
    return " / ".join(f"{value_ms:.0f}" if value_ms >= 100 else f"{value_ms:.1f}" for value_ms in values_ms)
