"""One stream: its work is counted in tickets, each of which ends with an event of the driver."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from aegaeon.device.cuda.driver import CudaDriver


@dataclass(frozen=True, slots=True)
class _Marked:
    """A ticket under way, the driver's event at its end, and the tensors that must live until then."""

    ticket: int
    event: int
    kept: tuple[torch.Tensor, ...]


class CudaTimeline:
    """The tickets of the stream that ``handle`` gives: 1, 2, ... Events are used again once they have happened."""

    def __init__(self, driver: CudaDriver, handle: Callable[[], int]) -> None:
        self._driver = driver
        self._handle = handle
        self._under_way: deque[_Marked] = deque()
        self._spare_events: list[int] = []
        self.issued = 0

    @property
    def handle(self) -> int:
        """The driver's stream."""
        return self._handle()

    def mark(self, *kept: torch.Tensor) -> int:
        """End a ticket after all work given to the stream so far; what is ``kept`` lives until it has happened."""
        event = self._spare_events.pop() if self._spare_events else self._driver.event_create()
        self._driver.event_record(event, self.handle)
        self.issued += 1
        self._under_way.append(_Marked(self.issued, event, kept))
        return self.issued

    def has_happened(self, ticket: int) -> bool:
        """Whether a ticket is over. A later one that is over shows it too: a stream is in order."""
        while self._under_way and self._driver.event_query(self._under_way[0].event):
            self._retire()
        return not self._under_way or self._under_way[0].ticket > ticket

    def event_of(self, ticket: int) -> int | None:
        """The driver's event of a ticket; None where it has happened."""
        return next((marked.event for marked in self._under_way if marked.ticket == ticket), None)

    def synchronize(self, ticket: int) -> None:
        """Block until a ticket is over."""
        event = self.event_of(ticket)
        if event is not None:
            self._driver.event_synchronize(event)
            while self._under_way and self._under_way[0].ticket <= ticket:
                self._retire()

    def close(self) -> None:
        """Wait for all of it, and give the events back."""
        self.synchronize(self.issued)
        for event in self._spare_events:
            self._driver.event_destroy(event)
        self._spare_events.clear()

    def _retire(self) -> None:
        self._spare_events.append(self._under_way.popleft().event)
