"""Turns numbers into things that happen in a toy world: histories that a test can draw at random, or from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aegaeon.core.instance import Role
from tests.worlds.toy_world import SMALL, WIDE, ToyWorld, make_instance, make_limits, make_models

LAYOUTS = {
    "one mixed": [Role.MIXED],
    "three mixed": [Role.MIXED] * 3,
    "disjoint": [Role.PREFILL, Role.DECODE, Role.DECODE],
    "all": [Role.PREFILL, Role.MIXED, Role.DECODE],
}
Action = tuple[str, int]


class Play:
    """Turns numbers into things that happen in a toy world."""

    def __init__(self, roles: Sequence[Role], slabs: int, kv_blocks: int, max_resident_models: int) -> None:
        self.world = ToyWorld(make_models(5, shapes=(SMALL, WIDE)), make_limits(slabs=slabs))
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
