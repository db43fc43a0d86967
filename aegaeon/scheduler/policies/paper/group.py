"""A prefill group: requests of one model that wait at one instance and are prefilled one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Group:
    """``order``: when the first token of its most urgent member is due. ``room`` falls with every join and never rises.

    ``members`` maps request ids, in order of joining, to their estimated prefill time in whole microseconds (integers,
    so that what was added to a sum can be taken off exactly); ``switch_us`` is the estimated switch before the group.
    """

    model: str
    instance_id: str
    order: tuple[float, int]
    room: int
    switch_us: int
    members: dict[str, int] = field(default_factory=dict)
