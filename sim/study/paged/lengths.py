"""Lengths of prompts and outputs: of published means, or from a file of real ones."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sim.systems.errors import InputError
from sim.systems.kv.orca import MOST_TOKENS

LengthPairs = NDArray[np.int64]
"""Rows of (prompt, output) tokens."""

_DRAWN = 20_000
_ROUNDS = 6


@dataclass(frozen=True, slots=True)
class LengthSpec:
    """Log-normal lengths; means are published, ``*_spread`` (the deviation of the logarithm) is assumed."""

    prompt_tokens: float
    prompt_spread: float
    output_tokens: float
    output_spread: float

    def draw(self, seed: int = 0) -> LengthPairs:
        """Pairs that end before 2,048 tokens, with the published means."""
        normal = np.random.default_rng(seed).standard_normal((_DRAWN, 2))
        means = np.array([self.prompt_tokens, self.output_tokens])
        shape = np.exp(normal * [self.prompt_spread, self.output_spread])
        scale = means * [math.exp(-(s**2) / 2) for s in (self.prompt_spread, self.output_spread)]
        pairs = _short_ones(shape * scale)
        for _ in range(_ROUNDS):  # leaving long ones out has made the means smaller
            scale = scale * means / pairs.mean(axis=0)
            pairs = _short_ones(shape * scale)
        return pairs


def _short_ones(drawn: NDArray[np.float64]) -> LengthPairs:
    pairs = np.maximum(np.rint(drawn), 1).astype(np.int64)
    return shorter(pairs, MOST_TOKENS)


def shorter(pairs: LengthPairs, tokens: int) -> LengthPairs:
    """The pairs that together have less than so many tokens."""
    chosen: LengthPairs = pairs[pairs.sum(axis=1) < tokens]
    return chosen


DATASETS: Mapping[str, LengthSpec] = MappingProxyType(
    {
        "sharegpt": LengthSpec(161.31, 1.3, 337.99, 0.9),
        "alpaca": LengthSpec(19.31, 0.55, 58.45, 0.95),
        "wmt16": LengthSpec(30.0, 0.5, 30.0, 0.5),  # its means are assumed, too
    }
)


def read_lengths(path: Path) -> LengthPairs:
    """Pairs from a CSV file, plain or gzipped: ``num_prefill_tokens``, ``num_decode_tokens``. Raises ``InputError``."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            rows = [(int(row["num_prefill_tokens"]), int(row["num_decode_tokens"])) for row in csv.DictReader(file)]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: wanted are columns num_prefill_tokens and num_decode_tokens of numbers") from error
    pairs = np.array([row for row in rows if min(row) >= 1], dtype=np.float64).reshape(-1, 2)
    short = _short_ones(pairs)
    if not len(short):
        raise InputError(f"{path}: has no prompt and output of less than {MOST_TOKENS} tokens together")
    return short
