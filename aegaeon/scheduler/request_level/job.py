"""A live request, as a baseline follows it.

Does not know: which policy placed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aegaeon.scheduler.job import Job

if TYPE_CHECKING:
    from aegaeon.scheduler.request_level.gpu import Gpu


@dataclass(slots=True, eq=False)
class PlacedJob(Job):
    """``gpu``: where it waits or runs (None: homeless, or losing its KV); ``running``: in that GPU's turn.

    ``started``: it has had its first token. ``reported_s``: when ``context_tokens`` was last true.
    """

    gpu: Gpu | None = None
    running: bool = False
    started: bool = False
    reported_s: float = 0.0

    @property
    def target_tokens(self) -> int:
        """Its context at its end: known to an oracle, else the limit that the client gave."""
        new_tokens = self.request.oracle_new_tokens or self.request.max_new_tokens
        return self.request.prompt_tokens + new_tokens
