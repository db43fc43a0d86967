"""What the steps of one turn took: sums over its steps, enough to fit a linear latency model to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepSums:
    """Sums over steps of one kind. ``first`` and ``second`` go with the profile's coefficients 1 and 2.

    Prefill: tokens of the chunks, and their end^2 - start^2 (positions in the prompt). Decode: context tokens of all
    members, and members.
    """

    steps: int
    first: int
    second: int
    seconds: float

    def __post_init__(self) -> None:
        if min(self.steps, self.first, self.second) < 1 or self.seconds <= 0:
            raise ValueError(f"sums over at least one step must be positive: {self}")


@dataclass(frozen=True, slots=True)
class TurnTiming:
    """Steps of ``model`` that only processed a prompt, and those that only decoded; None where there was none."""

    model: str
    prefill: StepSums | None
    decode: StepSums | None
