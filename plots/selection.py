"""Picks the outcomes that the figures of inner workings (14 to 16) show.

Does not know: files, how anything is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from plots.curve import Origin
from plots.outcome import Load, Outcome
from plots.panel import BASE_SLO
from plots.usage import UsageError

LOADS = (Load(16, 0.1), Load(48, 0.1), Load(80, 0.1), Load(16, 0.5), Load(32, 0.5), Load(48, 0.5))


def typical(outcomes: Iterable[Outcome], policy: str) -> list[Outcome]:
    """The policy's outcomes at typical loads, lightest rate first, and all its measured ones. Raises ``UsageError``."""
    latest = {(o.load.rate, o.load.models, o.source): o for o in outcomes if _is_base(o, policy)}
    chosen = [
        outcome
        for _, outcome in sorted(latest.items(), key=lambda item: (item[0][:2], str(item[0][2])))
        if outcome.load in LOADS or outcome.source.origin is Origin.MEASURED
    ]
    if not chosen:
        raise UsageError(_nothing(policy, "at any of " + ", ".join(map(load_name, LOADS))))
    return chosen


def at_load(outcomes: Sequence[Outcome], policy: str, load: Load) -> Outcome:
    """The policy's latest outcome at one load. Raises ``UsageError`` that lists the loads there are."""
    served = [outcome for outcome in outcomes if _is_base(outcome, policy)]
    there = [outcome for outcome in served if outcome.load == load]
    if not there:
        known = sorted({(outcome.load.rate, outcome.load.models) for outcome in served})
        listed = ", ".join(load_name(Load(models, rate)) for rate, models in known) or "none"
        raise UsageError(f"{_nothing(policy, 'at ' + load_name(load))}; records there are: {listed}")
    return there[-1]


def load_name(load: Load) -> str:
    """How a load is called on a figure."""
    return f"{load.models} x {load.rate:g}/s"


def _is_base(outcome: Outcome, policy: str) -> bool:
    scales = (outcome.load.inlen_scale, outcome.load.outlen_scale)
    return outcome.policy == policy and outcome.slo == BASE_SLO and scales == (1.0, 1.0) and not outcome.refused


def _nothing(policy: str, where: str) -> str:
    return f"no records of {policy} {where}; make them with: make figures"
