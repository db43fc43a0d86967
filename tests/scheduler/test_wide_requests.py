"""Requests that take several rows of a step: what they count for."""

from __future__ import annotations

import pytest

from aegaeon.core.command import Command, ExtendTurn, RejectReason, RejectRequest, StartTurn
from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.event import (
    Event,
    InstanceJoined,
    RequestArrived,
    RequestFinished,
    RequestPrefilled,
    TurnEnded,
    TurnEndReason,
)
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.request import Request
from aegaeon.scheduler.facts import model_facts
from aegaeon.scheduler.job import Job
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.registry import find_policy

SHAPE = KvShape((LayerKv(1, 1, 1),))
SPEC = ModelSpec("m", 1000, SHAPE, 4096)
ROWS = 8


class Played:
    """A policy on one instance of eight rows, told that all its commands are carried out."""

    def __init__(self, policy: str) -> None:
        costs = ProfiledCosts({"m": SPEC}, {"m": LatencyProfile(0.001, 1e-6, 0.0, 0.001, 0.0, 0.0)}, 1e9, 1e9)
        limits = PoolLimits(1 << 20, 1 << 12)
        self._scheduler = find_policy(policy).checked().scheduler((SPEC,), costs, limits, ())
        self.now_s = 0.0
        self.tell(InstanceJoined(InstanceSpec("i", Role.MIXED, 1 << 20, 1 << 20, max_batch_requests=ROWS)))

    def tell(self, event: Event) -> list[Command]:
        self.now_s += 1e-4
        return self._scheduler.handle(event, self.now_s)

    def arrive(self, name: str, width: int) -> list[Command]:
        return self.tell(RequestArrived(Request(name, "m", self.now_s, 40, 100, width=width)))


@pytest.mark.parametrize("policy", ["slack", "sllm", "aegaeon"])
def test_steps_have_no_more_rows_than_the_instance(policy: str) -> None:
    """Who has decoded in a turn is finished with it."""
    played = Played(policy)
    widths = {f"r{index}": width for index, width in enumerate((3, 3, 3, 1, 4, 2))}
    commands = [command for name, width in widths.items() for command in played.arrive(name, width)]
    prefilled: set[str] = set()
    over: set[str] = set()
    while over != widths.keys():
        starts = [command for command in commands if isinstance(command, StartTurn | ExtendTurn)]
        assert starts, f"nobody goes on; only {sorted(over)} are over"
        members = {name for one in starts for name in (*one.prefill, *one.decode)}
        keeps, turn_id = getattr(starts[0], "keep_prefilled", True), starts[0].turn_id
        decoding = members if keeps else members & prefilled
        assert sum(widths[name] for name in decoding) <= ROWS
        new = sorted(members - prefilled)
        prefilled |= members
        commands = [said for name in new for said in played.tell(RequestPrefilled("i", turn_id, name, 41))]
        for name in sorted(decoding):
            commands += played.tell(RequestFinished("i", turn_id, name))
        over |= decoding
        commands += played.tell(TurnEnded("i", turn_id, TurnEndReason.QUOTA))
        played.now_s += 1.0


@pytest.mark.parametrize("policy", ["slack", "sllm", "aegaeon"])
def test_who_is_wider_than_any_instance_is_refused(policy: str) -> None:
    (refusal,) = Played(policy).arrive("wide", ROWS + 1)
    assert isinstance(refusal, RejectRequest)
    assert refusal.reason is RejectReason.TOO_WIDE
    assert "9 beams" in refusal.detail


def test_the_whole_blocks_of_a_prompt_count_once_and_all_others_for_each_row() -> None:
    job = Job(Request("r", "m", 0.0, 40, 24, width=4), model_facts([SPEC])["m"], (0.0, 0), 40)
    assert [job.blocks_for(tokens) for tokens in (16, 32, 40, 48, 49)] == [1, 2, 6, 6, 10]
    assert (job.kv_blocks, job.max_blocks) == (10, 10)
    assert [SHAPE.forked_tokens(40, tokens, 4) for tokens in (16, 32, 40, 49)] == [16, 32, 96, 160]
