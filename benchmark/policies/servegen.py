"""A market composed of ServeGen's clients: each model has the rate, the burstiness and the lengths of a real client.

A model takes one window of 600 s of one client whose rate is of the cold tail that pooling is for (at most 1.13 req/s);
gaps between requests are drawn from the window's distribution, which gives the shape, so that their mean is the rate's.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import gamma
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aegaeon.workload import MIN_OUTPUT_TOKENS, Arrival

MOST_RATE_PER_S = 1.13
ARRIVALS = (
    "servegen_arrivals_m-small_week1.csv.gz",
    "servegen_arrivals_m-mid_week1.csv.gz",
    "servegen_arrivals_deepseek-r1_day1.csv.gz",
)
LENGTHS = "servegen_lengths_m-mid_m-small_day3.csv.gz"
MAX_CONTEXT_TOKENS = 32768


@dataclass(frozen=True, slots=True)
class Window:
    """Requests of a client in 600 s: ``weibull`` or else gamma gaps of this ``shape``."""

    rate_per_s: float
    weibull: bool
    shape: float

    def times_s(self, duration_s: float, random: np.random.Generator) -> NDArray[np.float64]:
        """Arrivals in a span of the window; the first gap is cut at a random place."""
        count = int(4 * self.rate_per_s * duration_s) + 64
        if self.weibull:
            gaps = random.weibull(self.shape, count) / gamma(1.0 + 1.0 / self.shape)
        else:
            gaps = random.gamma(self.shape, 1.0 / self.shape, count)
        times_s = np.cumsum(gaps / self.rate_per_s)
        times_s -= random.random() * times_s[0]
        return times_s[times_s < duration_s]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Prompt and output lengths of a client in six hours, each with its probability."""

    inputs: NDArray[np.int64]
    input_shares: NDArray[np.float64]
    outputs: NDArray[np.int64]
    output_shares: NDArray[np.float64]

    def draw(self, count: int, random: np.random.Generator) -> list[tuple[int, int]]:
        """Independent pairs (prompt, output) within the context limit."""
        outputs = np.maximum(MIN_OUTPUT_TOKENS, random.choice(self.outputs, count, p=self.output_shares))
        inputs = np.clip(random.choice(self.inputs, count, p=self.input_shares), 1, MAX_CONTEXT_TOKENS - outputs)
        return list(zip(inputs.tolist(), outputs.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class ServeGen:
    """``clients``: the windows of each; ``lengths``: of clients that need not be the same ones."""

    clients: Sequence[Sequence[Window]]
    lengths: Sequence[Lengths]

    @classmethod
    def open(cls, folder: Path) -> ServeGen:
        """Read the published files of a folder."""
        clients = [windows for name in ARRIVALS for windows in _read_windows(folder / name)]
        return cls(clients, _read_lengths(folder / LENGTHS))

    def arrivals(self, models: int, duration_s: float, seed: int) -> list[Arrival]:
        """A market of ``models``, by time; more models leave those that there are unchanged."""
        found = [arrival for index in range(models) for arrival in self._of_model(index, duration_s, seed)]
        return sorted(found, key=lambda arrival: (arrival.time_s, arrival.model))

    def _of_model(self, index: int, duration_s: float, seed: int) -> list[Arrival]:
        random = np.random.default_rng((seed, index))
        windows = self.clients[int(random.integers(len(self.clients)))]
        times_s = windows[int(random.integers(len(windows)))].times_s(duration_s, random)
        lengths = self.lengths[int(random.integers(len(self.lengths)))].draw(len(times_s), random)
        name = f"client_{index:03d}"
        return [
            Arrival(round(time_s, 3), name, inputs, outputs)
            for time_s, (inputs, outputs) in zip(times_s.tolist(), lengths, strict=True)
        ]


def _read_windows(path: Path) -> list[list[Window]]:
    clients: dict[str, list[Window]] = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            window = Window(float(row["rate"]), row["pattern"] == "Weibull", float(row["arg1"]))
            if window.rate_per_s <= MOST_RATE_PER_S:
                clients[row["client"]].append(window)
    return list(clients.values())


def _read_lengths(path: Path) -> list[Lengths]:
    columns: dict[tuple[str, ...], dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = (row["model"], row["client"], row["timestamp"])
            columns[key][row["field"]].append((int(row["value"]), float(row["prob"])))
    return [
        Lengths(*_marginal(fields["input_tokens"]), *_marginal(fields["output_tokens"])) for fields in columns.values()
    ]


def _marginal(pairs: Sequence[tuple[int, float]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    shares = np.array([share for _, share in pairs])
    return np.array([value for value, _ in pairs], dtype=np.int64), shares / shares.sum()
