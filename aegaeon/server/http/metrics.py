"""What Prometheus scrapes: requests, tokens and latencies per model.

Only names of served models become labels, so that clients cannot make up series.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from aegaeon.core.generation import Generation

_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0)
_TPOT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)


class Metrics:
    """The server's counters and histograms, in a registry that others may add to."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.http_requests = Counter(
            "aegaeon_http_requests", "HTTP requests by route and status.", ("route", "status"), registry=registry
        )
        self.running = Gauge(
            "aegaeon_generations_running", "Generations under way, queued ones too.", ("model",), registry=registry
        )
        self._ended = Counter(
            "aegaeon_generations", "Generations by how they ended.", ("model", "outcome"), registry=registry
        )
        self._failures = Counter(
            "aegaeon_generation_failures",
            "Generations that failed inside the pool, by cause (not_finite: the model's logits are NaN or infinite).",
            ("model", "cause"),
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "aegaeon_prompt_tokens", "Tokens of prompts of ended generations.", ("model",), registry=registry
        )
        self._cached_tokens = Counter(
            "aegaeon_prompt_cached_tokens",
            "Tokens of prompts of ended generations whose KV was there already.",
            ("model",),
            registry=registry,
        )
        self._generated_tokens = Counter(
            "aegaeon_generated_tokens", "Tokens produced by ended generations.", ("model",), registry=registry
        )
        self._ttft = Histogram(
            "aegaeon_time_to_first_token_seconds",
            "From arrival to the first token.",
            ("model",),
            buckets=_TTFT_BUCKETS_S,
            registry=registry,
        )
        self._tpot = Histogram(
            "aegaeon_time_per_output_token_seconds",
            "Mean time per token after the first, per generation.",
            ("model",),
            buckets=_TPOT_BUCKETS_S,
            registry=registry,
        )

    def ended(self, model: str, outcome: str, generation: Generation) -> None:
        """Count a generation that came to its end, whatever the end was."""
        self._ended.labels(model, outcome).inc()
        self._prompt_tokens.labels(model).inc(generation.prompt_tokens)
        self._cached_tokens.labels(model).inc(generation.cached_tokens)
        self._generated_tokens.labels(model).inc(generation.completion_tokens)

    def failed(self, model: str, cause: str) -> None:
        """Count a generation that failed inside the serving system, by what made it fail."""
        self._failures.labels(model, cause).inc()

    def observe_latency(self, model: str, ttft_s: float | None, tpot_s: float | None) -> None:
        """Book the latencies of a generation, as far as it has them."""
        if ttft_s is not None:
            self._ttft.labels(model).observe(ttft_s)
        if tpot_s is not None:
            self._tpot.labels(model).observe(tpot_s)

    def render(self) -> bytes:
        """All series of the registry in the text format."""
        return generate_latest(self._registry)
