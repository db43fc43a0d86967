"""What the control plane knows of a request."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.core.slo import Slo


@dataclass(frozen=True, slots=True)
class Request:
    """One request as schedulers see it.

    ``max_new_tokens`` is a limit, not a prediction. ``oracle_new_tokens`` is the true output length; only
    oracle baselines of the simulator read it. ``width``: rows of a step, and tables of KV beyond the prompt's whole
    blocks, that it takes: it is a search by beams where that is more than one.
    """

    request_id: str
    model: str
    arrival_s: float
    prompt_tokens: int
    max_new_tokens: int
    slo: Slo = Slo()
    oracle_new_tokens: int | None = None
    width: int = 1

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.max_new_tokens < 1:
            raise ValueError(f"request {self.request_id}: prompt and output limits must be at least one token")
        if self.width < 1:
            raise ValueError(f"request {self.request_id}: it takes at least one row of a step, not {self.width}")
