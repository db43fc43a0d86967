"""The generations that one API request fans out to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from itertools import chain
from typing import Any

from aegaeon.core.generation import (
    Delta,
    EngineError,
    FinishReason,
    Frontend,
    Generation,
    GenerationRequest,
)
from aegaeon.server.http.metrics import Metrics
from aegaeon.server.openai.wire import Usage, WholeChoice


class Choice:
    """One generation, and what its answer must remember of it. Times are on the node's monotonic clock."""

    def __init__(self, generation: Generation, model: str) -> None:
        self.generation = generation
        self.model = model
        self.finish_reason: FinishReason | None = None
        self.token_times_s: list[float] = []
        self.logprob = 0.0  # of all tokens, where that was asked for
        self.wholes: list[WholeChoice] = []  # after ``collect``: the output; of a search by beams the best ones

    def observe(self, delta: Delta) -> None:
        """Take note of new output."""
        self.token_times_s += delta.token_times_s
        self.logprob += delta.logprob
        self.finish_reason = delta.finish_reason or self.finish_reason

    def require_finished(self) -> FinishReason:
        """Why the output ended. Raises ``EngineError`` if it just stopped coming."""
        if self.finish_reason is None:
            raise EngineError("The output ended without a reason.")
        return self.finish_reason

    async def collect(self) -> None:
        """Wait for the whole output."""
        texts: list[str] = []
        async for delta in self.generation:
            self.observe(delta)
            texts.append(delta.text)
            if delta.finish_reason is not None:
                self.wholes.append(WholeChoice("".join(texts), delta.finish_reason))
                texts.clear()
        self.require_finished()

    @property
    def token_logprob(self) -> float:
        """The mean log probability of a token."""
        return self.logprob / max(1, self.generation.completion_tokens)

    @property
    def ttft_s(self) -> float | None:
        """The time from arrival to the first token."""
        return self.token_times_s[0] - self.generation.arrival_s if self.token_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first."""
        gaps = len(self.token_times_s) - 1
        return (self.token_times_s[-1] - self.token_times_s[0]) / gaps if gaps > 0 else None

    def timeline(self, now_s: float) -> dict[str, Any]:
        """Where the time went, for benchmarks."""
        return {
            "arrival_s": self.generation.arrival_s,
            "token_times_s": self.token_times_s,
            "spans": [
                {"phase": span.phase, "start_s": span.start_s, "end_s": span.end_s, "instance": span.instance_id}
                for span in self.generation.timeline
            ],
            "now_s": now_s,
        }


class Answer:
    """All choices of a request; choices of the same prompt are neighbours. Of each prompt the ``best`` are answered.

    Whoever makes an answer must ``close`` it, however it ends: that cancels what still runs.
    """

    def __init__(
        self, requests: Sequence[GenerationRequest], choices_per_prompt: int, best: int, metrics: Metrics
    ) -> None:
        self._requests = requests
        self._choices_per_prompt = choices_per_prompt
        self._best = best
        self._metrics = metrics
        self.choices: list[Choice] = []

    async def submit(self, frontend: Frontend) -> None:
        """Hand all generations to the serving system. Raises ``GenerationError``."""
        for index, request in enumerate(self._requests):
            place = index % self._choices_per_prompt
            first = self.choices[index - place].generation if place else None
            self.choices.append(Choice(await frontend.generate(request, first), request.model))
            self._metrics.running.labels(request.model).inc()

    async def for_each(self, work: Callable[[int, Choice], Coroutine[Any, Any, None]]) -> None:
        """Do something with every choice, all at once; raises the first failure and drops the others' work."""
        if len(self.choices) == 1:
            await self._counted(work(0, self.choices[0]), self.choices[0].model)
            return
        try:
            async with asyncio.TaskGroup() as group:
                for index, choice in enumerate(self.choices):
                    group.create_task(self._counted(work(index, choice), choice.model))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _counted(self, work: Coroutine[Any, Any, None], model: str) -> None:
        """Do a choice's work; what the serving system fails of is counted."""
        try:
            await work
        except EngineError as error:
            self._metrics.failed(model, error.cause)
            raise

    async def collect(self) -> None:
        """Wait for all output."""
        await self.for_each(lambda _, choice: choice.collect())

    @property
    def wholes(self) -> list[WholeChoice]:
        """What is answered, after ``collect``: of more choices than that, those of the likeliest tokens."""
        size = self._choices_per_prompt
        groups = [self.choices[start : start + size] for start in range(0, len(self.choices), size)]
        if size > self._best:
            groups = [sorted(group, key=lambda choice: -choice.token_logprob)[: self._best] for group in groups]
        return [whole for choice in chain.from_iterable(groups) for whole in choice.wholes]

    @property
    def usage(self) -> Usage:
        """Tokens of all choices; a prompt counts once however many choices it has."""
        prompts = self.choices[:: self._choices_per_prompt]
        return Usage(
            prompt_tokens=sum(choice.generation.prompt_tokens for choice in prompts),
            completion_tokens=sum(choice.generation.completion_tokens for choice in self.choices),
            cached_tokens=sum(choice.generation.cached_tokens for choice in prompts),
        )

    async def close(self, failed: bool) -> None:
        """Cancel what still runs and book everything."""
        for choice in self.choices:
            outcome = choice.finish_reason or ("failed" if failed else "cancelled")
            generation = choice.generation
            self._metrics.ended(choice.model, outcome, generation)
            self._metrics.observe_latency(choice.model, choice.ttft_s, choice.tpot_s)
            self._metrics.running.labels(choice.model).dec()
        await asyncio.gather(*(choice.generation.cancel() for choice in self.choices))
