"""An instance that has no process at the moment, as it is shown to those who look at the pool."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.core.instance import InstanceSpec
from aegaeon.runtime.wire.messages import InstanceState


@dataclass(frozen=True, slots=True)
class Absence:
    """An instance without a process: since when, why, and when it is started again."""

    spec: InstanceSpec
    since_s: float
    reason: str
    restart_s: float

    def state(self, now_s: float) -> InstanceState:
        """How it is shown to those who look at the pool."""
        left_s = self.restart_s - now_s
        next_step = f"starts again in {left_s:.0f} s" if left_s > 0 else "is being started again"
        trouble = f"died ({self.reason}) and {next_step}"
        spec = self.spec
        return InstanceState(spec.instance_id, spec.role, None, (), 0, False, 0, 0, 0, trouble, now_s - self.since_s)
