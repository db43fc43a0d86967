"""What a prompt takes where some of its KV is found, and what schedulers make of that."""

from __future__ import annotations

import pytest

from aegaeon.core.command import RejectReason, RejectRequest
from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.event import InstanceJoined, RequestArrived
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.request import Request
from aegaeon.scheduler.facts import model_facts
from aegaeon.scheduler.job import Job
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.registry import make_scheduler
from aegaeon.scheduler.prompt_cost import prompt_s, saved_s

SPEC = ModelSpec("m", 1 << 20, KvShape((LayerKv(1, 8, 8),)), 4096)
PROFILE = LatencyProfile(0.5, 1e-2, 1e-5, 0.01, 0.0, 0.0)
COSTS = ProfiledCosts({"m": SPEC}, {"m": PROFILE}, 1e9, 1e6)


def job(prompt_tokens: int, found_tokens: int) -> Job:
    made = Job(Request("r", "m", 0.0, prompt_tokens, 8), model_facts([SPEC])["m"], (0.0, 0), prompt_tokens)
    made.found_tokens = found_tokens
    return made


def test_the_rest_of_a_prompt_attends_to_what_was_found() -> None:
    assert prompt_s(COSTS, job(1000, 0)) == PROFILE.prefill_s((1000,))
    rest_s = 0.5 + 1e-2 * 200 + 1e-5 * (1000**2 - 800**2)
    assert prompt_s(COSTS, job(1000, 800)) == pytest.approx(rest_s + COSTS.kv_move_s("m", 800))
    assert prompt_s(COSTS, job(1000, 800)) == pytest.approx(
        prompt_s(COSTS, job(1000, 0)) - saved_s(COSTS, "m", 0, 800) + COSTS.kv_move_s("m", 800)
    )


@pytest.mark.parametrize("policy", ["slack", "aegaeon"])
@pytest.mark.parametrize("found_tokens", [0, 992])
def test_who_is_sent_away_is_told_of_what_is_left_to_compute(policy: str, found_tokens: int) -> None:
    limits = PoolLimits(64 << 20, 1 << 20, max_queued_requests=2)
    scheduler = make_scheduler(policy, (SPEC,), COSTS, limits)
    scheduler.handle(InstanceJoined(InstanceSpec("i", Role.MIXED, 32 << 20, 2 << 20)), 0.0)
    refusals = [
        command
        for number in range(8)
        for command in scheduler.handle(RequestArrived(Request(f"r{number}", "m", 0.0, 1000, 8), found_tokens), 0.0)
        if isinstance(command, RejectRequest)
    ]
    assert refusals
    assert {refusal.reason for refusal in refusals} == {RejectReason.OVERLOADED}
    whole_s, rest_s = prompt_s(COSTS, job(1000, 0)), prompt_s(COSTS, job(1000, 992))
    waits_s = [refusal.retry_after_s or 0.0 for refusal in refusals]
    if found_tokens:
        assert max(waits_s) < whole_s
    else:
        assert min(waits_s) > 2 * rest_s
