"""Where ServerlessLLM sends a request: to a GPU of its model with a free slot, else it takes a GPU over.

A GPU is of the model whose requests are last in its queue (or that it ran last), and has as many slots as requests of
that model may be last in a row. Where a model's GPUs have no free slot it takes over one that has never been used, else
the one whose last step (of a prompt or of decoding) ended longest ago, and waits behind what is queued there: an idle
one if there is any. The simulator of the Aegaeon artifact (SOSP'25) does not look whether it is (``idle_first`` False):
a GPU that is just being switched looks idle for longest, so requests that come meanwhile pile up behind the switch.

Does not know: what a GPU runs next.
"""

from __future__ import annotations

from collections.abc import Iterable

from aegaeon.core.cost import CostModel
from aegaeon.scheduler.job import Phase
from sim.policies.gpu import Gpu
from sim.policies.job import PlacedJob

SLOTS = 4
DROP_AFTER_S = 15.0
_LEAST_STEP_S = 1e-4  # an estimate far from its data may promise less than nothing


def place_by_slot(
    job: PlacedJob, gpus: Iterable[Gpu], slots: int, costs: CostModel, now_s: float, idle_first: bool = True
) -> Gpu | None:
    """The GPU for ``job`` among those of ``gpus`` that can hold it."""
    tails = [(gpu, *gpu.tail) for gpu in gpus if gpu.can_hold(job)]
    own = [(count, gpu.joined, gpu) for gpu, model, count in tails if model == job.model]
    shortest = min(own, key=lambda found: found[:2], default=None)
    if shortest is not None and shortest[0] < slots:
        return shortest[2]
    unused = next((gpu for gpu, model, _ in tails if model is None), None)
    if unused is not None:
        return unused
    others = [gpu for gpu, model, _ in tails if model != job.model]
    if others:
        return min(others, key=lambda gpu: (idle_first and gpu.load > 0, last_step_s(gpu, costs, now_s), gpu.joined))
    return shortest[2] if shortest is not None else None


def last_step_s(gpu: Gpu, costs: CostModel, now_s: float) -> float:
    """When the last step on a GPU ended; between reports the steps of a decoding batch are estimated."""
    members = gpu.run.members.values() if gpu.run is not None else ()
    if not members or any(job.phase is Phase.WAITING for job in members):
        return gpu.progress_s
    context_tokens = sum(job.context_tokens for job in members)
    step_s = max(_LEAST_STEP_S, costs.decode_step_s(next(iter(members)).model, context_tokens, len(members)))
    return gpu.progress_s + (now_s - gpu.progress_s) // step_s * step_s
