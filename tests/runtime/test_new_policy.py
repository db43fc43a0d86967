"""A policy that is one file and one record runs in the toy world, in the simulator, and in a real pool."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import MappingProxyType

import pytest

from aegaeon.scheduler.policies import registry
from tests.worlds.first_come import POLICY
from tests.worlds.sim_pool import make_hardware, make_scenario, play
from tests.worlds.toy_world import ToyWorld, make_instance, make_limits, make_models


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = MappingProxyType({**registry.POLICIES, POLICY.name: POLICY})
    monkeypatch.setattr(registry, "POLICIES", policies)


def test_it_keeps_the_contract_of_schedulers() -> None:
    toy = ToyWorld(make_models(3), make_limits(slabs=6), policy=POLICY.name)
    toy.join(make_instance("a", kv_blocks=40))
    draw = random.Random(7)
    for number in range(40):
        toy.arrive(f"r{number}", f"m{draw.randrange(3)}", draw.randrange(1, 60), draw.randrange(1, 40))
    toy.join(make_instance("b", kv_blocks=40))
    toy.run()
    assert toy.unfinished() == []
    assert not toy.rejected


def test_it_is_simulated() -> None:
    played = play(make_scenario([(0.1 * index, index % 4, 50, 20) for index in range(30)]), make_hardware(2), POLICY)
    assert all(record.error is None for record in played.records.values())


async def test_it_serves(pool: Callable[..., object]) -> None:
    async with pool(2, policy="slack") as running:  # type: ignore[attr-defined]
        expected = [await running.generate(name, name, "Once upon", 8) for name in ("m0", "m1")]
    async with pool(2, policy=POLICY.name) as running:  # type: ignore[attr-defined]
        assert [await running.generate(name, name, "Once upon", 8) for name in ("m0", "m1")] == expected
