"""Where ServerlessLLM sends a request: to a GPU of its model with a free slot, else it takes a GPU over.

A GPU is of the model whose requests are last in its queue (or that it ran last), and has as many slots as requests of
that model may be last in a row. Where a model's GPUs have no free slot it takes over one that has never been used, else
the one whose last step (a switch, a prompt, or one of decoding) ended longest ago, and waits behind what is queued
there: an idle one if there is any. The simulator of the Aegaeon artifact (SOSP'25) does not look whether it is
(``idle_first`` False): a GPU that is just being switched looks idle for longest, so requests that come meanwhile pile
up behind the switch.
"""

from __future__ import annotations

from collections.abc import Iterable

from aegaeon.core.cost import CostModel
from aegaeon.scheduler.job import JobPhase
from aegaeon.scheduler.policies.request_level.instance import QueueInstance, QueueJob

SLOTS = 4
DROP_AFTER_S = 15.0
_LEAST_STEP_S = 1e-4  # an estimate far from its data may promise less than nothing


def place_by_slot(
    job: QueueJob,
    instances: Iterable[QueueInstance],
    slots: int,
    costs: CostModel,
    now_s: float,
    idle_first: bool = True,
) -> QueueInstance | None:
    """The GPU for ``job`` among those of ``instances``, which are in order of joining, that can hold it."""
    able = [instance for instance in instances if instance.can_hold(job)]
    own = [instance for instance in able if instance.tail[0] == job.model]
    shortest = min(own, key=lambda instance: instance.tail[1], default=None)
    if shortest is not None and shortest.tail[1] < slots:
        return shortest
    unused = next((instance for instance in able if instance.tail[0] is None), None)
    if unused is not None:
        return unused
    others = [instance for instance in able if instance.tail[0] != job.model]
    idle = [instance for instance in others if not instance.jobs] if idle_first else []
    return min(idle or others, key=lambda instance: last_step_s(instance, costs, now_s), default=shortest)


def last_step_s(instance: QueueInstance, costs: CostModel, now_s: float) -> float:
    """When the last step on a GPU ended; between reports the steps of a decoding batch are estimated."""
    turn = instance.turn
    if turn is None or not turn.members:
        return instance.progress_s
    if any(job.phase is JobPhase.WAITING for job in turn.members.values()):
        ready_s = turn.started_s + costs.switch_s(turn.model) if turn.switches else turn.started_s
        return ready_s if instance.progress_s < ready_s <= now_s else instance.progress_s
    context_tokens = sum(job.context_tokens * job.width for job in turn.members.values())
    rows = sum(job.width for job in turn.members.values())
    step_s = max(_LEAST_STEP_S, costs.decode_step_s(turn.model, context_tokens, rows))
    return instance.progress_s + (now_s - instance.progress_s) // step_s * step_s
