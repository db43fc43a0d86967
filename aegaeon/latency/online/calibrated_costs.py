"""A ``CostModel`` whose estimates follow the turns that are run, and the scheduler that feeds it.

What it learns from are events, so a log that is fed to a fresh scheduler of the same node gives the same costs and the
same commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aegaeon.core.command import Command
from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.event import Event, TurnEnded
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.turn_timing import TurnTiming
from aegaeon.latency.fit.online_fit import OnlineFit
from aegaeon.scheduler.scheduler import Scheduler


class CalibratedCosts:
    """``base``, with the profiles of ``estimated`` models corrected; measured ones stay as they are."""

    def __init__(self, base: ProfiledCosts, estimated: Iterable[str]) -> None:
        self._base = base
        self._profiles = dict(base.profiles)
        self._parts = {name: _parts(base.profiles[name]) for name in estimated}

    @property
    def profiles(self) -> Mapping[str, LatencyProfile]:
        """The profiles as they are calibrated now."""
        return self._profiles

    def observe(self, timing: TurnTiming) -> None:
        """A turn took that long."""
        parts = self._parts.get(timing.model)
        if parts is None:
            return
        for part, sums in zip(parts, (timing.prefill, timing.decode), strict=True):
            if sums is not None:
                part.observe((sums.steps, sums.first, sums.second), sums.seconds)
        prefill, decode = parts
        self._profiles[timing.model] = LatencyProfile(*prefill.coefficients_s, *decode.coefficients_s)

    def prefill_s(self, model: str, lengths: Iterable[int]) -> float:
        return self._profiles[model].prefill_s(lengths)

    def decode_step_s(self, model: str, context_tokens: int, batch_size: int) -> float:
        return self._profiles[model].decode_step_s(context_tokens, batch_size)

    def switch_s(self, model: str) -> float:
        return self._base.switch_s(model)

    def kv_move_s(self, model: str, tokens: int) -> float:
        return self._base.kv_move_s(model, tokens)


def _parts(profile: LatencyProfile) -> tuple[OnlineFit, OnlineFit]:
    return (
        OnlineFit((profile.p0_s, profile.p1_s, profile.p2_s)),
        OnlineFit((profile.d0_s, profile.d1_s, profile.d2_s)),
    )


class CalibratingScheduler:
    """A ``Scheduler`` that shows its costs each turn that has ended, before it decides anything by it."""

    def __init__(self, scheduler: Scheduler, costs: CalibratedCosts) -> None:
        self._scheduler = scheduler
        self.costs = costs

    def handle(self, event: Event, now_s: float) -> list[Command]:
        if isinstance(event, TurnEnded) and event.timing is not None:
            self.costs.observe(event.timing)
        return self._scheduler.handle(event, now_s)
