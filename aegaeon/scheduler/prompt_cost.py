"""What a prompt takes, where the KV of some of its tokens may be there already."""

from __future__ import annotations

from collections.abc import Callable

from aegaeon.core.cost import CostModel
from aegaeon.scheduler.job import Job

SavedS = Callable[[str, int, int], float]
"""``saved_s(model, start, end)``, with its costs: seconds of prefill."""


def rest_s(prefill_s: Callable[[int], float], context_tokens: int, found_tokens: int) -> float:
    """Seconds to compute the rest of a context by what whole prompts take.

    The rest attends to all that comes before it, so it takes what the whole takes without the part that was found, and
    what any prompt takes, however short.
    """
    return prefill_s(context_tokens) - prefill_s(found_tokens) + prefill_s(0)


def prompt_s(costs: CostModel, job: Job) -> float:
    """Seconds to process a job's context: what was found of it is brought to the device, the rest is computed."""

    def prefill_s(tokens: int) -> float:
        return costs.prefill_s(job.model, (tokens,))

    found = min(job.found_tokens, job.context_tokens - 1)
    if not found:
        return prefill_s(job.context_tokens)
    return rest_s(prefill_s, job.context_tokens, found) + costs.kv_move_s(job.model, found)


def saved_s(costs: CostModel, model: str, start: int, end: int) -> float:
    """Seconds of prefill that the KV of the tokens from ``start`` to ``end`` saves whoever has that of those before."""
    return costs.prefill_s(model, (end,)) - costs.prefill_s(model, (start,))
