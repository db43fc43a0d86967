"""What happened to a request, the same for real and simulated runs, and the metrics over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from aegaeon.core.slo import Slo
from aegaeon.core.timeline import LatencyParts


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request's outcome. ``token_times_s`` are absolute, on the run's clock; empty if it failed or was dropped."""

    request_id: str
    model: str
    arrival_s: float
    prompt_tokens: int
    new_tokens: int
    token_times_s: tuple[float, ...]
    slo: Slo
    parts: LatencyParts | None = None
    error: str | None = None

    @property
    def completed(self) -> bool:
        """Whether it ended well; whoever sees that tokens are missing sets ``error``."""
        return self.error is None and len(self.token_times_s) > 0

    @property
    def per_token_s(self) -> tuple[float, ...]:
        """TTFT, then the gaps between tokens."""
        times = (self.arrival_s, *self.token_times_s)
        return tuple(later - earlier for earlier, later in pairwise(times))

    @property
    def ttft_s(self) -> float | None:
        return self.token_times_s[0] - self.arrival_s if self.token_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None with fewer than two tokens."""
        count = len(self.token_times_s)
        return (self.token_times_s[-1] - self.token_times_s[0]) / (count - 1) if count > 1 else None

    @property
    def slo_attainment(self) -> float:
        """Share of this request's tokens produced by their due time; 0 when it was dropped or did not finish."""
        return slo_attainment(self.per_token_s, self.slo) if self.completed else 0.0

    @property
    def qos(self) -> float:
        """The artifact's metric for this request; 0 when it was dropped or did not finish."""
        return qos(self.per_token_s, self.slo) if self.completed else 0.0


def slo_attainment(per_token_s: Sequence[float], slo: Slo) -> float:
    """Share of tokens on time: token k is due ``ttft_s + k * tpot_s`` after arrival.

    ``per_token_s``: TTFT, then gaps, in seconds; must not be empty.
    """
    on_time = sum(elapsed_s <= slo.due_s(0.0, index) + 1e-9 for index, elapsed_s in enumerate(accumulate(per_token_s)))
    return on_time / len(per_token_s)


def qos(per_token_s: Sequence[float], slo: Slo) -> float:
    """Share of service time during which the request was on target (what the SOSP'25 artifact plots as attainment).

    Walk the tokens with the running sum: while it is within the target since the last miss, the target grows by one
    TPOT per token; a miss books the time that was covered and starts afresh at that token.
    """
    elapsed_s = start_s = covered_s = booked_s = 0.0
    target_s = slo.ttft_s
    for gap_s in per_token_s:
        elapsed_s += gap_s
        if elapsed_s - start_s <= target_s:
            covered_s = target_s
        else:
            booked_s += covered_s
            start_s, covered_s = elapsed_s, 0.0
        target_s += slo.tpot_s
    booked_s += min(target_s, elapsed_s - start_s)
    return booked_s / elapsed_s if elapsed_s > 0 else 1.0


def mean_attainment(records: Sequence[RequestRecord]) -> float:
    """``slo_attainment`` averaged over requests; dropped ones count 0."""
    return sum(record.slo_attainment for record in records) / len(records) if records else 1.0


def mean_qos(records: Sequence[RequestRecord]) -> float:
    """``qos`` averaged over requests; dropped ones count 0."""
    return sum(record.qos for record in records) / len(records) if records else 1.0
