"""The table of what was measured beside the fits (those are ``aegaeon.latency.report``'s)."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from aegaeon.latency.files.profile_file import ProfileFile


def switching_table(files: Sequence[ProfileFile]) -> Table:
    """A row per model: what lies between a turn's last token and the next one's first, beyond the step itself."""
    table = Table(title="Before the first step of a turn (ms)")
    table.add_column("model")
    for name in ("hand-over", "weights from host cache", "from disk"):
        table.add_column(name, justify="right")
    for file in files:
        if file.switching is not None:
            times_s = (file.switching.hand_over_s, file.switching.from_host_s, file.switching.from_disk_s)
            table.add_row(file.model, *(f"{seconds * 1e3:.2f}" for seconds in times_s))
    return table


def copying_table(files: Sequence[ProfileFile]) -> Table:
    """A row per model: what copies between host and device reach."""
    table = Table(title="Copies (GB/s)")
    table.add_column("model")
    for name in ("weights in", "KV in", "KV out"):
        table.add_column(name, justify="right")
    for file in files:
        if file.copying is not None:
            rates = file.copying
            each = (rates.weights_in_bytes_per_s, rates.kv_in_bytes_per_s, rates.kv_out_bytes_per_s)
            table.add_row(file.model, *(f"{rate / 1e9:.2f}" for rate in each))
    return table
