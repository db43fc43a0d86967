"""Records of a run: the record file, the summary and the table per model.

Does not know: how requests were sent, how figures are drawn.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from aegaeon.core.record import RequestRecord, mean_attainment, mean_qos
from aegaeon.core.slo import Slo

DROPPED = -1.0  # what stands in for times that never came to be, as in the simulator's files


def record_file_name(label: str, slo: Slo) -> str:
    """``run-<label>-ttft<TTFT>-tpot<TPOT>.json``, the targets in seconds."""
    return f"run-{label}-ttft{slo.ttft_s}-tpot{slo.tpot_s}.json"


def record_entry(record: RequestRecord, policy: str | None = None) -> dict[str, Any]:
    """One request in the record file; seconds. Parts are null where the server told no timeline.

    ``policy``: what the server ran; without it the entry has the artifact's fields alone.
    """
    parts = record.parts
    return {
        **({"policy": policy} if policy else {}),
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


def write_records(records: Sequence[RequestRecord], path: Path, policy: str | None) -> None:
    """Write the record file, one request to a line. ``policy``: what the server ran, None where nobody knows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{json.dumps(record.request_id)}: {json.dumps(record_entry(record, policy))}" for record in records)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def failures(records: Sequence[RequestRecord]) -> Counter[str]:
    """How many requests failed of what."""
    return Counter(record.error for record in records if record.error is not None)


def by_model(records: Sequence[RequestRecord]) -> dict[str, list[RequestRecord]]:
    """Records of each model, models in order of their names."""
    groups = defaultdict(list)
    for record in records:
        groups[record.model].append(record)
    return dict(sorted(groups.items()))


def summary_table(records: Sequence[RequestRecord], duration_s: float) -> Table:
    """The run in a few lines."""
    table = Table(title="summary", show_header=False, box=SIMPLE_HEAD, pad_edge=False)
    failed = failures(records).total()
    tokens = sum(len(record.token_times_s) for record in records)
    table.add_row("requests", f"{len(records)}, {failed} failed")
    table.add_row("slo_attainment", f"{mean_attainment(records):.4f}   share of tokens on time")
    table.add_row("qos", f"{mean_qos(records):.4f}   share of service time on target")
    table.add_row("TTFT p50 / p99", f"{_quantiles_ms(_ttfts(records))} ms")
    table.add_row("TPOT p50 / p99", f"{_quantiles_ms(_tpots(records))} ms")
    table.add_row("output", f"{tokens} tokens in {duration_s:.1f} s, {tokens / duration_s:.1f} tokens/s")
    return table


def model_table(records: Sequence[RequestRecord], switches: Mapping[str, int]) -> Table:
    """One row per model. ``switches``: how often an instance changed over to the model."""
    table = Table(title="per model", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    for heading in ("requests", "TTFT (ms)\np50 / p99", "TPOT (ms)\np50 / p99", "on time", "switches\nto it"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model, group in by_model(records).items():
        failed = failures(group).total()
        table.add_row(
            model,
            f"{len(group)}, {failed} failed" if failed else str(len(group)),
            _quantiles_ms(_ttfts(group)),
            _quantiles_ms(_tpots(group)),
            f"{mean_attainment(group):.1%}",
            str(switches.get(model, 0)),
        )
    return table


def _ttfts(records: Sequence[RequestRecord]) -> list[float]:
    return [record.ttft_s for record in records if record.ttft_s is not None]


def _tpots(records: Sequence[RequestRecord]) -> list[float]:
    return [record.tpot_s for record in records if record.tpot_s is not None]


def _quantiles_ms(values_s: Sequence[float]) -> str:
    if not values_s:
        return "-"
    values_ms = np.quantile(values_s, (0.5, 0.99)) * 1e3
    return " / ".join(f"{value_ms:.0f}" if value_ms >= 100 else f"{value_ms:.1f}" for value_ms in values_ms)
