"""Requests that do not go straight through: refused, cancelled, preempted, failed, or on an instance that dies."""

from __future__ import annotations

import pytest

from aegaeon.core.command import (
    Command,
    DropKv,
    EvictKv,
    EvictWeights,
    ExtendTurn,
    RejectReason,
    RejectRequest,
    ReleaseRequest,
    StartTurn,
)
from aegaeon.core.event import InstanceJoined, KvDropped, KvExhausted, RequestArrived, TurnEnded, TurnEndReason
from aegaeon.core.instance import Role
from aegaeon.core.request import Request
from tests.worlds.toy_moves import arrive, step
from tests.worlds.toy_world import BLOCK_BYTES, ToyWorld, make_instance, make_limits, make_models


def world(*roles: Role, slabs: int = 1000, kv_blocks: int = 1000, **limits: float) -> ToyWorld:
    """Instances p0, d1, m2, ... by role and place; one mixed one (m0) by default."""
    toy = ToyWorld(make_models(6), make_limits(slabs, **limits))
    for index, role in enumerate(roles or (Role.MIXED,)):
        toy.join(make_instance(f"{role[0]}{index}", role, kv_blocks))
    toy.deliver_all()
    return toy


def cancel(toy: ToyWorld, request_id: str) -> list[Command]:
    toy.cancel(request_id)
    return toy.deliver_all()


def rejected(commands: list[Command]) -> RejectRequest:
    (command,) = commands
    assert isinstance(command, RejectRequest)
    return command


# -- at the door


def test_an_unknown_model_is_refused_by_name() -> None:
    toy = world()
    request = Request("r", "gpt", 0.0, 1, 1)
    refusal = rejected(toy.scheduler.handle(RequestArrived(request), 0.0))
    assert (refusal.reason, refusal.detail) == (RejectReason.UNKNOWN_MODEL, "no model is called 'gpt'")


def test_a_request_that_the_slab_cache_can_never_hold_is_refused_with_numbers() -> None:
    refusal = rejected(arrive(world(slabs=2), "m0.a", prompt=300, max_new=100))  # 25 blocks; there are 20
    assert refusal.reason is RejectReason.TOO_LARGE
    for number in ("300 prompt tokens", "100 new ones", f"{25 * BLOCK_BYTES} bytes", f"{20 * BLOCK_BYTES} bytes"):
        assert number in refusal.detail


def test_a_request_that_no_instance_can_hold_is_refused_with_numbers() -> None:
    toy = world(Role.PREFILL, Role.DECODE, kv_blocks=24)
    refusal = rejected(arrive(toy, "m0.a", prompt=300, max_new=100))
    assert refusal.reason is RejectReason.TOO_LARGE
    assert f"an instance has room for {24 * BLOCK_BYTES}" in refusal.detail
    assert not isinstance(arrive(toy, "m0.b", prompt=284, max_new=100)[0], RejectRequest)


def test_an_output_limit_beyond_the_models_context_does_not_count() -> None:
    toy = world(slabs=26)  # 260 blocks; the context of 4096 tokens takes 256
    assert isinstance(arrive(toy, "m0.a", prompt=10, max_new=1_000_000)[0], StartTurn)


def test_a_model_that_no_device_holds_is_refused() -> None:
    toy = ToyWorld(make_models(1, weight_bytes=5000), make_limits())
    toy.join(make_instance("m0"))
    refusal = rejected(arrive(toy, "m0.a"))
    assert refusal.reason is RejectReason.MODEL_FAILED
    assert "5000 bytes" in refusal.detail


def test_a_full_queue_answers_with_the_time_it_takes_to_drain() -> None:
    # Two groups with a switch of 0.5 s, and two prefills of 10 ms and 1 ms a token each: 1 + 4 * 2.01 s.
    toy = world(Role.PREFILL, Role.DECODE, max_queued_requests=4)
    arrive(toy, "m0.a", "m0.b", "m1.a", "m1.b", prompt=2000)
    refusal = rejected(arrive(toy, "m2.a"))
    assert refusal.reason is RejectReason.OVERLOADED
    assert refusal.retry_after_s == pytest.approx(1 + 4 * 2.01)
    step(toy, "p0")
    assert arrive(toy, "m2.a2") == []  # one left the queue


def test_what_waited_for_a_role_is_judged_when_it_comes() -> None:
    toy = ToyWorld(make_models(1), make_limits())
    assert arrive(toy, "m0.a", prompt=400) == []
    toy.join(make_instance("small", kv_blocks=20))
    assert rejected(toy.deliver_all()).reason is RejectReason.TOO_LARGE


# -- cancellation, in each state


def test_cancelled_while_it_waits_for_an_instance() -> None:
    toy = ToyWorld(make_models(1), make_limits())
    arrive(toy, "m0.a")
    assert cancel(toy, "m0.a") == [ReleaseRequest("m0.a")]
    toy.join(make_instance("i"))
    assert toy.deliver_all() == []


def test_cancelled_in_the_queue() -> None:
    toy = world(Role.PREFILL)
    arrive(toy, "m0.a", "m1.a", "m2.a")
    assert cancel(toy, "m1.a") == [ReleaseRequest("m1.a")]
    assert StartTurn("p0", 2, "m2", prefill=("m2.a",)) in step(toy, "p0")


def test_cancelled_while_its_prompt_is_processed() -> None:
    toy = world(Role.PREFILL)
    arrive(toy, "m0.a", "m1.a")
    assert cancel(toy, "m0.a") == [ReleaseRequest("m0.a")]
    assert StartTurn("p0", 2, "m1", prefill=("m1.a",)) in step(toy, "p0")


def test_cancelled_between_prefill_and_its_decode_turn() -> None:
    toy = world(Role.PREFILL, Role.DECODE)
    arrive(toy, "m0.a", "m1.a")
    step(toy, "p0", 2)
    assert cancel(toy, "m1.a") == [ReleaseRequest("m1.a")]
    (start,) = step(toy, "d1")
    assert isinstance(start, StartTurn)
    assert (start.decode, start.quota_s) == (("m0.a",), None)


def test_cancelled_in_its_decode_turn() -> None:
    toy = world(Role.PREFILL, Role.DECODE)
    arrive(toy, "m0.a", "m0.b")
    step(toy, "p0", 2)
    assert cancel(toy, "m0.a") == [ReleaseRequest("m0.a")]
    assert cancel(toy, "m0.b") == [ReleaseRequest("m0.b")]
    assert step(toy, "d1") == []
    assert toy.instances["d1"].busy is False


def test_cancelled_while_its_kv_is_dropped_and_after_its_end() -> None:
    toy, turn_id = two_holders()
    said = toy.scheduler.handle(KvExhausted("m0", turn_id, "m0.a"), toy.now_s)
    assert said == [DropKv("m0.b")]
    assert cancel(toy, "m0.b") == [ReleaseRequest("m0.b")]
    assert cancel(toy, "m0.b") == []
    assert cancel(toy, "m0.never") == []


# -- exhaustion


def two_holders(**limits: float) -> tuple[ToyWorld, int]:
    """m0.a and then m0.b decode in one turn."""
    toy = world(**limits)
    arrive(toy, "m0.a")
    step(toy, "m0")
    arrive(toy, "m0.b")
    step(toy, "m0")
    turn = toy.instances["m0"].turn
    assert turn is not None
    assert turn.decoding == ["m0.a", "m0.b"]
    return toy, turn.command.turn_id


def test_the_last_to_arrive_gives_up_its_kv_and_is_recomputed_when_another_has_left() -> None:
    toy, turn_id = two_holders()
    toy.mailbox.append(KvExhausted("m0", turn_id, "m0.a"))
    assert toy.deliver_all() == [DropKv("m0.b")]  # and it is not started again, although the estimate has room
    assert cancel(toy, "m0.a") == [ReleaseRequest("m0.a")]
    (start,) = step(toy, "m0")
    assert start == StartTurn("m0", turn_id + 1, "m0", prefill=("m0.b",))
    toy.run()
    assert toy.unfinished() == []


def test_the_starving_request_is_itself_the_victim_if_it_came_last() -> None:
    toy, turn_id = two_holders()
    assert toy.scheduler.handle(KvExhausted("m0", turn_id, "m0.b"), 0.0) == [DropKv("m0.b")]


def test_one_victim_at_a_time() -> None:
    toy, turn_id = two_holders()
    assert toy.scheduler.handle(KvExhausted("m0", turn_id, "m0.a"), 0.0) == [DropKv("m0.b")]
    assert toy.scheduler.handle(KvExhausted("m0", turn_id, "m0.a"), 0.0) == []


def test_a_report_of_a_turn_that_is_over_is_ignored() -> None:
    toy, turn_id = two_holders()
    assert toy.scheduler.handle(KvExhausted("m0", turn_id - 1, "m0.a"), 0.0) == []


def test_alone_it_gets_one_more_try_and_is_then_refused() -> None:
    toy = world()
    (start,) = arrive(toy, "m0.a")
    toy.mailbox.append(KvExhausted("m0", start.turn_id, "m0.a"))  # type: ignore[union-attr]
    assert toy.deliver_all() == [DropKv("m0.a")]
    (again,) = step(toy, "m0")
    assert again == StartTurn("m0", 2, "m0", prefill=("m0.a",))
    toy.mailbox.append(KvExhausted("m0", 2, "m0.a"))
    assert rejected(toy.deliver_all()).reason is RejectReason.TOO_LARGE


def test_what_is_recomputed_is_as_long_as_was_reported() -> None:
    toy, turn_id = two_holders(max_queued_requests=1)
    toy.scheduler.handle(KvExhausted("m0", turn_id, "m0.a"), 0.0)
    toy.scheduler.handle(KvDropped("m0.b", 300), 0.0)
    toy.mailbox.clear()
    refusal = rejected(arrive(toy, "m1.a"))
    assert refusal.retry_after_s == 1.0  # at least
    toy, turn_id = two_holders(max_queued_requests=1)
    toy.scheduler.handle(KvExhausted("m0", turn_id, "m0.a"), 0.0)
    toy.scheduler.handle(KvDropped("m0.b", 3000), 0.0)
    assert rejected(arrive(toy, "m1.a")).retry_after_s == pytest.approx(3.01)  # its model is there: no switch


def test_a_recomputed_request_does_not_join_a_group_that_arrived_after_it() -> None:
    toy = world(Role.PREFILL, Role.DECODE)
    arrive(toy, "m0.old")
    step(toy, "p0")
    arrive(toy, "m1.running", "m2.late", "m0.late")
    toy.lose("d1", survive=False)
    toy.deliver_all()
    toy.join(make_instance("d2", Role.DECODE))
    said = [command for _ in range(4) for command in step(toy, "p0")]
    assert [c.prefill for c in said if isinstance(c, StartTurn) and c.prefill] == [
        ("m0.old",),
        ("m2.late",),
        ("m0.late",),
    ]


def test_recomputed_requests_go_before_those_that_came_later() -> None:
    toy = world(Role.PREFILL, Role.DECODE)
    arrive(toy, "m0.old")
    step(toy, "p0")
    arrive(toy, "m1.running", "m2.late")
    toy.lose("d1", survive=False)
    toy.deliver_all()
    (start, *_) = [c for c in step(toy, "p0") if isinstance(c, StartTurn)]
    assert start.prefill == ("m0.old",)


# -- races


def test_a_request_that_came_too_late_for_a_turn_is_placed_in_the_next() -> None:
    toy = world(Role.PREFILL, Role.DECODE)
    arrive(toy, "m0.a", max_new=2)
    step(toy, "p0")
    toy.arrive("m0.b", "m0", 16, 400)
    toy.deliver_all()
    toy.step("d1")  # m0.a finishes: the turn is over, but the scheduler does not know yet
    toy.step("p0")
    toy.mailbox.rotate(2)  # it hears of m0.b's prefill first
    assert toy.deliver_all() == [
        ExtendTurn("d1", 2, decode=("m0.b",)),
        StartTurn("d1", 4, "m0", decode=("m0.b",)),
    ]
    toy.run()
    assert toy.unfinished() == []


def test_contexts_of_requests_that_are_gone_are_ignored() -> None:
    toy, turn_id = two_holders()
    cancel(toy, "m0.b")
    ended = TurnEnded("m0", turn_id, TurnEndReason.PREEMPTED, (("m0.a", 20), ("m0.b", 20)))
    (start,) = toy.scheduler.handle(ended, 0.0)
    assert isinstance(start, StartTurn)
    assert start.decode == ("m0.a",)


# -- failures


def test_survivors_decode_elsewhere_and_the_others_are_recomputed() -> None:
    toy = world(Role.PREFILL, Role.DECODE, Role.DECODE)
    arrive(toy, "m0.a", "m0.b", "m0.c")
    step(toy, "p0", 3)
    toy.lose("d1")  # of three members, the first and the third survive
    said = toy.deliver_all()
    assert said == [
        DropKv("m0.b"),
        StartTurn("d2", 3, "m0", decode=("m0.a", "m0.c")),
        StartTurn("p0", 4, "m0", prefill=("m0.b",)),
    ]
    toy.run()
    assert toy.unfinished() == []


def test_requests_that_only_waited_for_a_lost_instance_keep_their_kv() -> None:
    toy = world(Role.PREFILL, Role.DECODE, Role.DECODE)
    arrive(toy, "m0.a", "m1.a", "m2.a")
    step(toy, "p0", 3)  # d1: m0 runs, m2 waits; d2: m1 runs
    toy.lose("d1", survive=False)
    assert [command for command in toy.deliver_all() if isinstance(command, DropKv)] == [DropKv("m0.a")]


def test_groups_of_a_lost_instance_go_to_the_others() -> None:
    toy = world(Role.PREFILL, Role.PREFILL)
    arrive(toy, "m0.a", "m1.a", "m2.a", "m2.b")
    toy.lose("p0")
    said = toy.deliver_all() + step(toy, "p1", 4)
    assert [c.prefill for c in said if isinstance(c, StartTurn)] == [("m0.a",), ("m2.a", "m2.b")]


def test_without_an_instance_everything_waits() -> None:
    toy = world(Role.PREFILL, Role.DECODE)
    arrive(toy, "m0.a", "m0.b")
    step(toy, "p0")
    toy.lose("d1", survive=True)
    toy.lose("p0", survive=True)
    toy.deliver_all()
    toy.join(make_instance("new", Role.MIXED))
    toy.run()
    assert toy.unfinished() == []


def test_a_failed_model_fails_its_requests_until_it_recovers() -> None:
    toy = world(Role.PREFILL, Role.DECODE)
    arrive(toy, "m0.a", "m0.b", "m1.a")
    step(toy, "p0")
    toy.fail_model("m0")
    said = toy.deliver_all()
    assert [c.request_id for c in said if isinstance(c, RejectRequest)] == ["m0.a", "m0.b"]
    assert rejected(arrive(toy, "m0.c")).detail == "toy"
    toy.recover_model("m0")
    toy.deliver_all()
    arrive(toy, "m0.d")
    toy.run()
    assert toy.unfinished() == []
    assert len(toy.rejected) == 3


def test_a_failed_model_leaves_the_devices() -> None:
    toy = world(Role.PREFILL)
    arrive(toy, "m0.a", "m1.a")
    step(toy, "p0")  # m1 runs, m0 is still resident
    toy.fail_model("m0")
    assert EvictWeights("p0", "m0") in toy.deliver_all()


def test_turns_that_fail_are_tried_again_but_not_for_ever() -> None:
    toy = world()
    arrive(toy, "m0.a")
    for _ in range(2):
        toy.fail_turn("m0")
        assert [type(command) for command in toy.deliver_all()] == [EvictKv, EvictWeights, StartTurn]
    toy.fail_turn("m0")
    assert rejected(toy.deliver_all()[2:]).reason is RejectReason.MODEL_FAILED


def test_a_failed_request_leaves_its_turn() -> None:
    toy, _ = two_holders()
    toy.fail_request("m0.b")
    assert toy.deliver_all() == []
    toy.run()
    assert toy.unfinished() == []


def test_what_contradicts_itself_is_an_error_of_the_caller() -> None:
    toy = world()
    arrive(toy, "m0.a")
    with pytest.raises(ValueError, match=r"m0\.a arrived twice"):
        toy.scheduler.handle(RequestArrived(toy.requests["m0.a"].request), 0.0)
    with pytest.raises(ValueError, match="m0 joined twice"):
        toy.scheduler.handle(InstanceJoined(make_instance("m0")), 0.0)
