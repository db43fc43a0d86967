"""Grouped first-due-first-served prefill: which group on which instance a request joins (Aegaeon, SOSP'25)."""

from __future__ import annotations

from collections.abc import Mapping

from aegaeon.core.cost import CostModel
from aegaeon.scheduler.policies.paper.batch import Batch
from aegaeon.scheduler.policies.paper.group import Group
from aegaeon.scheduler.policies.paper.paper_instance import PaperInstance
from aegaeon.scheduler.policies.paper.paper_job import PaperJob
from aegaeon.scheduler.prompt_cost import prompt_s

_US = 1e6


class PrefillPlacement:
    """Puts waiting jobs into groups and takes them out again. ``instances``: the live ones, in order of joining."""

    def __init__(self, instances: Mapping[str, PaperInstance], costs: CostModel, max_group_requests: int) -> None:
        self._instances = instances
        self._costs = costs
        self._max_group_requests = max_group_requests
        self._open: dict[str, list[Group]] = {}  # groups with room, by model
        self.waiting = 0  # requests in groups

    def place(self, job: PaperJob, now_s: float) -> bool:
        """Queue a request that has just arrived; False if no instance takes it.

        Where a mixed instance decodes the model at this moment it goes there, to join the turn. Else it joins the first
        group of its model with room, in order of instances; else it opens one on the instance that would drain first,
        at the tail unless its first token is due before those of others.
        """
        beside = self._beside_decode(job)
        group = self._first_open(job, beside)
        if group is None:
            home = beside or self._home(job, now_s)
            if home is None:
                return False
            group = self._new_group(job, home)
            home.prefill.insert(group)
        self._join(group, job)
        return True

    def replace(self, job: PaperJob, now_s: float) -> bool:
        """Queue a request that has been here before at the place of its first token; False if no instance takes it."""
        group = self._first_open(job)
        if group is None or group.order > job.due_order:
            home = self._home(job, now_s)
            if home is None:
                return False
            group = self._new_group(job, home)
            home.prefill.insert(group)
        self._join(group, job)
        return True

    def withdraw(self, job: PaperJob) -> None:
        """Take a request out of its group."""
        group = job.group
        if group is not None:
            job.group = None
            self.waiting -= 1
            self._instances[group.instance_id].prefill.remove(group, job.request_id)
            if not group.members:
                self._close(group)

    def drains_s(self) -> list[float]:
        """Estimated time to drain of each instance that prefills."""
        return [state.prefill.drain_us / _US for state in self._instances.values() if state.prefills]

    def _first_open(self, job: PaperJob, only: PaperInstance | None = None) -> Group | None:
        groups = (
            group
            for group in self._open.get(job.model, ())
            if (state := self._instances[group.instance_id]).can_hold(job) and only in (None, state)
        )
        return min(groups, key=self._position, default=None)

    def _position(self, group: Group) -> tuple[int, tuple[float, int]]:
        return self._instances[group.instance_id].joined, group.order

    def _beside_decode(self, job: PaperJob) -> PaperInstance | None:
        for state in self._instances.values():
            batch = state.decoding if state.prefills else None
            if batch is not None and batch.model == job.model and self._may_join(state, batch, job):
                return state
        return None

    def _may_join(self, state: PaperInstance, batch: Batch, job: PaperJob) -> bool:
        return bool(batch.members) and state.can_hold(job) and state.decode.fits(batch, job.kv_bytes, job.width)

    def _home(self, job: PaperJob, now_s: float) -> PaperInstance | None:
        able = (state for state in self._instances.values() if state.prefills and state.can_hold(job))
        return min(able, key=lambda state: self._load(state, job, now_s), default=None)

    def _load(self, state: PaperInstance, job: PaperJob, now_s: float) -> tuple[int, int, bool, int]:
        """Time until the instance could prefill; among equals: fewer batches to disturb, no switch, first to join."""
        decodes_us = round(state.turn.remaining_s(now_s) * _US) if state.turn else 0
        return state.prefill.drain_us + decodes_us, len(state.decode), job.model not in state.residency, state.joined

    def _new_group(self, job: PaperJob, home: PaperInstance) -> Group:
        switch_us = 0 if self._follows(job.model, home) else round(self._costs.switch_s(job.model) * _US)
        group = Group(job.model, home.instance_id, job.due_order, self._max_group_requests, switch_us)
        self._open.setdefault(job.model, []).append(group)
        return group

    def _follows(self, model: str, home: PaperInstance) -> bool:
        return model in home.residency or model == home.prefill.tail_model

    def _join(self, group: Group, job: PaperJob) -> None:
        prefill_us = round(prompt_s(self._costs, job) * _US)
        queue = self._instances[group.instance_id].prefill
        queue.put(group, job.request_id, prefill_us)
        if job.due_order < group.order:
            queue.hasten(group, job.due_order)
        job.group = group
        self.waiting += 1
        if group.room == 0:
            self._close(group)

    def _close(self, group: Group) -> None:
        groups = self._open.get(group.model, [])
        if group in groups:
            groups.remove(group)
            if not groups:
                del self._open[group.model]
