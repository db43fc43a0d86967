"""Runs experiments: starts engines, sends each the same requests at the same time, and measures the answers."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import httpx

from benchmark.command.errors import BenchmarkError
from benchmark.e2e.completion_stream import ReplyError, read_chunks, refusal
from benchmark.e2e.pool import PoolProcess
from benchmark.e2e.small_models import CACHE_DIR
from benchmark.lmcache_harness.config import EngineConfig, HarnessCase, Row, Usecase, WorkloadConfig
from benchmark.lmcache_harness.workload import HarnessRequest, TextMaker, requests_of, warm_up_texts

MODEL = "model"  # its name at the engines
_LOGS = CACHE_DIR / "lmcache-harness"
_TIMEOUT_S = 600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HarnessAnswer:
    """Of one answer, from the request's sending on; -1 where it failed. ``throughput``: chunks/s after the first."""

    ttft_s: float = -1.0
    throughput: float = -1.0
    latency_s: float = -1.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    text: str = ""


def run_case(case: HarnessCase) -> list[Row]:
    """The rows of all experiments, by time, engine and request."""
    return [
        row for number, workload in enumerate(case.workloads) for row in _experiment(number, workload, case.engines)
    ]


def _experiment(number: int, workload: WorkloadConfig, engines: Sequence[EngineConfig]) -> Iterator[Row]:
    requests = [requests_of(workload, TextMaker(engine.model)) for engine in engines]
    with ExitStack() as stack:
        urls = [stack.enter_context(_pool(place, engine)).url for place, engine in enumerate(engines)]
        answers = asyncio.run(_all_engines(urls, requests, workload))
        memory = json.dumps(gpu_memory())
    ordered = sorted(
        (request.at_s, engine, place, answers[engine][place])
        for engine in range(len(engines))
        for place, request in enumerate(requests[engine])
    )
    for at_s, engine, place, answer in ordered:
        yield {
            "expr_id": number,
            "timestamp": at_s,
            "engine_id": engine,
            "request_id": place,
            "TTFT": answer.ttft_s,
            "throughput": answer.throughput,
            "latency": answer.latency_s,
            "context_len": workload.context_tokens,
            "query_len": workload.query_tokens,
            "gpu_memory": memory,
            "prompt_tokens": answer.prompt_tokens,
            "cached_tokens": answer.cached_tokens,
        }


def _pool(place: int, engine: EngineConfig) -> PoolProcess:
    arguments = [f"{MODEL}={engine.model}", *engine.arguments]
    return PoolProcess(arguments, _LOGS / f"engine-{place}.log", port=engine.port)


async def _all_engines(
    urls: Sequence[str], requests: Sequence[Sequence[HarnessRequest]], workload: WorkloadConfig
) -> list[list[HarnessAnswer]]:
    clients = [httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S) for url in urls]
    try:
        for client in clients:
            for text in warm_up_texts():
                if (await ask(client, text, 1)).ttft_s < 0:
                    raise BenchmarkError(f"{client.base_url} does not answer; its log is in {_LOGS}")
        begin_s = time.perf_counter()
        engine = _converse if workload.usecase is Usecase.MULTI else _send_all
        return [*await asyncio.gather(*map(engine, clients, requests, [workload] * len(urls), [begin_s] * len(urls)))]
    finally:
        for client in clients:
            await client.aclose()


async def _send_all(
    client: httpx.AsyncClient, requests: Sequence[HarnessRequest], workload: WorkloadConfig, begin_s: float
) -> list[HarnessAnswer]:
    """Each at its time, whatever has become of those before."""

    async def send(request: HarnessRequest) -> HarnessAnswer:
        await _until(begin_s + request.at_s)
        return await ask(client, request.text, workload.output_tokens)

    return [*await asyncio.gather(*map(send, requests))]


async def _converse(
    client: httpx.AsyncClient, requests: Sequence[HarnessRequest], workload: WorkloadConfig, begin_s: float
) -> list[HarnessAnswer]:
    """Each after the answer to the one before, which it has in front of it."""
    messages: list[dict[str, str]] = []
    answers: list[HarnessAnswer] = []
    for request in requests:
        await _until(begin_s + request.at_s)
        messages.append({"role": "user", "content": request.text})
        answers.append(await ask(client, messages, workload.output_tokens))
        messages.append({"role": "assistant", "content": answers[-1].text})
    return answers


async def _until(when_s: float) -> None:
    await asyncio.sleep(max(0.0, when_s - time.perf_counter()))


async def ask(client: httpx.AsyncClient, asked: str | Sequence[dict[str, str]], output_tokens: int) -> HarnessAnswer:
    """The answer of a chat, streamed, greedy; nothing of it where the server refused or the stream broke."""
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else [*asked]
    body = {
        "model": MODEL,
        "messages": messages,
        "temperature": 0,
        "max_tokens": output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begin_s = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                raise ReplyError(refusal(response.status_code, await response.aread()))
            return await _measure(response, begin_s)
    except (ReplyError, httpx.HTTPError) as error:
        logger.warning("a request to %s failed: %s", client.base_url, error or type(error).__name__)
        return HarnessAnswer()


async def _measure(response: httpx.Response, begin_s: float) -> HarnessAnswer:
    times_s: list[float] = []
    texts: list[str] = []
    usage: dict[str, int] = {}
    async for chunk in read_chunks(response):
        text = "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
        if times_s or text.strip():
            times_s += [time.perf_counter()] * bool(text)
        texts.append(text)
        if chunk.get("usage"):
            details = chunk["usage"].get("prompt_tokens_details") or {}
            usage = {"prompt_tokens": chunk["usage"]["prompt_tokens"], "cached_tokens": details.get("cached_tokens", 0)}
    end_s = time.perf_counter()
    first_s = times_s[0] if times_s else end_s  # the whole answer was blank
    rest_s = end_s - first_s
    throughput = len(times_s) / rest_s if len(times_s) > 1 else 0.0
    return HarnessAnswer(first_s - begin_s, throughput, end_s - begin_s, text="".join(texts), **usage)


def gpu_memory() -> dict[str, int]:
    """MiB in use by GPU, none where there is none."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return {f"gpu-{number}": int(line) for number, line in enumerate(said.split())}
