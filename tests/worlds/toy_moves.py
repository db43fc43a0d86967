"""What tests of schedulers do with a toy world again and again."""

from __future__ import annotations

from collections.abc import Iterable

from aegaeon.core.command import Command, StartTurn
from tests.worlds.toy_world import ToyWorld


def arrive(toy: ToyWorld, *requests: str, prompt: int = 16, max_new: int = 400) -> list[Command]:
    """Requests called ``<model>.<anything>`` come; all that is said to that."""
    for name in requests:
        toy.arrive(name, name.split(".")[0], prompt, max_new)
    return toy.deliver_all()


def step(toy: ToyWorld, instance_id: str, times: int = 1) -> list[Command]:
    """Steps of the instance's turn; all that is said meanwhile."""
    said: list[Command] = []
    for _ in range(times):
        toy.step(instance_id)
        said += toy.deliver_all()
    return said


def end_turn(toy: ToyWorld, instance_id: str = "i0") -> list[Command]:
    """Run the instance's turn to its end; all that is said meanwhile."""
    said: list[Command] = []
    turn = toy.instances[instance_id].turn
    while turn is not None and toy.instances[instance_id].turn is turn:
        toy.step(instance_id)
        said += toy.deliver_all()
    return said


def starts(said: Iterable[Command]) -> list[StartTurn]:
    """The turns that are begun."""
    return [command for command in said if isinstance(command, StartTurn)]
