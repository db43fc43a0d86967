"""ServerlessLLM+ of the Aegaeon paper (SOSP'25): ServerlessLLM with an oracle for output lengths.

A GPU's queue is grouped by model, four requests in a group, and the group with the shortest remaining time goes first.
A running group makes way for a shorter one (its switch counted), and loses its KV: what it had computed is recomputed
when its turn comes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from aegaeon.scheduler.job import JobPhase
from aegaeon.scheduler.policies.request_level.instance import QueueGroup, QueueInstance, QueueJob
from aegaeon.scheduler.policies.request_level.sllm import SllmStrategy


@dataclass(frozen=True, slots=True)
class SllmPlusStrategy(SllmStrategy):
    """ServerlessLLM's, but that the shortest group of a queue goes first."""

    forgets_kv: bool = True

    def next_turn(self, instance: QueueInstance, now_s: float) -> Iterable[QueueJob]:
        return self._shortest(instance)[1].jobs

    def joiners(self, instance: QueueInstance, now_s: float) -> Iterable[QueueJob]:
        turn = instance.turn
        room = self.slots - len(turn.members) if turn is not None else 0
        if turn is None or room <= 0:
            return []
        return [job for job in instance.queue.values() if job.model == turn.model][:room]

    def takes_out(self, instance: QueueInstance, now_s: float) -> bool:
        """Whether another model's group would be done before the turn is."""
        turn = instance.turn
        if turn is None:
            return False
        shortest_s, group = self._shortest(instance)
        if group.jobs[0].model == turn.model:
            return False
        return shortest_s < self._remaining_s(instance, self._group(list(turn.members.values()), now_s))

    def _shortest(self, instance: QueueInstance) -> tuple[float, QueueGroup]:
        """Remaining seconds and jobs of the group that is done first; the first of equals. The queue is not empty."""
        return min(
            ((self._remaining_s(instance, group), group) for group in self._groups(instance)),
            key=lambda found: found[0],
        )

    def _groups(self, instance: QueueInstance) -> Iterator[QueueGroup]:
        """All that wait, by model; they are looked at again and again, so the GPU keeps them."""
        for model in dict.fromkeys([job.model for job in instance.queue.values()]):
            if model not in instance.groups:
                jobs = [job for job in instance.queue.values() if job.model == model]
                firsts = range(0, len(jobs), self.slots)
                instance.groups[model] = [self._group(jobs[first : first + self.slots], 0.0) for first in firsts]
            yield from instance.groups[model]

    def _remaining_s(self, instance: QueueInstance, group: QueueGroup) -> float:
        """How long a group takes: its switch (where the model is not on the GPU), its prompts, its steps."""
        model = group.jobs[0].model
        switch_s = 0.0 if model in instance.residency else self.costs.switch_s(model)
        return switch_s + group.prompts_s + group.steps_s

    def _group(self, jobs: list[QueueJob], now_s: float) -> QueueGroup:
        model = jobs[0].model
        waiting = (job for job in jobs if job.phase is JobPhase.WAITING)
        prompts_s = sum(self.costs.prefill_s(model, (job.context_tokens,)) for job in waiting)
        step_s = self.costs.decode_step_s(model, sum(job.context_tokens for job in jobs), len(jobs))
        return QueueGroup(jobs, prompts_s, max(self._left_s(job, step_s, now_s) for job in jobs))

    def _left_s(self, job: QueueJob, step_s: float, now_s: float) -> float:
        """The time of a job's steps. What a running one did since it was reported is estimated."""
        done_s = now_s - job.reported_s if job.running and job.phase is JobPhase.DECODING else 0.0
        return max(0.0, (job.target_tokens - job.context_tokens) * step_s - done_s)
