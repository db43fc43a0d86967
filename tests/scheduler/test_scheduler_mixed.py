"""Instances that do both: prefill goes first, decode has its share."""

from __future__ import annotations

import pytest

from aegaeon.core.command import EndTurn, EvictKv, EvictWeights, ExtendTurn, LoadWeights, StartTurn
from aegaeon.core.instance import Role
from tests.worlds.toy_moves import arrive, end_turn
from tests.worlds.toy_world import ToyWorld, make_instance, make_limits, make_models


def world(instances: int = 1, **spec: int) -> ToyWorld:
    toy = ToyWorld(make_models(6), make_limits())
    for index in range(instances):
        toy.join(make_instance(f"i{index}", Role.MIXED, **spec))
    toy.deliver_all()
    return toy


def test_one_instance_prefills_a_request_and_goes_on_decoding_it() -> None:
    toy = world()
    assert arrive(toy, "m0.a") == [StartTurn("i0", 1, "m0", prefill=("m0.a",))]
    assert end_turn(toy) == [StartTurn("i0", 2, "m0", decode=("m0.a",), keep_prefilled=True)]
    assert end_turn(toy) == []
    assert toy.unfinished() == []


def test_a_prompt_of_the_model_that_decodes_joins_the_turn_at_once() -> None:
    toy = world()
    arrive(toy, "m0.a")
    end_turn(toy)
    assert arrive(toy, "m0.b") == [ExtendTurn("i0", 2, prefill=("m0.b",))]
    toy.step("i0")
    assert toy.deliver_all() == []  # it was prefilled and decodes in the same turn
    assert toy.instances["i0"].turn is not None
    assert toy.instances["i0"].turn.decoding == ["m0.a", "m0.b"]


def test_it_joins_on_the_instance_that_decodes_its_model() -> None:
    toy = world(instances=2)
    arrive(toy, "m0.a", "m1.a")
    end_turn(toy, "i0")
    end_turn(toy, "i1")
    assert arrive(toy, "m1.b", "m0.b") == [
        ExtendTurn("i1", 4, prefill=("m1.b",)),
        ExtendTurn("i0", 3, prefill=("m0.b",)),
    ]


def test_an_idle_instance_is_preferred_to_one_that_decodes_another_model() -> None:
    toy = world(instances=2)
    arrive(toy, "m0.a")
    end_turn(toy, "i0")
    assert arrive(toy, "m1.a") == [StartTurn("i1", 3, "m1", prefill=("m1.a",))]


def test_what_is_left_of_a_decode_turns_quota_counts_as_time_to_drain() -> None:
    toy = world()
    arrive(toy, "m0.a", "m1.a")
    for _ in range(3):
        said = end_turn(toy)
    assert said[0] == StartTurn("i0", 4, "m0", decode=("m0.a",), quota_s=pytest.approx(2.0), keep_prefilled=True)
    toy.join(make_instance("i1"))
    toy.deliver_all()
    assert arrive(toy, "m2.a") == [StartTurn("i1", 5, "m2", prefill=("m2.a",))]
    assert arrive(toy, "m3.a") == [LoadWeights("i1", "m3")]  # 0.5 s behind m2, against 2 s behind m0


def test_another_models_prompt_ends_an_unlimited_decode_turn_and_goes_first() -> None:
    toy = world()
    arrive(toy, "m0.a")
    end_turn(toy)
    assert arrive(toy, "m1.a") == [EndTurn("i0", 2), LoadWeights("i0", "m1")]
    # The KV of the only batch stays where it is.
    assert end_turn(toy) == [StartTurn("i0", 3, "m1", prefill=("m1.a",))]


def test_prefill_and_decode_alternate_while_both_wait() -> None:
    toy = world()
    arrive(toy, "m0.a", "m1.a", "m2.a", "m3.a")
    kinds: list[str] = []
    for _ in range(8):
        kinds += ["prefill" if c.prefill else "decode" for c in end_turn(toy) if isinstance(c, StartTurn)]
    assert kinds[:6] == ["decode", "prefill", "decode", "prefill", "decode", "prefill"]


def test_during_a_prefill_turn_the_model_that_decodes_next_stays() -> None:
    toy = world()
    arrive(toy, "m0.a")
    end_turn(toy)
    arrive(toy, "m1.a", "m2.a")
    assert end_turn(toy) == [StartTurn("i0", 3, "m1", prefill=("m1.a",))]  # m2 is not brought in for m0
    start, *prefetch = end_turn(toy)
    assert isinstance(start, StartTurn)
    assert start.decode == ("m0.a",)
    assert prefetch == [EvictWeights("i0", "m1"), LoadWeights("i0", "m2")]  # the next prompt's


def test_the_only_batch_shares_the_instance_with_prompts_that_wait() -> None:
    # As a round of the two models: n = 5, S = 0.2, c = 2 * 0.5 s, alpha = 0.5, q = 1 / (5 * 0.3) s.
    toy = world()
    arrive(toy, "m0.a", "m1.a")
    (start,) = (command for command in end_turn(toy) if isinstance(command, StartTurn))
    assert start.decode == ("m0.a",)
    assert start.quota_s == pytest.approx(1 / 1.5)


def test_prompts_that_wait_join_a_decode_turn_of_their_model_when_it_starts() -> None:
    toy = world()
    arrive(toy, *(f"m0.{i}" for i in range(8)), "m0.late", "m1.a")  # a full group, and a second one
    (start,) = (command for command in end_turn(toy) if isinstance(command, StartTurn))
    assert start.prefill == ("m0.late",)
    assert start.decode == tuple(f"m0.{i}" for i in range(8))
    assert start.keep_prefilled


def test_a_prompt_that_the_quota_cut_off_waits_at_the_place_of_its_arrival() -> None:
    toy = world()
    arrive(toy, "m0.a", "m1.a")
    end_turn(toy)  # m0 decodes with a quota, m1 waits
    assert arrive(toy, "m0.b") == [ExtendTurn("i0", 2, prefill=("m0.b",))]
    arrive(toy, "m2.a")
    toy.cancel("m0.a")
    toy.fail_turn("i0")  # before m0.b was looked at
    said = toy.deliver_all()
    for _ in range(4):
        said += end_turn(toy)
    order = [command.prefill for command in said if isinstance(command, StartTurn) and command.prefill]
    assert order == [("m1.a",), ("m0.b",), ("m2.a",)]


def test_kept_kv_goes_when_the_prompt_does_not_fit_beside_it() -> None:
    toy = world(kv_blocks=40)
    arrive(toy, "m0.a", prompt=160)  # 10 blocks and one to grow into
    end_turn(toy)
    arrive(toy, "m1.small", prompt=160)
    assert not [command for command in end_turn(toy) if isinstance(command, EvictKv)]
    toy = world(kv_blocks=40)
    arrive(toy, "m0.a", prompt=160)
    end_turn(toy)
    arrive(toy, "m1.big", prompt=480, max_new=100)
    assert end_turn(toy) == [EvictKv("i0", ("m0.a",)), StartTurn("i0", 3, "m1", prefill=("m1.big",))]
