"""The host weight cache as a driver uses it: leases, waiting, eviction, bad files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from safetensors.torch import save_file

import quick_model_loader as qml
from aegaeon.runtime.node.host_weights import HostWeightCache
from aegaeon.runtime.wire.messages import HostWeights
from aegaeon.runtime.wire.model_failure import FailureKind

MIB = 1 << 20
NAMES = ("a", "b", "c")


class Cache:
    """A cache with room for two of three models; what it posts is run when the test waits for it."""

    def __init__(self, folder: Path, capacity_bytes: int = 4 * MIB) -> None:
        self.paths = {name: folder / f"{name}.safetensors" for name in NAMES}
        for number, path in enumerate(self.paths.values()):
            save_file({"w": torch.full((1000,), float(number))}, path)
        self.posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.delivered: list[tuple[str, HostWeights]] = []
        self.failures: list[tuple[str, str, FailureKind]] = []
        self.changed: set[str] = set()
        self.cache = HostWeightCache(
            capacity_bytes,
            self.paths,
            self.posted.put,
            lambda *failure: self.failures.append(failure),
            changed=lambda model: model in self.changed,
        )

    def lease(self, model: str, instance_key: str = "i0") -> None:
        self.cache.lease(model, instance_key, lambda weights: self.delivered.append((instance_key, weights)))

    def run_posted(self) -> None:
        self.posted.get(timeout=20)()

    def leased(self, model: str, instance_key: str = "i0") -> HostWeights:
        self.lease(model, instance_key)
        if not self.delivered or self.delivered[-1][1].model != model:
            self.run_posted()
        return self.delivered[-1][1]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Cache]:
    world = Cache(tmp_path)
    yield world
    world.cache.close()


def test_instances_that_want_one_model_share_one_entry(world: Cache) -> None:
    world.lease("b", "i0")
    world.lease("b", "i1")
    world.run_posted()
    # Who asks when the model is there already is served at once, before those who waited for it.
    assert {(key, weights.model) for key, weights in world.delivered} == {("i0", "b"), ("i1", "b")}
    assert len(world.delivered) == 2
    first, second = (qml.attach(weights.handle) for _, weights in world.delivered)
    assert torch.equal(first.torch("w"), second.torch("w"))
    assert float(first.torch("w")[0]) == 1.0
    assert world.cache.cached == ("b",)
    assert world.cache.used_bytes == 2 * MIB


def test_who_was_used_least_recently_makes_room_unless_it_is_leased(world: Cache) -> None:
    leases = {name: world.leased(name) for name in ("a", "b")}
    for name in ("b", "a"):
        world.cache.give_back(leases[name].lease_id)
    world.leased("a")
    world.leased("c")  # b has to go, although it came after a: a is leased again
    assert set(world.cache.cached) == {"a", "c"}


def test_models_that_are_dropped_make_room_at_once(world: Cache) -> None:
    for name in ("a", "b"):
        world.cache.give_back(world.leased(name).lease_id)
    world.cache.drop(("a", "nobody"))
    assert world.cache.cached == ("b",)
    assert world.cache.used_bytes == 2 * MIB


def test_a_model_that_is_dropped_before_it_is_handed_over_is_read_again(world: Cache) -> None:
    world.lease("a")
    hear_of_it = world.posted.get(timeout=20)  # it has been read
    world.cache.drop(("a",))
    hear_of_it()
    assert world.delivered == []
    world.run_posted()
    ((_, weights),) = world.delivered
    with qml.attach(weights.handle) as entry:
        assert float(entry.torch("w")[0]) == 0.0


def test_a_load_that_finds_no_room_waits_for_a_lease_to_end(world: Cache) -> None:
    leases = [world.leased("a"), world.leased("b")]
    world.lease("c")
    world.cache.give_back(leases[0].lease_id)
    world.run_posted()
    assert world.delivered[-1][1].model == "c"
    assert world.cache.cached == ("b", "c")


def test_an_instance_that_died_holds_nothing_and_waits_for_nothing(world: Cache) -> None:
    world.leased("a", "dead")
    world.leased("b", "alive")
    world.lease("c", "dead")
    world.lease("c", "alive")
    world.cache.forget_instance("dead")
    world.run_posted()
    assert world.delivered[-1][0] == "alive"
    assert [weights.model for _, weights in world.delivered] == ["a", "b", "c"]


def test_a_bad_file_fails_its_model_alone_and_may_be_mended(world: Cache) -> None:
    whole = world.paths["a"].read_bytes()
    world.paths["a"].write_bytes(whole[:-1])
    world.lease("a")
    world.run_posted()
    ((model, reason, kind),) = world.failures
    assert kind is FailureKind.FILES
    assert model == "a"
    assert "truncated" in reason
    assert str(world.paths["a"]) in reason
    assert world.cache.used_bytes == 0
    world.paths["a"].write_bytes(whole)
    assert world.leased("a").model == "a"


def test_a_lease_that_is_over_twice_is_over_once(world: Cache) -> None:
    lease = world.leased("a")
    world.cache.give_back(lease.lease_id)
    world.cache.give_back(lease.lease_id)
    with qml.attach(lease.handle) as entry:  # still there: nobody needed the room
        assert entry.nbytes >= 4000


def test_a_cache_that_the_machine_has_no_memory_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(qml.CapacityError):
        Cache(tmp_path, 1 << 60)


def test_weights_of_other_files_than_before_are_given_to_nobody(world: Cache) -> None:
    world.changed.add("a")
    world.lease("a")
    world.run_posted()
    [(model, reason, kind)] = world.failures
    assert (model, kind) == ("a", FailureKind.TRANSIENT)
    assert "changed" in reason
    assert not world.delivered
    world.cache.drop(["a"])
    world.changed.clear()
    world.leased("a")
