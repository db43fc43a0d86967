"""An instance, as the scheduler follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aegaeon.core.instance import InstanceSpec
from aegaeon.scheduler.facts import PolicyFacts
from aegaeon.scheduler.policies.paper.batch import Batch
from aegaeon.scheduler.policies.paper.decode_round import DecodeRound
from aegaeon.scheduler.policies.paper.paper_job import PaperJob
from aegaeon.scheduler.policies.paper.paper_turn import PaperTurn
from aegaeon.scheduler.policies.paper.prefill_queue import PrefillQueue
from aegaeon.scheduler.residency import Residency


@dataclass(slots=True, eq=False)
class PaperInstance:
    """An instance with its queues, its residency set and its turn.

    ``kept`` maps requests that are in no turn here, but whose KV is still on the device, to its bytes. ``prefetch`` is
    the model that was chosen to be brought in during the present turn. ``joined``: order of joining.
    """

    spec: InstanceSpec
    joined: int
    residency: Residency
    decode: DecodeRound
    prefill: PrefillQueue = field(default_factory=PrefillQueue)
    turn: PaperTurn | None = None
    prefilled_last: bool = False
    prefetch: str | None = None
    kept: dict[str, int] = field(default_factory=dict)
    instance_id: str = field(init=False)
    prefills: bool = field(init=False)
    decodes: bool = field(init=False)

    def __post_init__(self) -> None:
        self.instance_id = self.spec.instance_id
        self.prefills, self.decodes = self.spec.role.prefills, self.spec.role.decodes

    @classmethod
    def of(cls, spec: InstanceSpec, joined: int, facts: Mapping[str, PolicyFacts]) -> PaperInstance:
        """An idle instance with nothing on its device."""
        return cls(spec, joined, Residency(spec, facts), DecodeRound(spec))

    @property
    def decoding(self) -> Batch | None:
        """The batch that runs here and may be joined."""
        turn = self.turn
        return turn.source if turn and not turn.ending and isinstance(turn.source, Batch) else None

    def can_hold(self, job: PaperJob) -> bool:
        """Whether the job's model and its longest context fit this device."""
        return job.facts.weight_bytes <= self.spec.weight_bytes and job.max_kv_bytes <= self.spec.kv_bytes
