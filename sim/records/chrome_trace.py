"""A trace of who ran what when, for Perfetto or ``chrome://tracing``: simulated and real runs alike.

A process per instance with a row each for turns, switches, and KV moves in either direction; turns are coloured by
model. Times are microseconds from the earliest span.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class TraceRow(StrEnum):
    """The rows of an instance, in their order."""

    TURN = "turns"
    SWITCH = "switches"
    KV_IN = "KV in"
    KV_OUT = "KV out"


_ROWS = {row: index for index, row in enumerate(TraceRow)}

# The names of the viewer's reserved colours that can be told apart.
_COLOURS = (
    "thread_state_running",
    "thread_state_iowait",
    "thread_state_runnable",
    "rail_response",
    "rail_animation",
    "rail_idle",
    "rail_load",
    "good",
    "bad",
    "terrible",
    "yellow",
    "olive",
    "cq_build_running",
    "cq_build_passed",
    "cq_build_failed",
    "cq_build_attempt_runnig",
    "vsync_highlight_color",
    "generic_work",
)


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """Something that an instance did from ``start_s`` to ``end_s``, both on one clock. ``detail`` is shown with it."""

    instance_id: str
    row: TraceRow
    model: str
    start_s: float
    end_s: float
    detail: str = ""


def trace_events(spans: Iterable[TraceSpan]) -> Iterator[dict[str, Any]]:
    """The spans in the Trace Event Format (complete events), with names and order of processes and rows."""
    ordered = sorted(spans, key=lambda span: (span.start_s, span.instance_id, span.row, span.end_s))
    origin_s = ordered[0].start_s if ordered else 0.0
    processes = {name: index for index, name in enumerate(sorted({span.instance_id for span in ordered}))}
    for name, process in processes.items():
        yield _metadata("process_name", process, 0, {"name": name})
        yield _metadata("process_sort_index", process, 0, {"sort_index": process})
        for row, thread in _ROWS.items():
            yield _metadata("thread_name", process, thread, {"name": row.value})
            yield _metadata("thread_sort_index", process, thread, {"sort_index": thread})
    for span in ordered:
        yield {
            "name": span.model,
            "cat": span.row.value,
            "ph": "X",
            "pid": processes[span.instance_id],
            "tid": _ROWS[span.row],
            "ts": round((span.start_s - origin_s) * 1e6, 3),
            "dur": round((span.end_s - span.start_s) * 1e6, 3),
            "cname": _colour(span.model),
            "args": {"model": span.model, "detail": span.detail},
        }


def write_trace(spans: Iterable[TraceSpan], path: Path) -> None:
    """Write the trace, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in trace_events(spans))
    partial.write_text(f'{{"displayTimeUnit":"ms","traceEvents":[\n{lines}\n]}}\n', encoding="utf-8")
    partial.replace(path)


def _colour(model: str) -> str:
    """The same for a model in every trace."""
    return _COLOURS[zlib.crc32(model.encode()) % len(_COLOURS)]


def _metadata(name: str, process: int, thread: int, values: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": process, "tid": thread, "args": values}
