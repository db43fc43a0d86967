"""What the parts of a driver's core share: time, what is to go out, what is due later, and the scheduler's ear."""

from __future__ import annotations

from collections.abc import Callable

from aegaeon.core.event import Event
from aegaeon.runtime.node.core.driver_outputs import DriverOutput
from aegaeon.runtime.node.core.in_turn import InTurn
from aegaeon.runtime.node.core.timers import Timers


class Desk:
    """``decide`` has the scheduler handle an event. ``changed``: there is something new to report."""

    def __init__(self, decide: Callable[[Event], None]) -> None:
        self.now_s = float("-inf")
        self.changed = True
        self.timers = Timers()
        self._events = InTurn(decide)
        self._outputs: list[DriverOutput] = []

    def put(self, output: DriverOutput) -> None:
        """Have something done, after all that was put here before."""
        self._outputs.append(output)

    def take_outputs(self) -> list[DriverOutput]:
        """What was put here since the last time."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def dispatch(self, event: Event) -> None:
        """Let the scheduler handle an event. What a command causes at once is handled after it."""
        self.changed = True
        self._events.put(event)
