"""What a driver's memory is for the next one: descriptors of KV and weights, which outlive the process that made them.

Somebody else fetches them while the driver lives: the process that keeps it running where that is on the same machine,
else the driver that stands by. They are of use once the driver's instances have ended, too: nobody else may write there
then.
"""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass
from typing import Self

from aegaeon.runtime.wire.fd_exchange import close_fds, fetch_fds

ESTATE = "estate"
"""What a driver's descriptor server calls it."""


@dataclass(frozen=True, slots=True)
class Estate:
    """Descriptors: the KV slab cache and the index of its blocks, the arena of the weights and its journal."""

    kv: int
    kv_index: int
    weights: int
    weights_journal: int

    @classmethod
    def fetch(cls, address: str) -> Self:
        """The estate of the driver at an address. Raises ``FdExchangeError``."""
        return cls(*fetch_fds(address, ESTATE))

    @property
    def fds(self) -> list[int]:
        """All of them, in the order of the fields."""
        return list(astuple(self))

    def duplicates(self) -> list[int]:
        """The same descriptors once more, for whoever closes them."""
        return [os.dup(fd) for fd in self.fds]

    def close(self) -> None:
        """Let go of it: what nobody else has is free memory."""
        close_fds(self.fds)
