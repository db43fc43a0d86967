"""Measured prefill and decode times of one model on one device, and the CSV files they come in."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aegaeon.latency.estimate.errors import LatencyError
from aegaeon.latency.fit.part_fit import Sample

COLUMNS = ("model", "device", "input_len", "batch_size", "prefill_ms", "decode_step_ms")


@dataclass(frozen=True, slots=True)
class Measurement:
    """A batch of ``batch_size`` prompts of ``input_tokens`` each, prefilled together and then decoded."""

    input_tokens: int
    batch_size: int
    prefill_s: float
    decode_step_s: float

    def __post_init__(self) -> None:
        if self.input_tokens < 1 or self.batch_size < 1:
            raise ValueError(f"lengths and batches start at 1, got {self.input_tokens} and {self.batch_size}")
        if not (0 < self.prefill_s < math.inf and 0 < self.decode_step_s < math.inf):
            raise ValueError(f"times must be positive, got {self.prefill_s} s and {self.decode_step_s} s")

    @property
    def batched_tokens(self) -> int:
        """Tokens of all prompts of the batch."""
        return self.input_tokens * self.batch_size

    @property
    def prefill(self) -> Sample:
        """All prompts at once: 1, sum(len), sum(len^2)."""
        squares = self.batch_size * self.input_tokens**2
        return Sample((1.0, self.batched_tokens, squares), self.prefill_s, self.batched_tokens)

    @property
    def decode(self) -> Sample:
        """A step of the batch: 1, sum(context), batch size."""
        return Sample((1.0, self.batched_tokens, self.batch_size), self.decode_step_s, self.batch_size)


def read_measurements(path: Path) -> dict[tuple[str, str], list[Measurement]]:
    """The sets of a CSV file with the columns ``COLUMNS``, by (model, device). Raises ``LatencyError``."""
    sets: dict[tuple[str, str], list[Measurement]] = {}
    for name, measurement in _rows(path):
        sets.setdefault(name, []).append(measurement)
    if not sets:
        raise LatencyError(f"{path} has no rows")
    return sets


def _rows(path: Path) -> Iterator[tuple[tuple[str, str], Measurement]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            _check_columns(path, reader.fieldnames)
            for row in reader:
                yield _row(path, reader.line_num, row)
    except (OSError, UnicodeDecodeError) as error:
        raise LatencyError(f"cannot read the measurements in {path}: {error}") from None


def _check_columns(path: Path, found: Sequence[str] | None) -> None:
    missing = [column for column in COLUMNS if column not in (found or ())]
    if missing:
        raise LatencyError(f"{path} lacks the columns {', '.join(missing)}; it needs {', '.join(COLUMNS)}")


def _row(path: Path, line: int, row: Mapping[str, str]) -> tuple[tuple[str, str], Measurement]:
    try:
        times_s = (float(row["prefill_ms"]) / 1e3, float(row["decode_step_ms"]) / 1e3)
        measurement = Measurement(int(row["input_len"]), int(row["batch_size"]), *times_s)
    except (TypeError, ValueError) as error:
        raise LatencyError(f"{path}, line {line}: {error}") from None
    return (row["model"], row["device"]), measurement
