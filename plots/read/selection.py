"""Picks the outcomes that the figures of inner workings (14 to 16) show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aegaeon.run_header import Load, Origin
from plots.curves.outcome import Outcome
from plots.curves.usage import PlotUsageError
from sim.panels import BASE_SLO

TYPICAL_LOAD = Load(32, 0.1)  # of Figures 15(a) and 16 in the artifact
LOADS = (Load(16, 0.1), Load(32, 0.1), Load(64, 0.1), Load(16, 0.5), Load(32, 0.5))
"""Of Figures 14 and 15(b) in the artifact."""


def typical(outcomes: Iterable[Outcome], policy: str, loads: Sequence[Load] | None = None) -> list[Outcome]:
    """The policy's outcomes at these loads, lightest rate first, and all measured ones, whatever the policy.

    Without ``loads``: at those of the artifact, else at all there are. Raises ``PlotUsageError``.
    """
    base = [outcome for outcome in outcomes if _is_base(outcome)]
    latest = {(o.load.rate, o.load.models, str(o.source), o.policy): o for o in base if _is_shown(o, policy)}
    ordered = [outcome for _, outcome in sorted(latest.items())]
    chosen = [o for o in ordered if o.load in (loads or LOADS) or o.source.origin is Origin.MEASURED]
    if not chosen and (loads or not ordered):
        raise PlotUsageError(_nothing(policy, "at any of " + ", ".join(map(load_name, loads or LOADS))))
    return chosen or ordered


def at_load(outcomes: Sequence[Outcome], policy: str, load: Load | None) -> Outcome:
    """The policy's latest outcome at one load. Raises ``PlotUsageError`` that lists the loads there are.

    Without ``load``: at the artifact's, else at the largest there is.
    """
    served = [outcome for outcome in outcomes if _is_base(outcome) and outcome.policy == policy]
    there = [outcome for outcome in served if outcome.load == (load or TYPICAL_LOAD)]
    if not there and load is None:
        there = sorted(served, key=lambda outcome: (outcome.load.models, outcome.load.rate))
    if not there:
        known = sorted({(outcome.load.rate, outcome.load.models) for outcome in served})
        listed = ", ".join(load_name(Load(models, rate)) for rate, models in known) or "none"
        raise PlotUsageError(
            f"{_nothing(policy, 'at ' + load_name(load or TYPICAL_LOAD))}; records there are: {listed}"
        )
    return there[-1]


def load_name(load: Load) -> str:
    """How a load is called on a figure."""
    return f"{load.models} x {load.rate:g}/s"


def _is_base(outcome: Outcome) -> bool:
    scales = (outcome.load.inlen_scale, outcome.load.outlen_scale)
    return outcome.slo == BASE_SLO and scales == (1.0, 1.0) and not outcome.refused


def _is_shown(outcome: Outcome, policy: str) -> bool:
    """A real run tells what it is of; simulated ones are many."""
    return outcome.policy == policy or outcome.source.origin is Origin.MEASURED


def _nothing(policy: str, where: str) -> str:
    return f"no records of {policy} {where}; make them with: make figures"
