"""Targets of a model and of a single request: from HTTP to the scheduler, and what comes of them."""

from __future__ import annotations

import httpx
import pytest

from aegaeon.core.event import RequestArrived
from aegaeon.core.slo import Slo
from aegaeon.scheduler.log import decode
from aegaeon.server.app import create_app

PROMPT = list(range(10, 40))


@pytest.mark.parametrize("policy", ["aegaeon", "slack", "sllm"])
async def test_targets_of_models_and_requests_reach_the_scheduler(pool, tmp_path, policy):
    log = tmp_path / "events.jsonl"
    async with pool(2, policy=policy, event_log=log, slos={"m1": Slo(3.0, 0.25)}) as running:
        transport = httpx.ASGITransport(create_app(running.frontend))
        async with httpx.AsyncClient(transport=transport, base_url="http://pool") as client:
            for model in ("m0", "m1"):
                for slo in (None, {"ttft_s": 0.5, "tpot_s": 0.02}):
                    body = {"model": model, "prompt": PROMPT, "max_tokens": 4, "slo": slo}
                    assert (await client.post("/v1/completions", json=body)).status_code == 200
            chat = {"model": "m0", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
            reply = await client.post("/v1/chat/completions", json={**chat, "slo": {"ttft_s": 60, "tpot_s": 1}})
            assert reply.status_code == 200
        await running.settled()
    events = [decode(line).event for line in log.read_text().splitlines()]
    seen = [event.request.slo for event in events if isinstance(event, RequestArrived)]
    assert seen == [Slo(), Slo(0.5, 0.02), Slo(3.0, 0.25), Slo(0.5, 0.02), Slo(60.0, 1.0)]
