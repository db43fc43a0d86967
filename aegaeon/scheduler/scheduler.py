"""The ``Scheduler`` protocol, and the contract between a scheduler and whoever carries out its commands.

What a scheduler may rely on, in both worlds (runtime, simulator):

- **Turns.** An instance is busy from ``StartTurn`` until ``TurnEnded`` (or ``InstanceLost``), nothing else frees it.
- **Races.** ``ExtendTurn`` and ``EndTurn`` may reach a turn that has just ended; they are then ignored.
  ``TurnEnded.contexts`` names the prefilled members that the executor still knows in that turn. A request that the
  scheduler put into the turn and that is neither named there nor was reported prefilled, finished or failed is simply
  still waiting, in the state it was in before, and the scheduler places it again. A request named in a command that the
  executor no longer knows (it finished a moment ago) is ignored; a turn left without members ends as ``DRAINED``.
- **Prefill.** A member whose prompt was not finished when its turn ended is still waiting; the executor may keep the
  KV of the part that was processed and go on from there in a later turn.
- **Device KV.** A member that leaves a turn (prefilled and not kept, finished, dropped, released) loses its device
  copy. Members that remain when a turn ends keep theirs until ``EvictKv``, ``DropKv`` or the end of the request. An
  instance whose device KV runs full within a turn ends the turn as ``PREEMPTED``; the next round packs by what it
  reports.
- **Slab cache.** ``KvExhausted`` is reported when a member begins to wait for a block, and again after every
  ``KvDropped`` while it still waits. ``DropKv`` is always answered by ``KvDropped``, also where there was nothing to
  drop; until then the request is in no turn. ``ReleaseRequest`` and ``RejectRequest`` free whatever there is.
- **Loss.** ``InstanceLost.survivors`` speaks of the members of the turn that was lost, and of nobody else: the KV of
  requests that only waited for the instance is in the slab cache. The scheduler drops what is left of the others' KV.
- **Failed models.** ``ModelFailed`` does not end a turn; ``TurnEnded`` does (as always).
"""

from __future__ import annotations

from typing import Protocol

from aegaeon.core.command import Command
from aegaeon.core.event import Event


class Scheduler(Protocol):
    """A policy. Deterministic: the same events at the same times give the same commands."""

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take note of ``event`` at ``now_s`` (seconds on a clock that never goes back) and say what to do.

        Commands are to be carried out in order. Raises ``ValueError`` for events that contradict earlier ones (a
        request that arrives twice, an instance that joins twice): those are errors of the caller.
        """
        ...
