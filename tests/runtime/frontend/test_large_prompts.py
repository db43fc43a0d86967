"""Prompts far too long for their model, over HTTP, with real tokenizers: refused, and nobody else waits for that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from aegaeon.core.generation import ModelCard
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.runtime.frontend.frontend import PoolFrontend
from aegaeon.runtime.frontend.served_model import ServedModel
from aegaeon.runtime.frontend.text import ModelText
from aegaeon.runtime.wire.clock import MonotonicClock
from aegaeon.server.app import ServerOptions, create_app
from aegaeon.server.http.address import bind
from aegaeon.server.serve import serve
from aegaeon.toy_models.make_tokenizer import make_tokenizer

CONTEXT_TOKENS = 2048


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(1024).save_pretrained(directory)
    spec = ModelSpec("tiny", 1, KvShape((LayerKv(1, 2, 2),)), CONTEXT_TOKENS)
    card = ModelCard("tiny", "Llama", CONTEXT_TOKENS, 1, 0, has_chat_template=True)
    return ServedModel(spec, card, ModelText(directory), 1024)


@pytest.fixture
async def client(served: ServedModel) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server whose pool has no node: what may begin ends there."""
    frontend = PoolFrontend({"tiny": served}, MonotonicClock())
    sock, started = bind("127.0.0.1", 0), asyncio.Event()
    url = "http://{}:{}".format(*sock.getsockname())
    serving = asyncio.create_task(serve(create_app(frontend, ServerOptions()), sock, on_started=started.set, grace_s=0))
    await started.wait()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    frontend.close()


PROMPTS = {
    "one word": "a" * 15_000_000,
    "many words": "hello world " * 1_250_000,
    "spaces": "." + " " * 15_000_000 + ".",
    "emoji": "🙂" * 3_000_000,
}


@pytest.mark.parametrize("text", PROMPTS.values(), ids=PROMPTS.keys())
@pytest.mark.parametrize("chat", [False, True])
async def test_others_are_answered_while_a_huge_prompt_is_refused(
    client: httpx.AsyncClient, text: str, chat: bool
) -> None:
    path = "/v1/chat/completions" if chat else "/v1/completions"
    prompt = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    body = json.dumps({"model": "tiny", **prompt}, ensure_ascii=False).encode()
    refusing = asyncio.create_task(client.post(path, content=body))
    answered = 0
    while not refusing.done():
        assert (await client.get("/health")).status_code == 200
        answered += 1
    error = (await refusing).json()["error"]
    assert answered
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith(f"This model's maximum context length is {CONTEXT_TOKENS} tokens. However, ")
    assert error["param"] == ("messages" if chat else "prompt")


async def test_very_many_messages_are_refused_for_their_length(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "x"}] * 100_000
    answer = await client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("body", [b'{"x":[' + b"1," * 2_000_000 + b"1]}", b'{"x":[' + b'"",' * 2_000_000 + b'""]}'])
async def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(
    client: httpx.AsyncClient, body: bytes
) -> None:
    answer = await client.post("/v1/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "request_too_large"


async def test_what_does_not_fit_is_said_as_clients_expect_it(client: httpx.AsyncClient) -> None:
    async def refused(path: str, **body: object) -> dict[str, str]:
        answer = await client.post(path, json={"model": "tiny", **body})
        assert answer.status_code == 400
        return dict(answer.json()["error"])

    asked = await refused("/v1/completions", prompt=[5] * 2040, max_tokens=9)
    assert asked["message"].startswith(
        "This model's maximum context length is 2048 tokens. However, you requested 2049 tokens "
        "(2040 in the prompt, 9 in the completion). Please reduce the length"
    )
    assert (asked["param"], asked["code"]) == ("max_tokens", "context_length_exceeded")
    long = await refused("/v1/completions", prompt=[5] * 3000)
    assert "maximum context length is 2048 tokens. However, your prompt resulted in 3000 tokens" in long["message"]
    assert (long["param"], long["code"]) == ("prompt", "context_length_exceeded")
