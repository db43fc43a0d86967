"""A decode batch: requests of one model whose KV fits the device together."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Batch:
    """``members`` maps request ids to the KV bytes counted for them; ``kv_bytes`` is their sum.
    ``wide``: those that take several rows of a step, and how many.

    ``quota_s`` is its time in the present round; None: no limit (it is the only batch).
    """

    model: str
    instance_id: str
    members: dict[str, int] = field(default_factory=dict)
    wide: dict[str, int] = field(default_factory=dict)
    kv_bytes: int = 0
    quota_s: float | None = None

    @property
    def rows(self) -> int:
        """Of a decode step."""
        return len(self.members) - len(self.wide) + sum(self.wide.values())

    def put(self, request_id: str, kv_bytes: int, rows: int = 1) -> None:
        """Add a member, or correct the size of one."""
        self.kv_bytes += kv_bytes - self.members.get(request_id, 0)
        self.members[request_id] = kv_bytes
        if rows > 1:
            self.wide[request_id] = rows

    def remove(self, request_id: str) -> None:
        """Take a member out."""
        self.kv_bytes -= self.members.pop(request_id)
        self.wide.pop(request_id, None)
