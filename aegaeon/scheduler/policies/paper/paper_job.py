"""A live request as the paper's policy follows it."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.scheduler.job import Job
from aegaeon.scheduler.policies.paper.batch import Batch
from aegaeon.scheduler.policies.paper.group import Group
from aegaeon.scheduler.policies.paper.paper_turn import PaperTurn


@dataclass(slots=True, eq=False)
class PaperJob(Job):
    """Where a request is.

    Waiting: in a group, or in the batch of a running turn that it joined to be prefilled, or homeless (no instance
    takes it). Decoding: in a batch, or homeless. Dropping: nowhere. ``turn``: the turn it takes part in, if any.
    """

    group: Group | None = None
    batch: Batch | None = None
    turn: PaperTurn | None = None
