"""Tables of fits and of estimates, for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from statistics import median

from rich.table import Table

from aegaeon.latency.estimate.roofline import CALIBRATED, Slowdown
from aegaeon.latency.files.profile_file import ProfileFile, Validity
from aegaeon.latency.fit.slowdown import EstimateError, MeasuredSet, leave_one_out


def fit_table(files: Sequence[ProfileFile]) -> Table:
    """A row per profile: coefficients, errors and where they hold."""
    table = Table(title="Latency profiles")
    table.add_column("device")
    table.add_column("model")
    for name in ("prefill ms", "+ us/token", "error", "decode ms", "+ ns/context", "+ us/request", "error", "cap"):
        table.add_column(name, justify="right")
    table.add_column("prefill tokens, decode batch")
    for file in sorted(files, key=lambda file: (file.device, file.model)):
        table.add_row(*_fit_row(file))
    return table


def _fit_row(file: ProfileFile) -> list[str]:
    found = file.coefficients
    name = f"{file.model} x{file.tp}" if file.tp > 1 else file.model
    return [
        file.device,
        name,
        f"{found.p0_s * 1e3:.2f}",
        f"{found.p1_s * 1e6:.1f}",
        f"{file.fit.prefill_percent:.1f} %" if file.fit else "estimate",
        f"{found.d0_s * 1e3:.2f}",
        f"{found.d1_s * 1e9:.0f}",
        f"{found.d2_s * 1e6:.0f}",
        f"{file.fit.decode_percent:.1f} %" if file.fit else "estimate",
        str(file.batched_token_cap or "-"),
        _span(file.validity) if file.validity else "-",
    ]


def _span(validity: Validity) -> str:
    (low, high), (least, most) = validity.prefill_tokens, validity.decode_batch
    return f"{low}-{high}, {least}-{most}"


def check_table(sets: Sequence[MeasuredSet]) -> Table:
    """A row per measured set: how far an estimate is that has not seen the set, and one that has not seen the device.

    Errors are means of |estimated / measured - 1| over the points of the fit.
    """
    errors = [(leave_one_out(sets, each), leave_one_out(sets, each, whole_device=True)) for each in sets]
    table = Table(title="Roofline estimates against measurements that the calibration has not seen")
    table.add_column("device")
    table.add_column("model")
    for name in ("prefill", "decode", "prefill, new device", "decode, new device"):
        table.add_column(name, justify="right")
    for each, pair in sorted(zip(sets, errors, strict=True), key=lambda row: (row[0].device.name, row[0].model_name)):
        table.add_row(each.device.name, each.model_name, *_percent(pair))
    table.add_section()
    table.add_row("median", "", *_summary(errors, median))
    table.add_row("worst", "", *_summary(errors, max))
    return table


def _percent(pair: tuple[EstimateError, EstimateError]) -> list[str]:
    return [f"{error:.1%}" for each in pair for error in (each.prefill, each.decode)]


def _summary(
    pairs: Sequence[tuple[EstimateError, EstimateError]], summary: Callable[[Sequence[float]], float]
) -> list[str]:
    columns = zip(*[(a.prefill, a.decode, b.prefill, b.decode) for a, b in pairs], strict=True)
    return [f"{summary(column):.1%}" for column in columns]


def slowdown_table(found: Slowdown) -> Table:
    """What a calibration on all sets gives, beside what the package ships."""
    table = Table("", "found", "shipped", title="Real over peak, and seconds that no peak rate knows")
    for field, new, shipped in zip(fields(found), astuple(found), astuple(CALIBRATED), strict=True):
        table.add_row(field.name, f"{new:.3g}", f"{shipped:.3g}")
    return table
