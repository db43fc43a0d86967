"""Open-loop replay of a workload against an OpenAI-compatible server; what each client saw, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import httpx

from aegaeon.core.record import RequestRecord
from aegaeon.core.slo import Slo
from aegaeon.core.timeline import PhaseSpan
from benchmark.e2e.completion_stream import CompletionStream, ReplyError, read_chunks, refusal
from benchmark.e2e.job import ReplayJob, TargetModel


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a job: its record on the replay's clock, and the server's spans on the server's."""

    record: RequestRecord
    spans: tuple[PhaseSpan, ...] = ()


class ReplayObserver(Protocol):
    """Is told how a replay goes on."""

    def sent(self, job: ReplayJob) -> None: ...

    def first_token(self, job: ReplayJob) -> None: ...

    def done(self, job: ReplayJob, reply: Replayed) -> None: ...


async def served_models(client: httpx.AsyncClient) -> list[TargetModel]:
    """The models of ``/v1/models``, in the server's order."""
    response = await client.get("/v1/models")
    response.raise_for_status()
    return [TargetModel(card["id"], card.get("max_model_len")) for card in response.json()["data"]]


async def is_foreign(client: httpx.AsyncClient) -> bool:
    """Whether this is another server than ours, as far as it says what it is."""
    try:
        response = await client.get("/v1/models")
        return any(card.get("owned_by") != "aegaeon" for card in response.json()["data"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        return True


def http_client(base_url: str, timeout_s: float) -> httpx.AsyncClient:
    """A client without a limit on connections: requests never wait for each other on this side.

    ``timeout_s`` bounds the wait for the next byte of a reply.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    timeout = httpx.Timeout(timeout_s, connect=30.0, pool=None)
    return httpx.AsyncClient(base_url=base_url.rstrip("/"), limits=limits, timeout=timeout)


@dataclass(slots=True)
class Replay:
    """One replay of jobs; its clock starts at 0 with ``run``."""

    client: httpx.AsyncClient
    slo: Slo
    observer: ReplayObserver
    start_s: float = 0.0
    lag_s: float = field(default=0.0, init=False)  # the latest that a request was sent after its time
    foreign: bool = field(default=True, init=False)

    async def run(self, jobs: Sequence[ReplayJob]) -> list[Replayed]:
        """Send each job at its time, whatever became of those before; replies in the order of ``jobs``."""
        self.foreign = await is_foreign(self.client)
        self.start_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._run_job(job)) for job in jobs]
        return [task.result() for task in tasks]

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.start_s

    async def _run_job(self, job: ReplayJob) -> Replayed:
        await asyncio.sleep(job.time_s - self.now_s)
        self.lag_s = max(self.lag_s, self.now_s - job.time_s)
        self.observer.sent(job)
        stream = CompletionStream()
        try:
            await self._receive(job, stream)
            reply = self._reply(job, stream, stream.token_times(job.new_tokens))
        except (httpx.HTTPError, ReplyError) as error:
            reply = self._reply(job, stream, (), error=str(error) or type(error).__name__)
        self.observer.done(job, reply)
        return reply

    async def _receive(self, job: ReplayJob, stream: CompletionStream) -> None:
        headers = {"X-Request-Id": job.request_id, "X-Aegaeon-Timeline": "1"}
        body = job.body(self.slo, foreign=self.foreign)
        async with self.client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
            if response.status_code != httpx.codes.OK:
                raise ReplyError(refusal(response.status_code, await response.aread()))
            async for chunk in read_chunks(response):
                before = stream.tokens
                stream.add(chunk, self.now_s)
                if before == 0 < stream.tokens:
                    self.observer.first_token(job)

    def _reply(
        self, job: ReplayJob, stream: CompletionStream, times_s: tuple[float, ...], error: str | None = None
    ) -> Replayed:
        record = RequestRecord(
            request_id=job.request_id,
            model=job.model,
            arrival_s=job.time_s,
            prompt_tokens=job.prompt_tokens,
            new_tokens=job.new_tokens,
            token_times_s=times_s,
            slo=self.slo,
            parts=stream.parts() if error is None else None,
            error=error,
        )
        return Replayed(record, stream.spans())
