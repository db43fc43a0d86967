"""What leads from a driver's loop to the process of an instance."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.core.instance import InstanceSpec
from aegaeon.runtime.node.core.incarnation import instance_key
from aegaeon.runtime.process.process_handle import ProcessHandle
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.link import Link
from aegaeon.runtime.wire.pulse import PulseReader


@dataclass(slots=True)
class InstanceHandle:
    """The link to one incarnation, its pulse, and, once its number is known, its process."""

    spec: InstanceSpec
    incarnation: int
    link: Link[m.FromInstance, m.ToInstance]
    pulse: PulseReader | None = None
    process: ProcessHandle | None = None

    @property
    def key(self) -> str:
        return instance_key(self.spec.instance_id, self.incarnation)

    def close(self) -> None:
        """Let go of everything that led to the process."""
        self.link.close()
        if self.pulse is not None:
            self.pulse.close()
        if self.process is not None:
            self.process.close()
