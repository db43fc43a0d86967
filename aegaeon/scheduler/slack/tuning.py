"""The numbers that the policy ``slack`` is tuned with, each with its reason.

Does not know: models, instances.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Defaults were chosen on simulated H100 pools near the bound (``benchmark.policies`` shows what each is worth).

    ``min_turn_s``, ``max_turn_s``: a turn is long enough to be worth its control, short enough to be soon back.
    ``horizon_s``: K of the priority index (``urgency.py``); 0 leaves the earliest due time alone.
    ``recover_s``: a request that is less late than this still counts as urgent, for it soon catches up.
    ``typical_tokens``: a request that has produced this many tokens counts half as much as a new one.
    ``fairness``: a model whose members were all late for long is urgent as if it had this many times more to gain.
    ``patience_s``: where all requests of a model are late, its turn comes when it has waited this long.
    ``load_ahead_s``: the next load is queued when the copy engine will be free within this time.
    ``keep_margin_s``: a model with work is evicted only for one that is this much more urgent.
    ``max_prompt_s``: prompts that may be queued in a turn, as long as they make no member late.
    ``full_step_share``: a batch takes members until a step takes this share of the tightest TPOT.
    ``max_residents``: models on a device, however many fit (the paper: two).
    """

    min_turn_s: float = 0.1
    max_turn_s: float = 0.35
    horizon_s: float = 3.0
    recover_s: float = 2.0
    typical_tokens: int = 250
    fairness: float = 10.0
    patience_s: float = 60.0
    load_ahead_s: float = 0.3
    keep_margin_s: float = 3.0
    max_prompt_s: float = 0.5
    full_step_share: float = 0.8
    max_residents: int = 1 << 30

    def __post_init__(self) -> None:
        if not 0 < self.min_turn_s <= self.max_turn_s:
            raise ValueError(f"turns must be positive, the shortest first: {self}")
        if (
            min(self.horizon_s, self.recover_s, self.fairness, self.patience_s, self.load_ahead_s) < 0
            or self.typical_tokens < 1
        ):
            raise ValueError(f"times must not be negative: {self}")
