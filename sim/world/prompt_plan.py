"""Processing one prompt: whole, or in chunks beside the decoding members of its turn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aegaeon.core.profile import LatencyProfile
from aegaeon.scheduler.prompt_cost import rest_s
from sim.world.pace import Pace
from sim.world.request_state import RequestState


@dataclass(slots=True, eq=False)
class PromptPlan:
    """``times[k]`` is the end of step ``k``, which brings the prompt's KV to ``filled[k]`` tokens.

    ``members`` decode in every step. ``steps`` is how many will be taken: ``cut`` lowers it.
    """

    request: RequestState
    start_s: float
    times: NDArray[np.float64]
    filled: list[int]
    steps: int
    boundary_s: float
    members: list[RequestState] = field(default_factory=list)

    def cut(self, now_s: float) -> bool:
        """End with the step that is under way at ``now_s``; True if that is sooner than before."""
        steps = int(self.times.searchsorted(now_s, "left")) + 1
        if steps >= self.steps:
            return False
        self.steps = steps
        self.boundary_s = float(self.times[steps - 1])
        return True


def plan_prompt(profile: LatencyProfile, request: RequestState, start_s: float, pace: Pace) -> PromptPlan:
    """The whole prompt, or what is left of it, in one step, as schedulers reckon it."""
    tokens, found = request.context, request.kv_tokens
    if found:
        alone_s = rest_s(lambda length: profile.prefill_s((length,)), tokens, found)
    else:
        alone_s = profile.p0_s + profile.p1_s * tokens + profile.p2_s * tokens * tokens
    end_s = start_s + pace.step_s(alone_s)
    return PromptPlan(request, start_s, np.array([end_s]), [request.context], 1, end_s)


def plan_chunks(
    profile: LatencyProfile,
    request: RequestState,
    members: list[RequestState],
    chunk_tokens: int,
    start_s: float,
    pace: Pace,
    overlap: float,
) -> PromptPlan:
    """The prompt in chunks, with a token for every decoding member in each step, until one of them has its last.

    A mixed step costs what depends on tokens, the larger of the two fixed costs, and what ``overlap`` leaves of the
    smaller one.
    """
    left = min([member.target - member.generated for member in members], default=1 << 60)
    context = sum([member.context for member in members])
    fixed_s = profile.p0_s
    if members:
        smaller_s, larger_s = sorted((profile.p0_s, profile.d0_s + profile.d2_s * len(members)))
        fixed_s = larger_s + (1.0 - overlap) * smaller_s
    times: list[float] = []
    filled: list[int] = []
    done, now_s = request.kv_tokens, start_s
    while done < request.context and len(times) < left:
        upto = min(done + chunk_tokens, request.context)
        prompt_s = profile.p1_s * (upto - done) + profile.p2_s * (upto * upto - done * done)
        now_s += pace.step_s(fixed_s + prompt_s + profile.d1_s * context)
        times.append(now_s)
        filled.append(upto)
        done, context = upto, context + len(members)
    return PromptPlan(request, start_s, np.array(times), filled, len(times), now_s, members)
