"""The ``openai`` package, unmodified, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

from aegaeon.core.generation import (
    ContextLengthError,
    EngineError,
    ModelUnavailableError,
    OverloadedError,
    PromptError,
)
from tests.worlds.scripted import Script, ScriptedFrontend

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def base_url(address: tuple[str, int]) -> str:
    host, port = address
    return f"http://{host}:{port}/v1"


@pytest.fixture
async def api(base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=10) as api:
        yield api


async def test_async_chat(api: openai.AsyncOpenAI) -> None:
    answer = await api.chat.completions.create(model="tiny", messages=MESSAGES, extra_headers={"X-Request-Id": "mine"})
    assert answer.choices[0].message.content == "Hello!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    assert answer._request_id == "mine"


async def test_async_chat_stream(api: openai.AsyncOpenAI) -> None:
    stream = await api.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "Hello!"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_async_completions(api: openai.AsyncOpenAI) -> None:
    answer = await api.completions.create(model="tiny", prompt=["a", "b"], n=2, seed=1)
    assert [choice.text for choice in answer.choices] == ["Hello!"] * 4
    stream = await api.completions.create(model="tiny", prompt=[1, 2, 3], stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello!"


async def test_the_sync_client(base_url: str) -> None:
    def use() -> list[str]:
        with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=10) as api:
            names = [model.id for model in api.models.list()]
            assert api.models.retrieve("org/other").id == "org/other"
            whole = api.chat.completions.create(model="tiny", messages=MESSAGES)
            stream = api.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            text = api.completions.create(model="tiny", prompt="Once").choices[0].text
            return [*names, whole.choices[0].message.content or "", streamed, text]

    assert await asyncio.to_thread(use) == ["tiny", "org/other", "Hello!", "Hello!", "Hello!"]


async def test_the_streaming_helper(api: openai.AsyncOpenAI) -> None:
    async with api.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello!"


@pytest.mark.parametrize(
    ("refusal", "error", "status"),
    [
        (PromptError("no", "messages"), openai.BadRequestError, 400),
        (ContextLengthError("no", "messages"), openai.BadRequestError, 400),
        (OverloadedError("no", 3.0), openai.RateLimitError, 429),
        (ModelUnavailableError("no"), openai.InternalServerError, 503),
        (EngineError("no"), openai.InternalServerError, 500),
        (RuntimeError("no"), openai.InternalServerError, 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_raise_the_clients_own_errors(
    api: openai.AsyncOpenAI,
    frontend: ScriptedFrontend,
    refusal: Exception,
    error: type[openai.APIStatusError],
    status: int,
    stream: bool,
) -> None:
    frontend.script = Script(refusal=refusal)
    with pytest.raises(error) as caught:
        await api.chat.completions.create(model="tiny", messages=MESSAGES, stream=stream)
    assert caught.value.status_code == status
    assert caught.value.request_id


async def test_unknown_models_and_bad_values(api: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await api.chat.completions.create(model="none", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as hot:
        await api.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)
    assert hot.value.param == "temperature"


async def test_a_failing_stream_raises(api: openai.AsyncOpenAI, frontend: ScriptedFrontend) -> None:
    frontend.script = Script(failure=EngineError("instance lost"))
    stream = await api.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    for _ in range(4):  # the role, then three tokens
        await anext(stream)
    with pytest.raises(openai.APIError, match="instance lost"):
        await anext(stream)


async def test_a_client_may_retry_after_overload(base_url: str, frontend: ScriptedFrontend) -> None:
    frontend.script = Script(refusal=OverloadedError("full", 0.5))

    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=1, timeout=10) as api:
        asked = asyncio.create_task(api.chat.completions.create(model="tiny", messages=MESSAGES))
        await frontend.refused.wait()
        frontend.script = Script()
        answer = await asked
    assert answer.choices[0].message.content == "Hello!"


async def test_a_body_that_is_too_large(api: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await api.completions.create(model="tiny", prompt="x" * 300_000)
    assert caught.value.status_code == 413
