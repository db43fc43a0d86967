"""A pool without profiles learns what the profiler measures: the real engine on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aegaeon.core.event import TurnEnded
from aegaeon.device.local_cpu import local_cpu
from aegaeon.latency.profile_book import ProfileBook
from aegaeon.make_model import ModelSizes, make_model
from aegaeon.profiling.campaign import Campaign
from aegaeon.scheduler.log import decode


@pytest.mark.slow
async def test_calibration_comes_near_the_measured_profile(pool, tmp_path: Path):
    """Within a third: the pool's instance is a thread here that shares its process, and machines are not quiet."""
    folder = tmp_path / "model"
    make_model("llama", folder, ModelSizes(hidden_size=256, layers=6, max_context=512))
    campaign = Campaign(
        {"real": folder}, tmp_path / "profiles", 1, 32 << 20, 512, 8, 512, 0.9, True, False, "2026-11-21"
    )
    assert campaign.run(lambda *_: None)[1] == []
    entry = ProfileBook.open(tmp_path / "profiles").measured("real", local_cpu(1).name)
    assert entry is not None

    async with pool(
        ["m0"], extra={"real": folder}, event_log=tmp_path / "log.jsonl", kv_cache_bytes=64 << 20
    ) as running:
        for length in (20, 60, 120, 240, 400):
            asked = [
                running.generate(f"r{length}-{index}", "real", [40 + index] * length, max_new_tokens=40)
                for index in range(1 + length // 100)
            ]
            await asyncio.gather(*asked)
        await running.settled()
        scheduler = running.node.make_scheduler()
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        event = decode(line).event
        if isinstance(event, TurnEnded) and event.timing is not None:
            scheduler.costs.observe(event.timing)
    found, measured = scheduler.costs.profiles["real"], entry.profile
    assert found.prefill_s([200]) == pytest.approx(measured.prefill_s([200]), rel=0.33)
    assert found.decode_step_s(3 * 300, 3) == pytest.approx(measured.decode_step_s(3 * 300, 3), rel=0.33)
