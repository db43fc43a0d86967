"""Whole answers: what reaches the frontend, what comes back, what is refused."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest

from aegaeon.core.generation import (
    ChatPrompt,
    ContextLengthError,
    EngineError,
    FailureCause,
    FinishReason,
    ModelUnavailableError,
    OverloadedError,
    PoolUnavailableError,
    PromptError,
    TextPrompt,
    TokenPrompt,
)
from aegaeon.core.sampling import BeamParams, SamplingParams
from aegaeon.core.slo import Slo
from aegaeon.server.openai.unsupported import UNSUPPORTED
from tests.worlds.scripted import Script, ScriptedFrontend, usage_of

MESSAGES = [{"role": "user", "content": "hi"}]


async def _chat(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES, **fields})


async def _complete(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"model": "tiny", "prompt": "Once", **fields})


def _refused(answer: httpx.Response, param: str | None, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    return error


# --- bodies ---


async def test_a_chat_answer(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    frontend.script = Script(texts=("Hél", "lo", ""), finish_reason=FinishReason.LENGTH)
    answer = await _chat(client)
    body = answer.json()
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["created"] > 1_600_000_000
    assert body["system_fingerprint"].startswith("aegaeon-")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Héllo", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert body["usage"] == usage_of(7, 3)
    assert float(answer.headers["x-aegaeon-ttft-ms"]) == 500.0
    assert float(answer.headers["x-aegaeon-tpot-ms"]) == 250.0


async def test_a_text_answer(client: httpx.AsyncClient) -> None:
    body = (await _complete(client)).json()
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": "Hello!", "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["total_tokens"] == 10


async def test_several_prompts_and_choices_keep_their_order(
    client: httpx.AsyncClient, frontend: ScriptedFrontend
) -> None:
    body = (await _complete(client, prompt=["one", "two"], n=3, best_of=3, seed=5)).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert body["usage"] == usage_of(14, 18, cached_tokens=6)
    asked = [(request.prompt, request.sampling.seed) for request in frontend.requests]
    assert asked == [(TextPrompt(text), seed) for text in ("one", "two") for seed in (5, 6, 7)]
    assert len({request.request_id for request in frontend.requests}) == 6


async def test_of_best_of_those_of_the_likeliest_tokens_are_answered(
    client: httpx.AsyncClient, frontend: ScriptedFrontend
) -> None:
    frontend.script = Script(logprobs=(-3.0, -1.0, -2.0, -4.0, -1.5, -2.5, -0.5, -9.0))
    body = (await _complete(client, prompt=["one", "two"], n=2, best_of=4, seed=5)).json()
    assert [choice["text"] for choice in body["choices"]] == ["answer 1", "answer 2", "answer 6", "answer 4"]
    assert [choice["index"] for choice in body["choices"]] == list(range(4))
    assert body["usage"]["completion_tokens"] == 8
    assert [request.sampling.seed for request in frontend.requests] == [5, 6, 7, 8] * 2
    assert all(request.sampling.scored for request in frontend.requests)
    await _complete(client, n=2, best_of=2)
    assert not frontend.requests[-1].sampling.scored


async def test_a_search_by_beams_is_one_generation_with_several_outputs(
    client: httpx.AsyncClient, frontend: ScriptedFrontend
) -> None:
    frontend.script = Script(texts=("best", "second"), outputs=2)
    asked = {"use_beam_search": True, "best_of": 4, "n": 2, "length_penalty": 0.5, "early_stopping": "never"}
    for post in (_complete, _chat):
        body = (await post(client, **asked, temperature=0, max_tokens=5)).json()
        texts = [choice.get("text") or choice["message"]["content"] for choice in body["choices"]]
        assert texts == ["best", "second"]
        assert body["usage"]["completion_tokens"] == 2
        request = frontend.requests.pop()
        assert request.sampling.beams == BeamParams(4, 2, 0.5, "never")
        assert not request.unset, "a model's own defaults are of sampling"
        assert not frontend.requests
    await _complete(client, use_beam_search=True, n=3, length_penalty="1.5", early_stopping="true")
    assert frontend.requests[-1].sampling.beams == BeamParams(3, 3, 1.5, early_stopping=True)


async def test_the_timeline_comes_on_request(client: httpx.AsyncClient) -> None:
    headers = {"X-Aegaeon-Timeline": "1"}
    body = {"model": "tiny", "messages": MESSAGES}
    with_timeline = (await client.post("/v1/chat/completions", json=body, headers=headers)).json()
    assert with_timeline["aegaeon"] == {
        "arrival_s": 100.0,
        "token_times_s": [100.5, 100.75, 101.0],
        "spans": [{"phase": "prefill", "start_s": 100.0, "end_s": 100.5, "instance": "n0.i1"}],
        "now_s": 200.0,
    }
    assert "aegaeon" not in (await _chat(client)).json()
    _refused(await client.post("/v1/chat/completions", json={**body, "n": 2}, headers=headers), "X-Aegaeon-Timeline")


# --- what reaches the frontend ---


async def test_chat_defaults(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    await _chat(client, temperature=None, stop=None, max_tokens=None, n=None, stream=None)
    (request,) = frontend.requests
    assert request.fit_context
    assert request.slo is None
    assert request.prompt == ChatPrompt(({"role": "user", "content": "hi"},), {})
    assert request.sampling == SamplingParams(max_new_tokens=request.sampling.max_new_tokens)
    assert request.sampling.max_new_tokens > 1_000_000


async def test_text_defaults(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    await _complete(client)
    assert not frontend.requests[0].fit_context
    assert frontend.requests[0].sampling == SamplingParams(max_new_tokens=16)


async def test_all_sampling_fields_arrive(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    answer = await _chat(
        client,
        max_completion_tokens=9,
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        seed=-4,
        stop="###",
        stop_token_ids=[1, 2],
        ignore_eos=True,
        min_tokens=3,
        slo={"ttft_s": 1, "tpot_s": 0.05},
        chat_template_kwargs={"enable_thinking": False},
    )
    assert answer.status_code == 200
    (request,) = frontend.requests
    assert request.sampling == SamplingParams(
        max_new_tokens=9,
        temperature=0.0,
        top_k=0,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        seed=-4,
        stop=("###",),
        stop_token_ids=(1, 2),
        ignore_eos=True,
        min_new_tokens=3,
    )
    assert request.slo == Slo(1.0, 0.05)
    assert not request.fit_context
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.template_kwargs == {"enable_thinking": False}


async def test_seeds_of_choices_stay_in_64_bits(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    await _chat(client, n=2, seed=2**63 - 1)
    assert [request.sampling.seed for request in frontend.requests] == [2**63 - 1, -(2**63)]


async def test_what_is_left_open_is_named(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    await _chat(client, temperature=None, top_p=1.0, max_tokens=None)
    assert {"temperature", "top_k", "min_p", "repetition_penalty", "max_new_tokens"} <= frontend.requests[0].unset
    await _chat(client, temperature=1.0, top_p=1.0, top_k=-1, max_completion_tokens=9)
    assert not {"temperature", "top_p", "top_k", "max_new_tokens"} & frontend.requests[1].unset


async def test_message_parts_and_template_fields_arrive(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    await _chat(client, messages=[{"role": "user", "content": parts, "name": "Ann"}, call])
    (request,) = frontend.requests
    assert isinstance(request.prompt, ChatPrompt)
    first, second = request.prompt.messages
    assert first == {"role": "user", "content": parts, "name": "Ann"}
    assert second == {"role": "assistant", "tool_calls": [{"id": "1"}]}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Once", [TextPrompt("Once")]),
        (["Once", "Twice"], [TextPrompt("Once"), TextPrompt("Twice")]),
        ([1, 2], [TokenPrompt((1, 2))]),
        ([[1, 2], [3]], [TokenPrompt((1, 2)), TokenPrompt((3,))]),
    ],
)
async def test_prompts_of_all_forms(
    client: httpx.AsyncClient, frontend: ScriptedFrontend, prompt: Any, prompts: list[Any]
) -> None:
    assert (await _complete(client, prompt=prompt)).status_code == 200
    assert [request.prompt for request in frontend.requests] == prompts


# --- what is refused ---


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"seed": 2**70}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": {}}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"slo": {"ttft_s": 1}}, "slo.tpot_s"),
        ({"slo": {"ttft_s": 0, "tpot_s": 1}}, "slo.ttft_s"),
        ({"slo": {"ttft_s": 86401, "tpot_s": 1}}, "slo.ttft_s"),
        ({"slo": {"ttft_s": 1, "tpot_s": 0.0009}}, "slo.tpot_s"),
        ({"slo": {"ttft_s": 1, "tpot_s": 5e-324}}, "slo.tpot_s"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"best_of": 17}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"length_penalty": 2}, "length_penalty"),
        ({"early_stopping": True}, "early_stopping"),
        ({"use_beam_search": True}, "best_of"),
        ({"use_beam_search": True, "best_of": 17}, "best_of"),
        ({"use_beam_search": True, "best_of": 2, "n": 3}, "best_of"),
        ({"use_beam_search": True, "n": 2, "stream": True}, "stream"),
        ({"use_beam_search": True, "best_of": 4, "stream": True}, "stream"),
        ({"use_beam_search": True, "n": 2, "temperature": 0.7}, "temperature"),
        ({"use_beam_search": True, "n": 2, "repetition_penalty": 1.1}, "repetition_penalty"),
        ({"use_beam_search": True, "n": 2, "stop": "x"}, "stop"),
        ({"use_beam_search": True, "n": 2, "length_penalty": "nan"}, "length_penalty"),
        ({"use_beam_search": True, "n": 2, "length_penalty": 4.5}, "length_penalty"),
        ({"use_beam_search": True, "n": 2, "early_stopping": "soon"}, "early_stopping"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "5.5"}, "max_tokens"),
        ({"max_tokens": "9" * 5000}, "max_tokens"),
        ({"n": 1.5}, "n"),
        ({"seed": "one"}, "seed"),
        ({"temperature": "nan"}, "temperature"),
        ({"stream": 2}, "stream"),
        ({"stream": True, "stream_options": {"include_usage": "perhaps"}}, "stream_options.include_usage"),
        ({"stop": ["x" * 1025]}, "stop"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
        ({"stop_token_ids": [True]}, "stop_token_ids[0]"),
    ],
)
async def test_wrong_values_name_their_field(
    client: httpx.AsyncClient, frontend: ScriptedFrontend, fields: dict[str, Any], param: str
) -> None:
    for post in (_chat, _complete):
        error = _refused(await post(client, **fields), param)
        assert error["type"] == "invalid_request_error"
        assert param.split("[")[0] in error["message"]
    assert not frontend.requests


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (None, "messages"),
        ("hi", "messages"),
        ([{"role": "user"}], "messages[0]"),
        ([{"role": "user", "content": "x"}, {"content": "x"}], "messages[1].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content"),
        (["x"], "messages[0]"),
    ],
)
async def test_wrong_messages_name_their_place(client: httpx.AsyncClient, messages: Any, param: str) -> None:
    _refused(await _chat(client, messages=messages), param)


@pytest.mark.parametrize(
    "prompt", ["", [], [""], [[]], None, 5, {}, [1, "a"], ["a", 1], [[1], ["a"]], [-1], [True], [1.5], [2**31]]
)
async def test_wrong_prompts_are_refused(client: httpx.AsyncClient, prompt: Any) -> None:
    _refused(await _complete(client, prompt=prompt), "prompt")


async def test_missing_fields_are_named(client: httpx.AsyncClient) -> None:
    _refused(await client.post("/v1/chat/completions", json={"messages": MESSAGES}), "model")
    _refused(await client.post("/v1/chat/completions", json={"model": "tiny"}), "messages")
    _refused(await client.post("/v1/completions", json={"model": "tiny"}), "prompt")


async def test_too_many_choices_are_refused(client: httpx.AsyncClient) -> None:
    _refused(await _complete(client, prompt=["x"] * 11, n=2), "prompt")


EFFECTIVE = {
    "tools": [{"type": "function"}],
    "tool_choice": "required",
    "functions": [{}],
    "logprobs": True,
    "top_logprobs": 3,
    "logit_bias": {"5": 1},
    "response_format": {"type": "json_object"},
    "modalities": ["audio"],
    "suffix": "end",
    "echo": True,
    "reasoning_effort": "high",
    "guided_json": {},
    "guided_whitespace_pattern": " ",
    "bad_words": ["x"],
    "allowed_token_ids": [5],
    "include_stop_str_in_output": True,
    "truncate_prompt_tokens": 5,
    "skip_special_tokens": False,
    "detokenize": False,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "logits_processors": ["x"],
    "thinking_token_budget": 5,
    "priority": 1,
    "request_id": "x",
    "documents": [{"text": "x"}],
    "chat_template": "{{ x }}",
    "include_reasoning": False,
    "prompt_embeds": "x",
    "min_new_tokens": 5,
    "num_predict": 5,
    "max_length": 5,
    "stop_sequences": ["x"],
    "stop_regex": "x+",
    "do_sample": False,
    "num_beams": 4,
    "num_return_sequences": 2,
    "no_repeat_ngram_size": 3,
    "repeat_last_n": 64,
    "penalty_last_n": 64,
    "top_n_sigma": 1.5,
    "epsilon_cutoff": 3,
    "eta_cutoff": 3,
    "samplers": ["top_k"],
    "format": "json",
    "options": {"temperature": 0},
    "parameters": {"temperature": 0},
    "think": False,
    "system": "Be brief.",
    "raw": True,
    "images": ["x"],
    "ban_eos_token": True,
    "n_probs": 3,
    "lora": [{"id": 0, "scale": 0.5}],
}


@pytest.mark.parametrize("name", EFFECTIVE)
async def test_what_is_not_supported_is_refused_not_ignored(
    client: httpx.AsyncClient, frontend: ScriptedFrontend, name: str
) -> None:
    for post in (_chat, _complete):
        error = _refused(await post(client, **{name: EFFECTIVE[name]}), name)
        assert error["code"] == "unsupported_parameter"
        assert name in error["message"]
    assert not frontend.requests


async def test_what_is_not_supported_may_have_the_values_that_change_nothing(client: httpx.AsyncClient) -> None:
    for place in range(max(map(len, UNSUPPORTED.values()))):
        neutral = {name: values[place] for name, values in UNSUPPORTED.items() if len(values) > place}
        for post in (_chat, _complete):
            assert (await post(client, **neutral)).status_code == 200
    for post in (_chat, _complete):
        assert (await post(client, **dict.fromkeys(UNSUPPORTED))).status_code == 200


async def test_what_only_one_of_the_two_supports_is_refused_by_the_other(client: httpx.AsyncClient) -> None:
    for fields in (
        {"max_completion_tokens": 5},  # other than max_tokens, which is silent
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"add_special_tokens": False},
    ):
        (name,) = fields
        assert _refused(await _complete(client, **fields), name)["code"] == "unsupported_parameter"
    assert _refused(await _chat(client, add_special_tokens=True), "add_special_tokens")["code"]
    assert _refused(await _chat(client, best_of=3), "best_of")["code"] == "unsupported_parameter"


async def test_a_salt_goes_to_the_pool(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    for post in (_chat, _complete):
        assert (await post(client, cache_salt="tenant 7")).status_code == 200
        for wrong in ("", "x" * 257, 7):
            _refused(await post(client, cache_salt=wrong), "cache_salt")
    assert [request.cache_salt for request in frontend.requests] == ["tenant 7"] * 2


async def test_what_benchmarking_clients_send_beside_the_rest_is_fine(client: httpx.AsyncClient) -> None:
    usage = {"include_usage": True, "continuous_usage_stats": True}
    reply = await _complete(client, stream=True, stream_options=usage, max_tokens=5, max_completion_tokens=5)
    assert reply.status_code == 200


async def test_a_pool_that_cannot_serve_now_says_when_to_come_again(
    client: httpx.AsyncClient, frontend: ScriptedFrontend
) -> None:
    frontend.script = Script(failure=PoolUnavailableError("no node", 4.2))
    reply = await _chat(client)
    assert _refused(reply, None, status=503)["code"] == "pool_unavailable"
    assert reply.headers["Retry-After"] == "5"


async def test_tools_are_blamed_before_the_choice_between_them(client: httpx.AsyncClient) -> None:
    choice = {"type": "function", "function": {"name": "f"}}
    _refused(await _chat(client, tool_choice=choice, tools=[{"type": "function"}]), "tools")


async def test_neutral_and_unknown_fields_are_fine(client: httpx.AsyncClient) -> None:
    neutral = {
        "tools": [],
        "tool_choice": "none",
        "logprobs": False,
        "top_logprobs": None,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "suffix": None,
        "echo": False,
        "best_of": 1,
        "bad_words": [],
        "length_penalty": 1,
        "priority": 0,
        "skip_special_tokens": True,
        "detokenize": True,
        "verbosity": "medium",
        "reasoning_effort": "medium",
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "prediction": {"type": "content", "content": "x"},
        "no_such_field": [1, {"x": 2}],
    }
    for post in (_chat, _complete):
        answer = await post(client, **neutral)
        assert answer.status_code == 200, answer.text
    assert (await _chat(client, **dict.fromkeys(EFFECTIVE))).status_code == 200


async def test_numbers_and_switches_may_be_text(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    fields = {"max_tokens": "8", "temperature": "0.5", "top_k": 3.0, "seed": "7", "n": "2", "stop_token_ids": ["4"]}
    answer = await _chat(client, **fields, ignore_eos="true", stream=0)
    assert len(answer.json()["choices"]) == 2
    expected = SamplingParams(max_new_tokens=8, temperature=0.5, top_k=3, seed=7, stop_token_ids=(4,), ignore_eos=True)
    assert frontend.requests[0].sampling == expected


async def test_how_a_chat_ends_can_be_said_at_the_top(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    started = [*MESSAGES, {"role": "assistant", "content": "Come"}]
    ends = {"continue_final_message": True, "add_generation_prompt": False}
    assert (await _chat(client, messages=started, **ends)).status_code == 200
    (request,) = frontend.requests
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.template_kwargs == ends
    _refused(await _chat(client, continue_final_message=True, add_generation_prompt=True), None)


async def test_messages_do_not_repeat_everything_that_was_sent(client: httpx.AsyncClient) -> None:
    long = "m" * 50_000
    assert len((await _chat(client, model=long)).content) < 5000
    assert len((await client.get(f"/v1/models/{long}")).content) < 5000
    assert len((await client.get(f"/{long}")).content) < 5000
    parts = [{"role": "user", "content": [{"type": long}]}]
    assert len((await _chat(client, messages=parts)).content) < 5000


async def test_of_very_many_wrong_items_the_first_is_told(client: httpx.AsyncClient) -> None:
    _refused(await _chat(client, stop=[1] * 20_000), "stop[0]")
    _refused(await _chat(client, messages=[{}] * 20_000), "messages[0].role")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b'{"model": "tiny"} x',
        b'{"model": "\xff"}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": "\xed\xa0\x80"}',
        b'{"a":' * 5000,
        "{}".encode("utf-16"),
    ],
)
async def test_bodies_that_are_no_json_objects(client: httpx.AsyncClient, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        _refused(await client.post(path, content=body), None)


async def test_numbers_that_json_does_not_have(client: httpx.AsyncClient) -> None:
    for number in (b"NaN", b"Infinity", b"1e999"):
        body = b'{"model": "tiny", "prompt": "x", "temperature": ' + number + b"}"
        _refused(await client.post("/v1/completions", content=body), "temperature")


async def test_other_kinds_of_content_are_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/completions", data={"model": "tiny"})
    _refused(answer, None, status=415)
    typed = {"Content-Type": "application/json; charset=utf-8"}
    answer = await client.post("/v1/completions", content=b'{"model": "tiny", "prompt": "x"}', headers=typed)
    assert answer.status_code == 200


async def test_a_compressed_body_is_read(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    body = json.dumps({"model": "tiny", "prompt": "Once" * 1000}).encode()
    headers = {"Content-Encoding": "gzip"}
    assert (await client.post("/v1/completions", content=gzip.compress(body), headers=headers)).status_code == 200
    assert frontend.requests[0].prompt == TextPrompt("Once" * 1000)
    bomb = gzip.compress(b" " * 30_000_000)
    assert len(bomb) < 100_000
    _refused(await client.post("/v1/completions", content=bomb, headers=headers), None, status=413)
    for broken in (b"", body, gzip.compress(body)[:-9], gzip.compress(body) + b"x"):
        error = _refused(await client.post("/v1/completions", content=broken, headers=headers), None)
        assert error["code"] == "invalid_gzip"


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "deflate"])
async def test_other_compressions_are_refused(client: httpx.AsyncClient, coding: str) -> None:
    answer = await client.post("/v1/completions", content=b"{}", headers={"Content-Encoding": coding})
    _refused(answer, None, status=415)
    assert "gzip" in answer.headers["accept-encoding"]


async def test_a_body_that_is_too_large(client: httpx.AsyncClient) -> None:
    _refused(await _complete(client, prompt="x" * 100_001), None, status=413)

    async def unannounced() -> Any:
        for _ in range(101):
            yield b" " * 1000

    _refused(await client.post("/v1/completions", content=unannounced()), None, status=413)


# --- what the frontend refuses ---


@pytest.mark.parametrize(
    ("refusal", "status", "param", "code"),
    [
        (PromptError("no template", "messages"), 400, "messages", None),
        (ContextLengthError("too long", "messages"), 400, "messages", "context_length_exceeded"),
        (OverloadedError("full", 2.1), 429, None, "overloaded"),
        (ModelUnavailableError("broken file"), 503, None, "model_unavailable"),
        (EngineError("lost"), 500, None, "engine_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_have_their_status(
    client: httpx.AsyncClient,
    frontend: ScriptedFrontend,
    refusal: Exception,
    status: int,
    param: str | None,
    code: str | None,
    stream: bool,
) -> None:
    frontend.script = Script(refusal=refusal)
    answer = await _chat(client, stream=stream)
    error = _refused(answer, param, status=status)
    assert error["code"] == code
    assert str(refusal) in error["message"]
    assert answer.headers.get("retry-after") == ("3" if status == 429 else None)


async def test_an_unknown_model_is_404(client: httpx.AsyncClient) -> None:
    error = _refused(await _chat(client, model="none"), "model", status=404)
    assert error["code"] == "model_not_found"


async def test_a_failure_before_the_end_is_no_half_answer(
    client: httpx.AsyncClient, frontend: ScriptedFrontend
) -> None:
    frontend.script = Script(failure=EngineError("lost"))
    _refused(await _chat(client, n=3), None, status=500)
    frontend.script = Script(failure=ValueError("secret"))
    assert "secret" not in _refused(await _chat(client), None, status=500)["message"]
    frontend.script = Script(finish_reason=None)
    _refused(await _chat(client), None, status=500)
    assert all(generation.cancelled.is_set() for generation in frontend.generations[:4])


async def test_when_one_choice_is_refused_the_others_are_cancelled(
    client: httpx.AsyncClient, frontend: ScriptedFrontend
) -> None:
    frontend.script = Script(refusal=OverloadedError("full", 1.0))
    frontend.refuse_after = 2
    _refused(await _chat(client, n=3), None, status=429)
    assert len(frontend.generations) == 2
    assert all(generation.cancelled.is_set() for generation in frontend.generations)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("cause", FailureCause)
async def test_failures_inside_the_pool_are_counted_by_model_and_cause(
    client: httpx.AsyncClient, frontend: ScriptedFrontend, n: int, cause: FailureCause
) -> None:
    frontend.script = Script(failure=EngineError("model tiny gave logits that are not finite", cause))
    error = _refused(await _chat(client, n=n), None, status=500)
    assert error["message"] == "model tiny gave logits that are not finite"
    metrics = (await client.get("/metrics")).text
    line = f'aegaeon_generation_failures_total{{cause="{cause}",model="tiny"}} '
    assert line in metrics
    assert 1 <= float(metrics.split(line)[1].split()[0]) <= n


async def test_booleans_and_fractions_are_no_integers(client: httpx.AsyncClient) -> None:
    for field in ("max_tokens", "seed", "top_k", "min_tokens", "n"):
        for value in (True, 1.5, "one"):  # "1" and 1.0 are whole numbers, as vLLM has it
            _refused(await _complete(client, **{field: value}), field)
    for value in (True, -1, 2**31, 10**30, 1.5):
        _refused(await _complete(client, stop_token_ids=[3, value]), "stop_token_ids[1]")
        _refused(await _complete(client, prompt=[3, value]), "prompt")
    for field in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
        _refused(await _complete(client, **{field: True}), field)
