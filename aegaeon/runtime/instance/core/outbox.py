"""What an instance has to say, in the order in which it has to be said."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.runtime.wire import messages as m


@dataclass(frozen=True, slots=True)
class Report:
    """What the instance's driver is told."""

    message: m.FromInstance


@dataclass(frozen=True, slots=True)
class Told:
    """What a frontend is told."""

    frontend_id: str
    message: m.Output


InstanceSend = Report | Told


class Outbox:
    """Collects what is said until somebody sends it."""

    def __init__(self) -> None:
        self._sends: list[InstanceSend] = []

    def report(self, message: m.FromInstance) -> None:
        """Say something to the driver."""
        self._sends.append(Report(message))

    def tell(self, frontend_id: str, message: m.Output) -> None:
        """Say something to a frontend."""
        self._sends.append(Told(frontend_id, message))

    def take(self) -> list[InstanceSend]:
        """All that was said since the last call."""
        sends, self._sends = self._sends, []
        return sends
