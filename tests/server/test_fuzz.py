"""Whatever the body is: an answer or an error object, never a failure of the server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedFrontend

from aegaeon.server.app import ServerOptions, create_app
from aegaeon.server.schema import ChatRequest, CompletionRequest
from aegaeon.server.unsupported import UNSUPPORTED

FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *UNSUPPORTED})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PARTS = st.fixed_dictionaries({}, optional={"type": st.sampled_from(["text", "image_url"]) | JSON, "text": JSON})
MESSAGES = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant"]) | JSON, "content": JSON | st.lists(PARTS, max_size=3)}
)
PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["tiny", "none"]),
    "messages": st.lists(MESSAGES, max_size=3),
    "prompt": st.text() | st.lists(st.integers(-1, 9)) | st.lists(st.text()) | st.lists(st.lists(st.integers())),
    "n": st.integers(-1, 20),
    "stop": st.text() | st.lists(st.text()),
    "stream": st.booleans(),
}
BODIES = st.fixed_dictionaries(
    {"model": PLAUSIBLE["model"]},
    optional={name: PLAUSIBLE.get(name, st.nothing()) | st.floats(-3, 3) | JSON for name in FIELDS if name != "model"},
)


async def _post(path: str, body: bytes) -> httpx.Response:
    app = create_app(ScriptedFrontend(), ServerOptions())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        return await client.post(path, content=body)


def _check(path: str, body: bytes) -> None:
    answer = asyncio.run(_post(path, body))
    assert answer.headers["x-request-id"]
    if answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
    elif answer.status_code == 200:
        assert answer.json()["choices"]
    else:
        assert answer.status_code in (400, 404)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


paths = st.sampled_from(["/v1/chat/completions", "/v1/completions"])


@given(path=paths, body=BODIES)
@settings(deadline=None)
def test_any_fields(path: str, body: dict[str, Any]) -> None:
    _check(path, json.dumps(body).encode())


@given(path=paths, value=JSON)
@settings(deadline=None)
def test_any_json(path: str, value: Any) -> None:
    _check(path, json.dumps(value).encode())


def _around(text: str) -> bytes:
    return b'{"model": "tiny", "prompt": "' + text.encode() + b'"}'


@given(path=paths, body=st.binary() | st.text().map(_around))
@settings(deadline=None)
def test_any_bytes(path: str, body: bytes) -> None:
    _check(path, body)
