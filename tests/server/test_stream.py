"""Streams, event by event."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from aegaeon.core.generation import EngineError, FinishReason
from tests.worlds.scripted import Script, ScriptedFrontend, usage_of

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
TEXT = {"model": "tiny", "prompt": "Once", "stream": True}


def _events(answer: httpx.Response) -> list[Any]:
    """The data of each event; ``[DONE]`` as it is."""
    *events, rest = answer.text.split("\n\n")
    assert rest == ""
    assert all(event.startswith("data: ") for event in events)
    data = [event.removeprefix("data: ") for event in events]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


async def _chat(client: httpx.AsyncClient, headers: dict[str, str] | None = None, **fields: Any) -> list[Any]:
    answer = await client.post("/v1/chat/completions", json={**CHAT, **fields}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in answer.headers
    return _events(answer)


async def test_a_chat_stream(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    frontend.script = Script(texts=('Hé"l', "", "lo\n"), finish_reason=FinishReason.LENGTH)
    *chunks, done = await _chat(client)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all(chunk["model"] == "tiny" and chunk["created"] and chunk["system_fingerprint"] for chunk in chunks)
    assert not any("usage" in chunk for chunk in chunks)
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
        for delta, reason in [
            ({"role": "assistant", "content": "", "refusal": None}, None),
            ({"content": 'Hé"l'}, None),
            ({"content": "lo\n"}, None),
            ({}, "length"),
        ]
    ]


async def test_a_text_stream(client: httpx.AsyncClient) -> None:
    *chunks, done = _events(await client.post("/v1/completions", json=TEXT))
    assert done == "[DONE]"
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    assert [(chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) for chunk in chunks] == [
        ("Hel", None),
        ("lo", None),
        ("!", None),
        ("", "stop"),
    ]


async def test_usage_comes_last_and_only_when_asked_for(client: httpx.AsyncClient) -> None:
    *chunks, usage, done = await _chat(client, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"] == usage_of(7, 3)
    assert "aegaeon" not in usage
    assert done == "[DONE]"


async def test_the_timeline_brings_the_usage_with_it(client: httpx.AsyncClient) -> None:
    *chunks, last, _ = await _chat(client, headers={"X-Aegaeon-Timeline": "1"})
    assert not any("usage" in chunk for chunk in chunks)
    assert last["usage"]["total_tokens"] == 10
    assert last["aegaeon"]["token_times_s"] == [100.5, 100.75, 101.0]
    assert last["aegaeon"]["spans"][0]["phase"] == "prefill"


async def test_output_without_text_is_still_a_stream(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    frontend.script = Script(texts=("",))
    role, end, done = await _chat(client)
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert end["choices"][0]["finish_reason"] == "stop"
    assert done == "[DONE]"


async def test_choices_stream_side_by_side(client: httpx.AsyncClient) -> None:
    *chunks, done = await _chat(client, n=3)
    assert done == "[DONE]"
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    assert order != sorted(order)
    for index in range(3):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in own) == "Hello!"
        assert [choice["finish_reason"] for choice in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("failure", "code"), [(EngineError("instance lost"), "engine_error"), (KeyError("secret"), "internal_error")]
)
@pytest.mark.parametrize("n", [1, 3])
async def test_a_failure_in_a_stream_ends_it_with_an_error(
    client: httpx.AsyncClient, frontend: ScriptedFrontend, failure: Exception, code: str, n: int
) -> None:
    frontend.script = Script(failure=failure)
    *chunks, last = await _chat(client, n=n, headers={"X-Request-Id": "find-me"})
    assert chunks
    assert set(last) == {"error"}
    assert last["error"]["code"] == code
    assert "secret" not in last["error"]["message"]
    assert all(generation.cancelled.is_set() for generation in frontend.generations)
    metrics = (await client.get("/metrics")).text
    assert f'aegaeon_generations_total{{model="tiny",outcome="failed"}} {n}.0' in metrics


async def test_output_that_just_stops_is_an_error(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    frontend.script = Script(finish_reason=None)
    *_, last = await _chat(client)
    assert last["error"]["code"] == "engine_error"


async def test_a_failure_before_the_first_token_has_a_status(
    client: httpx.AsyncClient, frontend: ScriptedFrontend
) -> None:
    frontend.script = Script(texts=(), failure=EngineError("instance lost"))
    answer = await client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "engine_error"
