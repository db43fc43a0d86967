"""Weighted round robin: where prefilled requests go, how rounds are packed, who runs for how long."""

from __future__ import annotations

import pytest

from aegaeon.core.command import Command, EndTurn, EvictKv, EvictWeights, ExtendTurn, LoadWeights, StartTurn
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.model import ModelSpec
from aegaeon.core.slo import Slo
from aegaeon.scheduler.facts import model_facts
from aegaeon.scheduler.job import JobPhase
from aegaeon.scheduler.policies.paper.batch import Batch
from aegaeon.scheduler.policies.paper.decode_round import DecodeRound
from aegaeon.scheduler.policies.paper.paper_job import PaperJob
from tests.worlds import toy_moves
from tests.worlds.toy_moves import starts
from tests.worlds.toy_world import BLOCK_BYTES, SMALL, ToyWorld, make_costs, make_instance, make_limits, make_models


def world(*decodes: InstanceSpec, models: list[ModelSpec] | None = None, step_s: float = 0.02) -> ToyWorld:
    """One prefill instance, and the given decode instances (or one)."""
    models = models or make_models(6)
    toy = ToyWorld(models, make_limits(), make_costs(models, step_s=step_s))
    for spec in (make_instance("p", Role.PREFILL), *(decodes or (make_instance("d0", Role.DECODE),))):
        toy.join(spec)
    toy.deliver_all()
    return toy


def prefill(toy: ToyWorld, *requests: str, prompt: int = 16, max_new: int = 400) -> list[Command]:
    """Let requests called ``<model>.<anything>`` arrive one by one and be prefilled; what the decode side is told."""
    said: list[Command] = []
    for name in requests:
        toy.arrive(name, name.split(".")[0], prompt, max_new)
        toy.deliver_all()
        while toy.instances["p"].turn is not None:
            toy.step("p")
            said += toy.deliver_all()
    return [command for command in said if getattr(command, "instance_id", "p") != "p"]


def end_turn(toy: ToyWorld, instance_id: str = "d0") -> list[Command]:
    return toy_moves.end_turn(toy, instance_id)


def test_the_only_batch_has_no_limit_and_is_joined_while_it_runs() -> None:
    toy = world()
    assert prefill(toy, "m0.a") == [StartTurn("d0", 2, "m0", decode=("m0.a",))]
    assert prefill(toy, "m0.b") == [ExtendTurn("d0", 2, decode=("m0.b",))]


def test_a_request_joins_a_batch_of_its_model_or_the_instance_with_the_fewest() -> None:
    toy = world(make_instance("d0", Role.DECODE), make_instance("d1", Role.DECODE))
    said = prefill(toy, "m0.a", "m1.a", "m1.b", "m0.b")
    assert [(c.instance_id, c.decode) for c in said if isinstance(c, StartTurn | ExtendTurn)] == [
        ("d0", ("m0.a",)),
        ("d1", ("m1.a",)),
        ("d1", ("m1.b",)),
        ("d0", ("m0.b",)),
    ]


def test_another_model_ends_the_unlimited_turn_and_a_round_with_quotas_begins() -> None:
    # Steps of 20 ms against a target of 100 ms: n = 5. Two batches: S = 0.4, c = 2 * 0.5 s, alpha = 0.5,
    # q = 1 / (5 * 0.1) = 2 s.
    toy = world()
    prefill(toy, "m0.a")
    assert prefill(toy, "m1.a") == [EndTurn("d0", 2), LoadWeights("d0", "m1")]
    (first,) = end_turn(toy)  # m0 goes on first, so its KV stays
    assert first == StartTurn("d0", 4, "m0", decode=("m0.a",), quota_s=pytest.approx(2.0))
    evict, second = end_turn(toy)
    assert evict == EvictKv("d0", ("m0.a",))
    assert second == StartTurn("d0", 5, "m1", decode=("m1.a",), quota_s=pytest.approx(2.0))


def test_the_quota_follows_the_tightest_target_of_a_batch() -> None:
    # m0: 100 ms, m1: 40 ms, steps of 20 ms: n = 5 and 2. S = 0.7, alpha = 1/(2*4) + 0.7 = 0.825,
    # q0 = 1 / (5 * 0.125) = 1.6 s, q1 = 1 / (2 * 0.125) = 4 s.
    models = [*make_models(1), ModelSpec("m1", 100, SMALL, 4096, Slo(tpot_s=0.04))]
    toy = world(models=models)
    prefill(toy, "m0.a", "m1.a")
    (first,) = starts(end_turn(toy))
    (second,) = starts(end_turn(toy))
    assert (first.model, first.quota_s) == ("m0", pytest.approx(1.6))
    assert (second.model, second.quota_s) == ("m1", pytest.approx(4.0))


def test_a_batch_that_comes_during_a_round_has_its_turn_at_the_rounds_end() -> None:
    toy = world()
    prefill(toy, "m0.a", "m1.a")
    assert [start.model for start in starts(end_turn(toy))] == ["m0"]  # the round of two begins
    assert prefill(toy, "m2.a") == []
    (last_of_two,) = starts(end_turn(toy))
    (came_later,) = starts(end_turn(toy))
    assert (last_of_two.model, came_later.model) == ("m1", "m2")
    assert came_later.quota_s == last_of_two.quota_s
    assert [start.model for start in starts(end_turn(toy))] == ["m0"]  # the round of three
    assert [start.model for start in starts(end_turn(toy))] == ["m1"]
    assert [start.model for start in starts(end_turn(toy))] == ["m2"]


def test_a_request_that_comes_before_its_batchs_turn_takes_part_in_it() -> None:
    toy = world()
    prefill(toy, "m0.a", "m1.a")
    end_turn(toy)
    assert prefill(toy, "m1.b") == []
    assert [start.decode for start in starts(end_turn(toy))] == [("m1.a", "m1.b")]


def test_the_first_later_batch_of_another_model_is_prefetched() -> None:
    toy = world()
    said = prefill(toy, "m0.a", "m1.a", "m2.a")
    assert [command for command in said if isinstance(command, LoadWeights)] == [LoadWeights("d0", "m1")]
    end_turn(toy)
    # m1 runs, m2 comes in for m0; after m2's batch the next round begins with m0's.
    assert end_turn(toy)[1:] == [
        StartTurn("d0", 6, "m1", decode=("m1.a",), quota_s=pytest.approx(4.0)),
        EvictWeights("d0", "m0"),
        LoadWeights("d0", "m2"),
    ]
    assert [type(command) for command in end_turn(toy)] == [EvictKv, StartTurn, EvictWeights, LoadWeights]


def test_a_batch_whose_requests_are_gone_is_not_prefetched() -> None:
    toy = world()
    prefill(toy, "m0.a", "m1.a", "m2.a", "m3.a")
    end_turn(toy)
    toy.cancel("m2.a")
    toy.deliver_all()
    assert [command for command in end_turn(toy) if isinstance(command, LoadWeights)] == [LoadWeights("d0", "m3")]


def test_when_one_batch_remains_it_runs_without_limit_and_keeps_its_kv() -> None:
    toy = world()
    prefill(toy, "m0.a", "m1.a")
    end_turn(toy)
    toy.cancel("m1.a")
    toy.deliver_all()
    assert end_turn(toy) == [StartTurn("d0", 5, "m0", decode=("m0.a",))]


def test_a_full_batch_makes_room_for_a_second_one_of_its_model() -> None:
    toy = world(make_instance("d0", Role.DECODE, max_batch_requests=2))
    said = prefill(toy, "m0.a", "m0.b", "m0.c")
    assert said[-1] == EndTurn("d0", 2)
    first, second = starts(end_turn(toy)) + starts(end_turn(toy))
    assert (first.decode, second.decode) == (("m0.a", "m0.b"), ("m0.c",))


def test_requests_go_on_to_finish_and_the_last_leaves_an_idle_pool() -> None:
    toy = world()
    prefill(toy, "m0.a", "m1.a", "m0.b", max_new=20)
    toy.run()
    assert toy.unfinished() == []


# -- repacking, on its own


def job(model: str, arrival_s: float, blocks: int = 1) -> PaperJob:
    """A decoding request whose KV counts as ``blocks`` blocks."""
    facts = model_facts(make_models(4))[model]
    toy = ToyWorld(make_models(4), make_limits())
    toy.now_s = arrival_s
    toy.arrive(f"{model}@{arrival_s:g}", model, 1, max_new=4000)
    request = toy.requests[f"{model}@{arrival_s:g}"].request
    return PaperJob(request, facts, (arrival_s, 0), (blocks - 1) * 16, phase=JobPhase.DECODING)


def repacked(jobs: list[PaperJob], kv_blocks: int, max_batch_requests: int = 256) -> list[Batch]:
    decode = DecodeRound(make_instance("d", Role.DECODE, kv_blocks, max_batch_requests=max_batch_requests))
    decode.repack(jobs)
    return list(decode)


def names(batches: list[Batch]) -> list[list[str]]:
    return [list(batch.members) for batch in batches]


def test_models_come_by_their_first_request_and_their_batches_side_by_side() -> None:
    jobs = [job("m1", 3.0), job("m0", 2.0), job("m1", 1.0), job("m0", 4.0)]
    assert names(repacked(jobs, kv_blocks=100)) == [["m1@1", "m1@3"], ["m0@2", "m0@4"]]
    assert names(repacked(jobs, kv_blocks=100, max_batch_requests=1)) == [["m1@1"], ["m1@3"], ["m0@2"], ["m0@4"]]


def test_batches_are_filled_in_order_of_arrival_up_to_the_device() -> None:
    jobs = [job("m0", 1.0, blocks=4), job("m0", 2.0, blocks=5), job("m0", 3.0, blocks=2), job("m0", 4.0, blocks=7)]
    batches = repacked(jobs, kv_blocks=10)
    assert names(batches) == [["m0@1", "m0@2"], ["m0@3", "m0@4"]]
    assert [batch.kv_bytes for batch in batches] == [9 * BLOCK_BYTES, 9 * BLOCK_BYTES]


def test_a_batch_has_a_member_whatever_its_size() -> None:
    assert names(repacked([job("m0", 1.0, blocks=20), job("m0", 2.0)], kv_blocks=10)) == [["m0@1"], ["m0@2"]]
