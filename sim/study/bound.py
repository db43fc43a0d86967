"""The least work that a workload is: no schedule on any number of devices can do with less.

A decode step reads the weights once whatever its batch, so the least work is the fewest steps. The *lazy* schedule of a
model steps only when a token is due, and lets every request that has arrived take part (its early tokens are credit).

No schedule that is never late steps less: let the lazy schedule make step k at ``t_k``, for a token of request r that
arrived after j lazy steps. It gave r one token in each of the k - 1 - j steps since, so r needs k - j steps between its
arrival and ``t_k`` in any schedule; and, by induction, any schedule has made j steps when r arrives. So by any time
``T`` at least the lazy steps up to ``T`` must be made, and every token that is due by then: with the profile's
``d0`` for a step, ``d1 * context + d2`` for each token that is due, and the prefill of each prompt whose first token is
due, their sum is the demand ``D(T)``. ``G`` devices meet every deadline only if ``D(T) <= G * T`` for all T. Switches,
KV and memory cost nothing here.

``shared_prefill`` (default): a prompt may share the reading of the weights with a decode step (chunked prefill), so its
fixed cost ``p0`` does not count; else every prompt costs all of its profile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aegaeon.core.profile import LatencyProfile
from aegaeon.core.request import Request
from sim.study.scenario import Scenario

Times = NDArray[np.float64]
Arrivals = Sequence[tuple[Request, int]]
"""Requests of one model, by time of arrival, each with the tokens that it produces."""


@dataclass(frozen=True, slots=True)
class Demand:
    """``work_s[i]`` device-seconds must be done by ``due_s[i]`` (ascending); what is due together stands together."""

    due_s: Times
    work_s: Times

    def least_load(self, devices: float) -> float:
        """``max D(T) / (G * T)``: above 1 some token must be late on this many devices."""
        if not len(self.due_s):
            return 0.0
        return float(np.max(self.work_s / (devices * self.due_s)))

    def least_devices(self) -> float:
        """The number of devices (not rounded) below which some token must be late."""
        return self.least_load(1.0)

    def curve(self) -> tuple[Times, Times]:
        """``T`` and the devices that demand up to ``T`` needs, for a figure."""
        return self.due_s, self.work_s / self.due_s


def least_demand(scenario: Scenario, shared_prefill: bool = True) -> Demand:
    """The demand of a scenario, summed over its models."""
    by_model: dict[str, list[tuple[Request, int]]] = defaultdict(list)
    for request, new_tokens in scenario.arrivals:
        by_model[request.model].append((request, new_tokens))
    profiles: Mapping[str, LatencyProfile] = {name: scenario.models[name].profile for name in by_model}
    pieces = [
        piece
        for name, arrivals in by_model.items()
        for piece in _model_demand(profiles[name], arrivals, shared_prefill)
    ]
    return _cumulated(pieces)


def lazy_steps_s(arrivals: Arrivals) -> list[float]:
    """When the lazy schedule of one model makes each of its decode steps; the first token is no step, but a prefill."""
    steps: list[float] = []
    active: list[list[float]] = []  # of each request: next token due, time per token, tokens left
    upcoming = 0
    while upcoming < len(arrivals) or active:
        due_s = min((row[0] for row in active), default=float("inf"))
        if upcoming < len(arrivals) and arrivals[upcoming][0].arrival_s <= due_s:
            request, new_tokens = arrivals[upcoming]
            upcoming += 1
            if new_tokens > 1:
                slo = request.slo
                active.append([slo.due_s(request.arrival_s, 1), slo.tpot_s, new_tokens - 1.0])
            continue
        steps.append(due_s)
        for row in active:
            row[0] += row[1]
            row[2] -= 1.0
        active = [row for row in active if row[2] > 0.0]
    return steps


def _model_demand(profile: LatencyProfile, arrivals: Arrivals, shared_prefill: bool) -> Iterable[tuple[Times, Times]]:
    """Pieces (due, work) of one model: its steps, then each request's prompt and tokens."""
    steps_s = np.array(lazy_steps_s(arrivals))
    yield steps_s, np.full(len(steps_s), max(0.0, profile.d0_s))
    fixed_s = profile.p0_s if shared_prefill else 0.0
    for request, new_tokens in arrivals:
        slo, prompt = request.slo, request.prompt_tokens
        prefill_s = max(0.0, profile.prefill_s((prompt,)) - fixed_s)
        yield np.array([slo.due_s(request.arrival_s, 0)]), np.array([prefill_s])
        index = np.arange(1, new_tokens, dtype=np.float64)
        token_s = np.maximum(0.0, profile.d1_s * (prompt + index) + profile.d2_s)
        yield request.arrival_s + slo.ttft_s + index * slo.tpot_s, token_s


def _cumulated(pieces: Sequence[tuple[Times, Times]]) -> Demand:
    if not pieces:
        return Demand(np.empty(0), np.empty(0))
    due_s = np.concatenate([due for due, _ in pieces])
    work_s = np.concatenate([work for _, work in pieces])
    order = np.argsort(due_s, kind="stable")
    due_s, total_s = due_s[order], np.cumsum(work_s[order])
    last = np.append(due_s[1:] > due_s[:-1], True)  # all that is due at one time counts at that time
    return Demand(due_s[last], total_s[last])
