"""How long each batch of a decode round may run."""

from __future__ import annotations

from collections.abc import Sequence

_TARGET_ALPHA = 0.5


def turn_quotas_s(steps_per_deadline: Sequence[float], switch_s: float, max_quota_s: float) -> list[float]:
    """Time quotas of a round's batches in seconds (Aegaeon, SOSP'25, weighted round robin).

    ``steps_per_deadline``: n_i = d / t_i of each batch, its TPOT target over its estimated step time, positive.
    ``switch_s``: c, all switches of a round together, not negative. ``max_quota_s``: QMAX. With S = sum of 1/n_k::

        alpha = max(c / (min n * QMAX) + S, 0.5)        q_i = c / (n_i * (alpha - S))

    In one round batch i makes q_i / t_i tokens, worth q_i * n_i seconds at its target pace; that is c / (alpha - S) for
    every batch, and a round lasts c + sum of q_k = alpha * c / (alpha - S). So alpha is the length of a round over the
    time that its tokens last, and at most 1 when every deadline holds.

    Computed as ``q_i = min(min n * QMAX, c / (0.5 - S)) / n_i``, the second term only where S < 0.5. It is the same
    (alpha - S is the larger of the two terms' denominators), does not cancel when c is small, and has the formula's
    limit at c = 0: switches that cost nothing are made after every step (quota 0) while S < 0.5; else the largest quota
    is QMAX.
    """
    round_share = sum(1.0 / n for n in steps_per_deadline)
    worth_s = min(steps_per_deadline, default=0.0) * max_quota_s
    if round_share < _TARGET_ALPHA:
        worth_s = min(worth_s, switch_s / (_TARGET_ALPHA - round_share))
    return [worth_s / n for n in steps_per_deadline]
