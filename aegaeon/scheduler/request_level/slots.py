"""Where ServerlessLLM sends a request: to a GPU of its model with a free slot, else it takes a GPU over.

A GPU is of the model whose requests are last in its queue (or that it ran last), and has as many slots as requests of
that model may be last in a row. Where a model's GPUs have no free slot it takes over one that has never been used, else
the one whose last step (a switch, a prompt, or one of decoding) ended longest ago, and waits behind what is queued
there: an idle one if there is any. The simulator of the Aegaeon artifact (SOSP'25) does not look whether it is
(``idle_first`` False): a GPU that is just being switched looks idle for longest, so requests that come meanwhile pile
up behind the switch.

Does not know: what a GPU runs next.
"""

from __future__ import annotations

from collections.abc import Iterable

from aegaeon.core.cost import CostModel
from aegaeon.scheduler.job import Phase
from aegaeon.scheduler.request_level.gpu import Gpu, PlacedJob

SLOTS = 4
DROP_AFTER_S = 15.0
_LEAST_STEP_S = 1e-4  # an estimate far from its data may promise less than nothing


def place_by_slot(
    job: PlacedJob, gpus: Iterable[Gpu], slots: int, costs: CostModel, now_s: float, idle_first: bool = True
) -> Gpu | None:
    """The GPU for ``job`` among those of ``gpus``, which are in order of joining, that can hold it."""
    able = [gpu for gpu in gpus if gpu.can_hold(job)]
    own = [gpu for gpu in able if gpu.tail[0] == job.model]
    shortest = min(own, key=lambda gpu: gpu.tail[1], default=None)
    if shortest is not None and shortest.tail[1] < slots:
        return shortest
    unused = next((gpu for gpu in able if gpu.tail[0] is None), None)
    if unused is not None:
        return unused
    others = [gpu for gpu in able if gpu.tail[0] != job.model]
    idle = [gpu for gpu in others if not gpu.jobs] if idle_first else []
    return min(idle or others, key=lambda gpu: last_step_s(gpu, costs, now_s), default=shortest)


def last_step_s(gpu: Gpu, costs: CostModel, now_s: float) -> float:
    """When the last step on a GPU ended; between reports the steps of a decoding batch are estimated."""
    run = gpu.run
    if run is None or not run.members:
        return gpu.progress_s
    if any(job.phase is Phase.WAITING for job in run.members.values()):
        ready_s = run.started_s + costs.switch_s(run.model) if run.switches else run.started_s
        return ready_s if gpu.progress_s < ready_s <= now_s else gpu.progress_s
    context_tokens = sum(job.context_tokens for job in run.members.values())
    step_s = max(_LEAST_STEP_S, costs.decode_step_s(run.model, context_tokens, len(run.members)))
    return gpu.progress_s + (now_s - gpu.progress_s) // step_s * step_s
