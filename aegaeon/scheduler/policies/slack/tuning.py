"""The numbers that the policy ``slack`` is tuned with, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Defaults were chosen on simulated H100 pools near the bound (``benchmark.policies`` shows what each is worth).

    ``turn_s``: long enough that the copy engine keeps up, short enough to be soon back with little credit.
    ``horizon_s``: K of the priority index (``urgency.py``); 0 leaves the earliest due time alone.
    ``recover_s``: a request that is less late than this still counts as urgent, for it soon catches up.
    ``typical_tokens``: a request that has produced this many tokens counts half as much as a new one.
    ``tolerated_share``: of a model's tokens, before it counts for more than what a turn of it gains; or, if that is
    more, ``tolerated_multiple`` of the share that all models together have missed.
    ``fairness``: how much more: by this, times the square of the share of its tokens beyond that.
    ``patience_s``: where all requests of a model are late, its turn comes when it has waited this long.
    ``keep_margin_s``: a model with work is evicted only for one that is this much more urgent.
    ``max_prompt_s``: prompts that may be queued in a turn, as long as they make no member late.
    ``full_step_share``: a batch takes members until a step takes this share of the tightest TPOT.
    ``max_residents``: models on a device, however many fit (the paper: two).
    """

    turn_s: float = 0.25
    horizon_s: float = 2.0
    recover_s: float = 1.0
    typical_tokens: int = 250
    tolerated_share: float = 0.2
    tolerated_multiple: float = 1.5
    fairness: float = 200.0
    patience_s: float = 60.0
    keep_margin_s: float = 1.5
    max_prompt_s: float = 0.5
    full_step_share: float = 0.8
    max_residents: int = 1 << 30

    def __post_init__(self) -> None:
        if self.turn_s <= 0 or self.typical_tokens < 1:
            raise ValueError(f"turns and typical requests must be positive: {self}")
        if min(self.horizon_s, self.recover_s, self.fairness, self.patience_s) < 0:
            raise ValueError(f"times must not be negative: {self}")
