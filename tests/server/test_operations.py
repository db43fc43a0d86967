"""Models, health, metrics, and what holds for every request."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from aegaeon.core.generation import Health
from aegaeon.server.app import ServerOptions, create_app
from tests.worlds.scripted import ScriptedFrontend

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def test_models_are_listed_and_shown(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["tiny", "org/other"]
    shown = (await client.get("/v1/models/org/other")).json()
    assert shown == listed["data"][1]
    assert shown["object"] == "model"
    assert shown["max_model_len"] == 4096


async def test_a_model_that_is_not_there_is_404(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/models/none")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("state", "health", "ready"),
    [
        (Health(ready=True, live=True), 200, 200),
        (Health(ready=False, live=True, detail="loading"), 200, 503),
        (Health(ready=False, live=False, detail="driver gone"), 503, 503),
    ],
)
async def test_health_and_readiness(
    client: httpx.AsyncClient, frontend: ScriptedFrontend, state: Health, health: int, ready: int
) -> None:
    frontend.state = state
    assert (await client.get("/health")).status_code == health
    answer = await client.get("/ready")
    assert answer.status_code == ready
    assert answer.json()["detail"] == state.detail


async def test_the_root_says_what_this_is(client: httpx.AsyncClient) -> None:
    assert (await client.get("/")).json()["name"] == "aegaeon"


async def test_metrics_count_requests_tokens_and_latencies(client: httpx.AsyncClient) -> None:
    await client.post("/v1/chat/completions", json=CHAT)
    await client.post("/v1/chat/completions", json={**CHAT, "model": "made-up"})
    lines = (await client.get("/metrics")).text.splitlines()
    assert 'aegaeon_http_requests_total{route="/v1/chat/completions",status="200"} 1.0' in lines
    assert 'aegaeon_http_requests_total{route="/v1/chat/completions",status="404"} 1.0' in lines
    assert 'aegaeon_generations_total{model="tiny",outcome="stop"} 1.0' in lines
    assert 'aegaeon_prompt_tokens_total{model="tiny"} 7.0' in lines
    assert 'aegaeon_generated_tokens_total{model="tiny"} 3.0' in lines
    assert 'aegaeon_generations_running{model="tiny"} 0.0' in lines
    assert 'aegaeon_time_to_first_token_seconds_sum{model="tiny"} 0.5' in lines
    assert 'aegaeon_time_per_output_token_seconds_sum{model="tiny"} 0.25' in lines
    assert not any("made-up" in line for line in lines)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("POST", "/v1/chat/completions/", 404),
    ],
)
async def test_wrong_paths_and_methods_are_error_objects(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert path in answer.json()["error"]["message"]
    assert answer.headers["x-request-id"]


async def test_a_request_id_is_made_or_kept(client: httpx.AsyncClient, frontend: ScriptedFrontend) -> None:
    first = await client.post("/v1/chat/completions", json=CHAT)
    second = await client.post("/v1/chat/completions", json=CHAT)
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    mine = {"X-Request-Id": "my id/1"}
    answers = [await client.post("/v1/chat/completions", json=CHAT, headers=mine) for _ in range(2)]
    answers.append(await client.post("/v1/chat/completions", json=[], headers=mine))
    assert [answer.headers["x-request-id"] for answer in answers] == ["my id/1"] * 3
    assert len({request.request_id for request in frontend.requests}) == len(frontend.requests) == 4


@pytest.mark.parametrize("given", ["x" * 129, "tab\there", "ümlaut"])
async def test_a_bad_request_id_is_refused(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.get("/health", headers={"X-Request-Id": given.encode("latin-1")})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Request-Id"
    assert answer.headers["x-request-id"] != given


async def test_keys_guard_the_api_and_nothing_else(frontend: ScriptedFrontend) -> None:
    app = create_app(frontend, ServerOptions(api_keys=("one", "two")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        for headers in ({}, {"Authorization": "Bearer three"}, {"Authorization": "one"}):
            answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        for key in ("one", "two"):
            assert (await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})).status_code == 200
        assert (await client.get("/health")).status_code == 200
    assert "two" not in repr(ServerOptions(api_keys=("one", "two")))


async def test_metrics_may_want_a_key_of_their_own(frontend: ScriptedFrontend) -> None:
    options = ServerOptions(api_keys=("user",), metrics_keys=("scraper",))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(frontend, options)), base_url="http://x"
    ) as client:
        for key, metrics, models in ((None, 401, 401), ("user", 401, 200), ("scraper", 200, 401)):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            assert (await client.get("/metrics", headers=headers)).status_code == metrics
            assert (await client.get("/v1/models", headers=headers)).status_code == models
        assert (await client.get("/health")).status_code == 200
    assert "scraper" not in repr(options)


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/metrics", "/v1/models", "/v1/models/tiny"])
async def test_head_is_get_without_the_body(address: tuple[str, int], path: str) -> None:
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as client:
        answer = await client.head(path)
        assert answer.status_code == 200
        assert answer.content == b""
        if path != "/metrics":
            assert answer.headers["content-length"] == (await client.get(path)).headers["content-length"]


ORIGIN = "http://localhost:3000"


async def test_pages_of_the_origins_that_are_named_may_use_the_api(frontend: ScriptedFrontend) -> None:
    app = create_app(frontend, ServerOptions(api_keys=("one",), cors_origins=(ORIGIN, "https://chat.example")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        answer = await client.options("/v1/chat/completions", headers={"Origin": ORIGIN, **asked})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert answer.headers["x-request-id"]
        # Errors too, or the page would see none of them.
        for headers, status in (({}, 401), ({"Authorization": "Bearer one"}, 200)):
            answer = await client.post("/v1/chat/completions", json=CHAT, headers={"Origin": ORIGIN, **headers})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
        foreign = await client.options("/v1/models", headers={"Origin": "http://evil.example", **asked})
        assert foreign.status_code == 400
        assert "access-control-allow-origin" not in foreign.headers


async def test_a_bug_is_an_error_that_pages_can_read(frontend: ScriptedFrontend) -> None:
    def broken() -> Health:
        raise RuntimeError

    frontend.health = broken  # type: ignore[method-assign]
    app = create_app(frontend, ServerOptions(cors_origins=("*",)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        answer = await client.get("/health", headers={"Origin": ORIGIN})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, "*")
    assert answer.headers["x-request-id"]


async def test_without_origins_there_is_no_cors(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/models", headers={"Origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert (await client.options("/v1/models", headers={"Origin": ORIGIN})).status_code == 405


async def test_a_bug_is_a_500_without_its_insides(
    app: FastAPI, client: httpx.AsyncClient, frontend: ScriptedFrontend, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Health:
        raise RuntimeError("secret detail")

    frontend.health = broken  # type: ignore[method-assign]
    answer = await client.get("/health", headers={"X-Request-Id": "find-me"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "find-me" in answer.json()["error"]["message"]
    assert answer.headers["x-request-id"] == "find-me"
    assert "find-me" in caplog.text
    assert "secret detail" in caplog.text
