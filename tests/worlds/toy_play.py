"""Turns numbers into things that happen in a toy world: histories that a test can draw at random, or from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from aegaeon.core.instance import Role
from aegaeon.scheduler.log import replay
from tests.worlds.toy_world import ToyWorld, make_instance

LAYOUTS = {
    "one mixed": [Role.MIXED],
    "three mixed": [Role.MIXED] * 3,
    "disjoint": [Role.PREFILL, Role.DECODE, Role.DECODE],
    "all": [Role.PREFILL, Role.MIXED, Role.DECODE],
}
Action = tuple[str, int]

# Steps and deliveries happen far more often than faults; some histories are long and calm, so that memory fills up.
_CALM = ["arrive"] * 6 + ["step"] * 20 + ["deliver"] * 12 + ["cancel"]
_FAULTY = [*_CALM, "cancel", "fail_request", "fail_turn", "lose", "restart", "restart", "break_model"]
HISTORIES = st.sampled_from([_CALM, _FAULTY]).flatmap(
    lambda kinds: st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 9999)), min_size=80, max_size=250)
)


class Play:
    """Turns numbers into things that happen in a toy world of five models; ``roles``: of its instances."""

    def __init__(self, world: ToyWorld, roles: Sequence[Role], kv_blocks: int, max_resident_models: int) -> None:
        self.world = world
        self.roles = list(roles)
        self.kv_blocks = kv_blocks
        self.max_resident_models = max_resident_models
        self._made = 0
        for role in roles:
            self.join(role)

    def join(self, role: Role) -> None:
        self._made += 1
        self.world.join(
            make_instance(f"i{self._made}", role, self.kv_blocks, max_resident_models=self.max_resident_models)
        )

    def arrive(self, number: int) -> None:
        name = f"r{len(self.world.requests)}"
        prompt, max_new = 1 + number % 97, 1 + number % 211
        self.world.arrive(name, f"m{number % 5}", prompt, max_new, new=1 + number % max_new)

    def step(self, number: int) -> None:
        names = list(self.world.instances)
        if names:
            self.world.step(names[number % len(names)])

    def deliver(self, number: int) -> None:
        for _ in range(1 + number % 4):
            self.world.deliver()

    def cancel(self, number: int) -> None:
        if self.world.requests:
            self.world.cancel(f"r{number % len(self.world.requests)}")

    def fail_request(self, number: int) -> None:
        running = [name for i in self.world.instances.values() if i.turn for name in i.turn.members]
        if running:
            self.world.fail_request(running[number % len(running)])

    def fail_turn(self, number: int) -> None:
        names = list(self.world.instances)
        if names:
            self.world.fail_turn(names[number % len(names)])

    def lose(self, number: int) -> None:
        names = list(self.world.instances)
        if names:
            self.world.lose(names[number % len(names)], survive=number % 3 > 0)

    def restart(self, number: int) -> None:
        if len(self.world.instances) < len(self.roles):
            self.join(self.roles[number % len(self.roles)])

    def break_model(self, number: int) -> None:
        model = f"m{number % 5}"
        (self.world.recover_model if model in self.world.failed else self.world.fail_model)(model)

    def act(self, action: Action) -> None:
        method: Callable[[int], None] = getattr(self, action[0])
        method(action[1])

    def finish(self) -> None:
        """Bring every role back and let the world run dry."""
        for role in self.roles:
            self.join(role)
        self.world.run()

    def check_end(self) -> None:
        """All work was done once, nothing of it is left, and a fresh scheduler says the same."""
        assert self.world.unfinished() == []
        assert all(toy.ends == 1 for toy in self.world.requests.values())
        assert all(toy.blocks == 0 for toy in self.world.requests.values())
        assert all(instance.on_device == set() for instance in self.world.instances.values())
        assert replay(self.world.log, self.world.fresh_scheduler()) is None
