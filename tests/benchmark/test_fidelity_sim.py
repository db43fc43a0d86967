"""The fidelity benchmark serves and simulates the same policy: it is named once."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.slo import Slo
from aegaeon.latency.files.profile_book import ProfileEntry
from benchmark.e2e.job import ReplayJob
from benchmark.fidelity import main as fidelity
from benchmark.fidelity import simulated as fidelity_sim
from benchmark.fidelity.pool import serve_arguments
from benchmark.fidelity.turns import TurnCosts

PROFILE = LatencyProfile(0.010, 0.0003, 0.0, 0.009, 0.000_002, 0.000_25)
MACHINE = fidelity_sim.MeasuredMachine(TurnCosts(1.0, 0.0, 1.0, 0.0, hand_over_s=0.002), 0.002, 0.001)
SHAPE = KvShape((LayerKv(4, 64, 64),) * 8)


@pytest.mark.parametrize("policy", fidelity.POLICIES)
def test_what_is_served_is_what_is_simulated(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve_arguments(policy, {"a": Path("a")}, Path("profiles"), 1 << 30, Path("log"))
    assert served[served.index("--policy") + 1] == policy
    made: list[str] = []
    find_policy = fidelity_sim.find_policy
    monkeypatch.setattr(fidelity_sim, "find_policy", lambda name: made.append(name) or find_policy(name))
    profiles = {
        name: ProfileEntry(name, "cpu", PROFILE, 30 << 20, SHAPE, 640, tp=1, estimated=False, source="made up")
        for name in ("a", "b")
    }
    jobs = [ReplayJob(f"{index}", "ab"[index % 2], 0.1 * index, 50, 20) for index in range(10)]
    records = fidelity_sim.simulate(policy, jobs, Slo(2.0, 0.15), profiles, MACHINE)
    assert made == [policy]
    assert [record.request_id for record in records] == [job.request_id for job in jobs]
    assert all(record.completed for record in records)


def test_both_the_default_and_the_papers_policy_are_compared() -> None:
    assert fidelity.parse_options([]).policies == ["slack", "aegaeon"]
