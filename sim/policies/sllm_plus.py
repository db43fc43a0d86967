"""ServerlessLLM+ of the Aegaeon paper (SOSP'25): ServerlessLLM with an oracle for output lengths.

A GPU's queue is grouped by model, four requests in a group, and the group with the shortest remaining time goes first.
A running group makes way for a shorter one (its switch counted), and loses its KV: what it had computed is recomputed
when its turn comes again.

Does not know: SLOs, other GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from aegaeon.core.cost import CostModel
from aegaeon.scheduler.job import Phase
from sim.policies.gpu import Gpu
from sim.policies.job import PlacedJob
from sim.policies.slots import DROP_AFTER_S, SLOTS, place_by_slot


@dataclass(frozen=True, slots=True)
class SllmPlusStrategy:
    """A ``Strategy``: the shortest group of a queue goes first."""

    costs: CostModel
    idle_first: bool = True
    slots: int = SLOTS
    drop_after_s: float | None = DROP_AFTER_S
    forgets_kv: bool = True

    def hosts(self, model: str, gpus: Mapping[str, Gpu]) -> Iterable[Gpu]:
        return gpus.values()

    def place(self, job: PlacedJob, gpus: Mapping[str, Gpu], now_s: float) -> Gpu | None:
        return place_by_slot(job, gpus.values(), self.slots, self.costs, now_s, self.idle_first)

    def next_run(self, gpu: Gpu, now_s: float) -> Iterable[PlacedJob]:
        return self._shortest(gpu, now_s)[1]

    def joiners(self, gpu: Gpu, now_s: float) -> Iterable[PlacedJob]:
        run = gpu.run
        room = self.slots - len(run.members) if run is not None else 0
        if run is None or room <= 0:
            return []
        return [job for job in gpu.queue.values() if job.model == run.model][:room]

    def takes_out(self, gpu: Gpu, now_s: float) -> bool:
        """Whether another model's group would be done before the run is."""
        run = gpu.run
        if run is None or all(job.model == run.model for job in gpu.queue.values()):
            return False
        shortest_s, group = self._shortest(gpu, now_s)
        return group[0].model != run.model and shortest_s < self._remaining_s(gpu, list(run.members.values()), now_s)

    def _shortest(self, gpu: Gpu, now_s: float) -> tuple[float, list[PlacedJob]]:
        """Remaining seconds and jobs of the group that is done first; the first of equals. The queue is not empty."""
        return min(
            ((self._remaining_s(gpu, group, now_s), group) for group in self._groups(gpu)), key=lambda found: found[0]
        )

    def _groups(self, gpu: Gpu) -> Iterator[list[PlacedJob]]:
        by_model: dict[str, list[PlacedJob]] = {}
        for job in gpu.queue.values():
            by_model.setdefault(job.model, []).append(job)
        for jobs in by_model.values():
            yield from (jobs[first : first + self.slots] for first in range(0, len(jobs), self.slots))

    def _remaining_s(self, gpu: Gpu, jobs: list[PlacedJob], now_s: float) -> float:
        """Until all of a group are done: its switch (where the model is not on the GPU), its prompts, its steps."""
        model = jobs[0].model
        switch_s = 0.0 if model in gpu.residency else self.costs.switch_s(model)
        prompts_s = sum(
            self.costs.prefill_s(model, (job.context_tokens,)) for job in jobs if job.phase is Phase.WAITING
        )
        step_s = self.costs.decode_step_s(model, sum(job.context_tokens for job in jobs), len(jobs))
        return switch_s + prompts_s + max(self._left_s(job, step_s, now_s) for job in jobs)

    def _left_s(self, job: PlacedJob, step_s: float, now_s: float) -> float:
        """Of a job's steps. What a running one did since it was reported is estimated."""
        done_s = now_s - job.reported_s if job.running and job.phase is Phase.DECODING else 0.0
        return max(0.0, (job.target_tokens - job.context_tokens) * step_s - done_s)
