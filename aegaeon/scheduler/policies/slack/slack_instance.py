"""An instance as the policy ``slack`` follows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegaeon.core.instance import InstanceSpec
from aegaeon.scheduler.policies.slack.device_memory import DeviceMemory
from aegaeon.scheduler.policies.slack.slack_job import SlackJob
from aegaeon.scheduler.policies.slack.slack_turn import SlackTurn


@dataclass(slots=True, eq=False)
class SlackInstance:
    """``link_free_s``: when the copies towards the device that were asked for are expected to be through.

    ``no_load_until_s``: there was nothing to bring in a moment ago.
    """

    spec: InstanceSpec
    joined: int
    memory: DeviceMemory = field(init=False)
    turn: SlackTurn | None = None
    link_free_s: float = 0.0
    no_load_until_s: float = 0.0

    def __post_init__(self) -> None:
        self.memory = DeviceMemory(self.spec)

    @property
    def name(self) -> str:
        return self.spec.instance_id

    def can_hold(self, member: SlackJob) -> bool:
        """Whether the member's model and its longest context fit this device together."""
        weights, kv = member.facts.weight_bytes, member.max_kv_bytes
        spec = self.spec
        return weights <= spec.weight_bytes and kv <= spec.kv_bytes and weights + kv <= spec.total_bytes
