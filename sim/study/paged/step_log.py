"""What an engine looked like in each iteration."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]

COLUMNS = (
    "time_s",
    "input_tokens",
    "swapped_in_blocks",
    "swapped_out_blocks",
    "preempted",
    "waiting",
    "running",
    "swapped",
    "used_blocks",
    "used_host_blocks",
    "logical_blocks",
    "logical_tokens",
    "tokens",
    "reserved_tokens",
    "useless_tokens",
)
"""Of an iteration: when it begins; then counts, as they are when it has been decided who takes part."""


@dataclass(slots=True)
class StepLog:
    """A row for each iteration."""

    rows: list[tuple[float, ...]] = field(default_factory=list)

    def columns(self, first_s: float = 0.0, last_s: float = float("inf")) -> dict[str, Column]:
        """By name, of the iterations that begin between two times."""
        table = np.array(self.rows, dtype=np.float64).reshape(-1, len(COLUMNS))
        table = table[(table[:, 0] >= first_s) & (table[:, 0] <= last_s)]
        return dict(zip(COLUMNS, table.T, strict=True))
