"""How much of a GPU a model's traffic takes, for systems that place models in advance."""

from __future__ import annotations

from math import exp

from aegaeon.core.cost import CostModel
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.layout import ModelLoad

NO_LOAD = ModelLoad(rate_per_s=0.0, mean_prompt_tokens=1.0, mean_new_tokens=1.0)
"""Of a model that nobody asks for: it still wants its place."""


def concurrency(model: ModelSpec, load: ModelLoad, costs: CostModel) -> float:
    """Requests under way on average, if each ran as if alone: rate times service time (Little's law)."""
    context_tokens = load.mean_prompt_tokens + load.mean_new_tokens / 2
    prefill_s = costs.prefill_s(model.name, (round(load.mean_prompt_tokens),))
    return load.rate_per_s * (
        prefill_s + load.mean_new_tokens * costs.decode_step_s(model.name, round(context_tokens), 1)
    )


def busy_share(model: ModelSpec, load: ModelLoad, costs: CostModel, replicas: int = 1) -> float:
    """Share of time that a GPU of the model computes, its traffic spread over ``replicas``.

    A batched step costs about as much as one of a single request, so a GPU is busy while at least one request is under
    way: 1 - exp(-concurrency) for Poisson arrivals (M/G/infinity).
    """
    return 1.0 - exp(-concurrency(model, load, costs) / replicas)
