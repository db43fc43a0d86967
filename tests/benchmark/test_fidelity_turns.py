"""What the fidelity benchmark reads out of a real pool's log: made-up logs whose costs are known."""

from __future__ import annotations

import pytest

from aegaeon.core.command import Command, StartTurn
from aegaeon.core.event import Event, RequestArrived, RequestPrefilled, TurnEnded, TurnEndReason
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.record import RequestRecord
from aegaeon.core.request import Request
from aegaeon.core.slo import Slo
from aegaeon.core.turn_timing import StepSums, TurnTiming
from aegaeon.scheduler.log import LogEntry
from benchmark.fidelity.turns import TurnCosts, way_s

PROFILE = LatencyProfile(0.010, 0.0003, 0.0, 0.009, 0.000_002, 0.000_25)
COSTS = TurnCosts(1.1, 0.001, 1.05, 0.0004, gap_s=0.0002, hand_over_s=0.002, mixed_overlap=0.25)
GAP_S = COSTS.gap_s
IN_POOL = LatencyProfile(0.012, 0.000_33, 0.0, 0.009_45, 0.000_002_1, 0.000_662_5)


class Log:
    """Writes turns one after the other."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []
        self.now_s = 0.0
        self._turns = 0

    def add(self, event: Event, *commands: Command, after_s: float = 0.0) -> None:
        self.now_s += after_s
        self.entries.append(LogEntry(self.now_s, event, commands))

    def start(self, *, prefill: int, decode: int, keep: bool) -> int:
        self._turns += 1
        prompts = tuple(f"p{self._turns}-{index}" for index in range(prefill))
        members = tuple(f"d{self._turns}-{index}" for index in range(decode))
        turn = StartTurn("i", self._turns, "m", prompts, members, None, keep)
        request = Request(f"r{self._turns}", "m", self.now_s, 100, 10)
        self.add(RequestArrived(request), turn)
        return self._turns

    def end(self, turn_id: int, timing: TurnTiming, after_s: float) -> None:
        self.add(TurnEnded("i", turn_id, TurnEndReason.DRAINED, (), timing), after_s=after_s)

    def kept_prompt_turn(self, tokens: int, steps: int) -> None:
        """Its request stays, and decodes alone."""
        prompt_s, step_s = IN_POOL.prefill_s([tokens]), IN_POOL.decode_step_s(tokens, 1)
        turn_id = self.start(prefill=1, decode=0, keep=True)
        self.add(RequestPrefilled("i", turn_id, f"kept{turn_id}", tokens + 1))
        prefill = StepSums(1, tokens, tokens * tokens, prompt_s)
        timing = TurnTiming("m", prefill, StepSums(steps, steps * tokens, steps, steps * step_s))
        self.end(turn_id, timing, COSTS.hand_over_s + (steps + 1) * GAP_S + prompt_s + steps * step_s)

    def prompt_turn(self, tokens: int) -> None:
        seconds = IN_POOL.prefill_s([tokens])
        turn_id = self.start(prefill=1, decode=0, keep=False)
        timing = TurnTiming("m", StepSums(1, tokens, tokens * tokens, seconds), None)
        self.end(turn_id, timing, COSTS.hand_over_s + GAP_S + seconds)

    def decode_turn(self, members: int, steps: int, context_tokens: int) -> None:
        step_s = IN_POOL.decode_step_s(context_tokens, members)
        turn_id = self.start(prefill=0, decode=members, keep=True)
        timing = TurnTiming("m", None, StepSums(steps, steps * context_tokens, steps * members, steps * step_s))
        self.end(
            turn_id, timing, COSTS.hand_over_s + steps * GAP_S + (steps + 1) * step_s
        )  # the first step is not timed

    def mixed_turn(self, members: int, steps: int, context_tokens: int, prompt_tokens: int) -> None:
        step_s = IN_POOL.decode_step_s(context_tokens, members)
        smaller_s = min(IN_POOL.p0_s, IN_POOL.d0_s + IN_POOL.d2_s * members)
        mixed_s = IN_POOL.prefill_s([prompt_tokens]) + step_s - COSTS.mixed_overlap * smaller_s
        turn_id = self.start(prefill=0, decode=members, keep=True)
        self.add(RequestPrefilled("i", turn_id, f"late{turn_id}", prompt_tokens + 1), after_s=COSTS.hand_over_s)
        timing = TurnTiming("m", None, StepSums(steps, steps * context_tokens, steps * members, steps * step_s))
        self.end(turn_id, timing, (steps + 1) * (step_s + GAP_S) + mixed_s)


def make_log() -> Log:
    log = Log()
    for tokens in (10, 100, 400):
        log.prompt_turn(tokens)
    for members in (1, 4, 16):
        log.decode_turn(members, 20, 150 * members)
    log.mixed_turn(8, 30, 1200, 200)
    log.kept_prompt_turn(200, 40)  # no step of it is mixed
    return log


def test_costs_are_read_out_of_a_log() -> None:
    costs = TurnCosts.of(make_log().entries, {"m": PROFILE})
    for name in ("prefill_ratio", "prompt_s", "decode_ratio", "member_s", "gap_s", "hand_over_s", "mixed_overlap"):
        assert getattr(costs, name) == pytest.approx(getattr(COSTS, name), rel=1e-6), name


def test_a_profile_in_the_pool_has_the_ratios_and_what_is_added() -> None:
    in_pool = COSTS.in_pool(PROFILE)
    assert in_pool.prefill_s([100]) == pytest.approx(IN_POOL.prefill_s([100]) + GAP_S)
    assert in_pool.decode_step_s(500, 4) == pytest.approx(IN_POOL.decode_step_s(500, 4) + GAP_S)


def test_slowness_is_of_the_timed_steps_and_makes_everything_slower() -> None:
    costs = TurnCosts.of(make_log().entries, {"m": PROFILE})
    assert costs.slowness(make_log().entries, {"m": PROFILE}) == pytest.approx(1.0)
    slower = costs.slower(1.25)
    assert slower.slowness(make_log().entries, {"m": PROFILE}) == pytest.approx(1 / 1.25)
    assert slower.hand_over_s == pytest.approx(1.25 * costs.hand_over_s)
    assert slower.mixed_overlap == costs.mixed_overlap
    assert slower.in_pool(PROFILE).prefill_s([100]) == pytest.approx(1.25 * costs.in_pool(PROFILE).prefill_s([100]))


def test_a_log_without_timed_turns_has_no_slowness() -> None:
    with pytest.raises(ValueError, match="no timed turn"):
        COSTS.slowness([], {"m": PROFILE})


@pytest.mark.parametrize("kind", ["prompts", "steps", "nothing"])
def test_a_log_without_a_kind_of_turn_is_refused(kind: str) -> None:
    log = Log()
    if kind == "prompts":
        log.prompt_turn(100)
    elif kind == "steps":
        log.decode_turn(4, 20, 600)
    with pytest.raises(ValueError, match="no timed turn of each kind"):
        TurnCosts.of(log.entries, {"m": PROFILE})


def test_the_way_is_what_the_driver_does_not_see() -> None:
    log = Log()
    records = []
    for index, took_s in enumerate((0.05, 0.07, 0.2)):
        request = Request(f"cmpl-{index}", "m", log.now_s, 100, 10)
        sent_s = log.now_s
        log.add(RequestArrived(request), after_s=0.001)
        log.add(RequestPrefilled("i", index, request.request_id, 101), after_s=took_s)
        first_token_s = log.now_s + 0.004
        records.append(RequestRecord(f"job-{index}", "m", sent_s, 100, 10, (first_token_s,), Slo(), None, None))
        log.now_s += 1.0
    assert way_s(log.entries, records) == pytest.approx(0.005)
