"""Which batch on which instance a prefilled request decodes in (Aegaeon, SOSP'25)."""

from __future__ import annotations

from collections.abc import Mapping

from aegaeon.scheduler.policies.paper.paper_instance import PaperInstance
from aegaeon.scheduler.policies.paper.paper_job import PaperJob


class DecodePlacement:
    """Puts decoding jobs into batches and takes them out again. ``instances``: the live ones, in order of joining."""

    def __init__(self, instances: Mapping[str, PaperInstance]) -> None:
        self._instances = instances

    def place(self, job: PaperJob) -> bool:
        """Join the first batch of the model that has room, else open one where there are fewest; False if nowhere.

        Among equals an instance that has the model on its device is preferred, then the first to join.
        """
        able = [state for state in self._instances.values() if state.decodes and state.can_hold(job)]
        batch = next((found for state in able if (found := state.decode.room_for(job))), None)
        if batch is None:
            if not able:
                return False
            home = min(able, key=lambda state: (len(state.decode), job.model not in state.residency, state.joined))
            batch = home.decode.open(job.model)
        batch.put(job.request_id, job.kv_bytes, job.width)
        job.batch = batch
        return True

    def withdraw(self, job: PaperJob) -> None:
        """Take a request out of its batch."""
        batch = job.batch
        if batch is not None:
            job.batch = None
            self._instances[batch.instance_id].decode.remove(batch, job.request_id)
