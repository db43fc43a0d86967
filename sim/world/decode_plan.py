"""A run of decode steps in closed form: when each step ends and who takes part from which step on.

Step times follow the model's profile: ``d0 + d1 * (sum of contexts) + d2 * batch``; the sum grows by the batch size
with every step, so a run with unchanged members is one cumulative sum. Members whose KV is still on its way join at the
first step that begins after it has landed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aegaeon.core.profile import LatencyProfile
from sim.world.pace import Pace
from sim.world.request_state import RequestState

_STEPS = np.arange(4096, dtype=np.float64)


@dataclass(slots=True, eq=False)
class DecodePlan:
    """``times[k]`` is the end of step ``k``; ``members[i]`` takes part from step ``joins[i]`` on.

    ``steps`` is how many of them will be taken: ``cut`` lowers it.
    """

    start_s: float
    times: NDArray[np.float64]
    members: list[RequestState]
    joins: list[int]
    steps: int
    boundary_s: float

    def cut(self, now_s: float) -> bool:
        """End with the step that is under way at ``now_s``; True if that is sooner than before."""
        steps = int(self.times.searchsorted(now_s, "left")) + 1
        if steps >= self.steps:
            return False
        self.steps = steps
        self.boundary_s = float(self.times[steps - 1])
        return True

    def limit(self, steps: int) -> None:
        """Take at most this many steps (at least one)."""
        if steps < self.steps:
            self.steps = steps
            self.boundary_s = float(self.times[steps - 1])


def plan_decode(
    profile: LatencyProfile,
    members: Sequence[RequestState],
    start_s: float,
    pace: Pace,
    until_s: float | None,
    quota_s: float | None,
) -> DecodePlan:
    """Steps until the first member has its last token, or the first that ends at or after ``until_s``.

    ``quota_s`` (where ``until_s`` is None): the end is that long after the first step.
    """
    early = [member for member in members if member.arrive_s <= start_s]
    if len(early) == len(members):
        return _steady_plan(profile, early, start_s, pace, until_s, quota_s)
    late = sorted((member for member in members if member.arrive_s > start_s), key=lambda member: member.arrive_s)
    return _ramp_plan(profile, early, late, start_s, pace, until_s, quota_s)


def _steady_plan(
    profile: LatencyProfile,
    members: list[RequestState],
    start_s: float,
    pace: Pace,
    until_s: float | None,
    quota_s: float | None,
) -> DecodePlan:
    steps = min([member.target - member.generated for member in members])
    context = sum([member.context for member in members])
    times = _steady_times(profile, context, len(members), start_s, pace, steps, until_s, quota_s)
    return DecodePlan(start_s, times, members, [0] * len(members), len(times), float(times[-1]))


def _ramp_plan(
    profile: LatencyProfile,
    members: list[RequestState],
    late: list[RequestState],
    start_s: float,
    pace: Pace,
    until_s: float | None,
    quota_s: float | None,
) -> DecodePlan:
    """Step by step until everybody is there, then in one go."""
    times: list[float] = []
    joins = [0] * len(members)
    now_s = start_s
    context = sum([member.context for member in members])
    left = min([member.target - member.generated for member in members], default=1 << 60)
    arriving, arrived = len(late), 0
    while arrived < arriving:
        while arrived < arriving and late[arrived].arrive_s <= now_s:
            member = late[arrived]
            members.append(member)
            joins.append(len(times))
            context += member.context
            left = min(left, member.target - member.generated)
            arrived += 1
        if not members:
            now_s = late[arrived].arrive_s
            continue
        if arrived == arriving:
            break
        batch = len(members)
        now_s += pace.step_s(profile.d0_s + profile.d1_s * context + profile.d2_s * batch)
        times.append(now_s)
        context += batch
        left -= 1
        if until_s is None and quota_s is not None:
            until_s = now_s + quota_s
        if left == 0 or (until_s is not None and now_s >= until_s):
            return DecodePlan(start_s, np.array(times), members, joins, len(times), now_s)
    steady = _steady_times(profile, context, len(members), now_s, pace, left, until_s, quota_s)
    whole = np.concatenate([times, steady]) if times else steady
    return DecodePlan(start_s, whole, members, joins, len(whole), float(whole[-1]))


def _steady_times(
    profile: LatencyProfile,
    context: int,
    batch: int,
    start_s: float,
    pace: Pace,
    steps: int,
    until_s: float | None,
    quota_s: float | None,
) -> NDArray[np.float64]:
    """Ends of the steps of a batch that stays as it is."""
    alone_s = profile.d0_s + profile.d1_s * context + profile.d2_s * batch
    slope_s = profile.d1_s * batch
    first_s = pace.step_s(alone_s)
    if until_s is None and quota_s is not None:
        until_s = start_s + first_s + quota_s
    if until_s is not None and slope_s >= 0.0:
        steps = min(steps, max(1, int((until_s - start_s) / first_s) + 2))
    ramp = _STEPS[:steps] if steps <= len(_STEPS) else np.arange(steps, dtype=np.float64)
    durations = pace.steps_s(alone_s, slope_s, ramp)
    durations[0] += start_s
    times: NDArray[np.float64] = np.add.accumulate(durations, out=durations)
    if until_s is not None and times[-1] > until_s:
        times = times[: int(times.searchsorted(until_s, "left")) + 1]
    return times
