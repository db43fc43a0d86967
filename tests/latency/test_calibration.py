"""Estimates follow the turns that are run: against a device whose truth is known, and through a real node."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.event import TurnEnded, TurnEndReason
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.turn_timing import StepSums, TurnTiming
from aegaeon.latency.fit.online_fit import OnlineFit
from aegaeon.latency.online.calibrated_costs import CalibratedCosts, CalibratingScheduler
from aegaeon.scheduler.log import LogEntry, decode, encode, replay

ESTIMATE = LatencyProfile(10e-3, 400e-6, 100e-9, 10e-3, 2e-6, 300e-6)
MODEL = ModelSpec("m", 1 << 20, KvShape((LayerKv(2, 16, 16),)), 4096)
FACTORS = st.floats(0.2, 5.0)


def scaled(factors: tuple[float, ...]) -> LatencyProfile:
    names = ("p0_s", "p1_s", "p2_s", "d0_s", "d1_s", "d2_s")
    return LatencyProfile(*(getattr(ESTIMATE, name) * f for name, f in zip(names, factors, strict=True)))


class FakeDevice:
    """Times turns by a known profile, with noise, and now and then a disturbance."""

    def __init__(self, truth: LatencyProfile, seed: int, noise: float = 0.05, disturbed: float = 0.0) -> None:
        self._truth = truth
        self._random = random.Random(seed)
        self._noise = noise
        self._disturbed = disturbed

    def turn(self) -> TurnTiming:
        tokens = self._random.choice((16, 64, 200, 512))
        prompts = self._random.randint(1, 3)
        prefill_s = sum(self._truth.prefill_s([tokens]) for _ in range(prompts))
        steps, batch, context = self._random.randint(1, 30), self._random.randint(1, 32), self._random.randint(16, 1000)
        step_s = self._truth.decode_step_s(batch * context, batch)
        return TurnTiming(
            "m",
            StepSums(prompts, prompts * tokens, prompts * tokens**2, self._took(prefill_s)),
            StepSums(steps, steps * batch * context, steps * batch, self._took(steps * step_s)),
        )

    def _took(self, seconds: float) -> float:
        slow = 10.0 if self._random.random() < self._disturbed else 1.0
        return seconds * slow * (1 + self._random.uniform(-self._noise, self._noise))


def make_costs(estimated: tuple[str, ...] = ("m",)) -> CalibratedCosts:
    return CalibratedCosts(ProfiledCosts({"m": MODEL}, {"m": ESTIMATE}, 1e12, 1e12, 0.01), estimated)


def worst_error(costs: CalibratedCosts, truth: LatencyProfile) -> float:
    prefill = [costs.prefill_s("m", [n]) / truth.prefill_s([n]) for n in (16, 100, 500)]
    decode_ = [
        costs.decode_step_s("m", batch * context, batch) / truth.decode_step_s(batch * context, batch)
        for batch, context in product((1, 8, 32), (32, 256, 1000))
    ]
    return max(abs(ratio - 1) for ratio in (*prefill, *decode_))


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[FACTORS] * 6), st.integers(0, 1000))
def test_the_estimate_converges_to_the_device_whatever_it_is(factors: tuple[float, ...], seed: int) -> None:
    costs, truth = make_costs(), scaled(factors)
    device = FakeDevice(truth, seed)
    for _ in range(150):
        costs.observe(device.turn())
    assert worst_error(costs, truth) < 0.15


def test_the_first_turns_bring_most_of_the_correction() -> None:
    truth = scaled((4.0,) * 6)
    costs, device = make_costs(), FakeDevice(truth, seed=1)
    before = worst_error(costs, truth)
    for _ in range(20):
        costs.observe(device.turn())
    assert worst_error(costs, truth) < before / 3


def test_disturbed_turns_hardly_count() -> None:
    truth = scaled((2.0, 1.0, 1.0, 2.0, 1.0, 0.5))
    costs, device = make_costs(), FakeDevice(truth, seed=2, disturbed=0.1)
    for _ in range(300):
        costs.observe(device.turn())
    assert worst_error(costs, truth) < 0.25


def test_it_follows_a_device_that_changes() -> None:
    costs, slower = make_costs(), scaled((2.0,) * 6)
    for truth in (ESTIMATE, slower):
        device = FakeDevice(truth, seed=3)
        for _ in range(300):
            costs.observe(device.turn())
    assert worst_error(costs, slower) < 0.15


def test_a_measured_profile_stays_as_it_is() -> None:
    costs, device = make_costs(estimated=()), FakeDevice(scaled((3.0,) * 6), seed=4)
    for _ in range(20):
        costs.observe(device.turn())
    assert costs.profiles["m"] == ESTIMATE


def test_costs_that_are_not_of_steps_are_those_of_the_base() -> None:
    costs = make_costs()
    assert costs.switch_s("m") == pytest.approx(0.01, rel=1e-3)
    assert costs.kv_move_s("m", 16) == MODEL.kv_shape.bytes_for(16) / 1e12


def test_one_absurd_turn_cannot_ruin_an_estimate() -> None:
    part = OnlineFit((0.01, 1e-4, 1e-8))
    for _ in range(50):
        part.observe((1, 100, 10_000), 0.01 + 0.01 + 1e-4)
    part.observe((1, 100, 10_000), 1e6)
    part.observe((1, 100, 10_000), 1e-9)
    predicted = sum(c * f for c, f in zip(part.coefficients_s, (1, 100, 10_000), strict=True))
    assert predicted == pytest.approx(0.0201, rel=0.1)


@pytest.mark.parametrize("estimate", [(0.0, 1.0, 1.0), (1.0, 1.0), (1.0, -1.0, 1.0)])
def test_an_estimate_has_three_positive_coefficients(estimate: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="three positive"):
        OnlineFit(estimate)


class CostEcho:
    """A scheduler that shows, by what it does, what its costs are at that moment."""

    def __init__(self, costs: CalibratedCosts) -> None:
        self._costs = costs
        self.said: list[float] = []

    def handle(self, event: object, now_s: float) -> list[object]:
        self.said.append(self._costs.decode_step_s("m", 100, 1))
        return []


def test_a_replay_of_the_log_sees_the_same_costs() -> None:
    def run(events: list[TurnEnded]) -> list[float]:
        costs = make_costs()
        echo = CostEcho(costs)
        scheduler = CalibratingScheduler(echo, costs)
        log = [LogEntry(0.0, event, ()) for event in events]
        assert replay(log, scheduler) is None
        return echo.said

    device = FakeDevice(scaled((3.0,) * 6), seed=5)
    events = [TurnEnded("i", number, TurnEndReason.QUOTA, timing=device.turn()) for number in range(30)]
    read_back = [decode(encode(LogEntry(0.0, event, ()))).event for event in events]
    assert read_back == events
    first = run(events)
    assert first == run(read_back)
    assert first[0] != first[-1]


async def test_a_node_learns_from_its_turns_and_its_log_replays(pool, tmp_path):
    async with pool(1, event_log=tmp_path / "log.jsonl") as running:
        for number in range(4):
            await running.generate(f"r{number}", "m0", list(range(40 + number)), max_new_tokens=20)
        await running.settled()
        fresh = running.node.make_scheduler()
        estimate = fresh.costs.profiles["m0"]
    entries = [decode(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    timings = [entry.event.timing for entry in entries if isinstance(entry.event, TurnEnded)]
    assert any(timing.prefill for timing in timings if timing)
    assert any(timing.decode for timing in timings if timing)
    assert replay(entries, fresh) is None
    assert fresh.costs.profiles["m0"] != estimate
