"""Measures one point with a probe."""

from __future__ import annotations

import time
from typing import assert_never

from aegaeon.profiling.grid import DECODE_STEPS
from aegaeon.profiling.point import CopyPoint, DecodePoint, HandOverPoint, Point, PrefillPoint, SwitchPoint
from aegaeon.profiling.probe import Probe, Script

_SMALL_BATCH = (Script(32, 4, decoding=True),) * 4
_WARM_UP = 96
"""Decode steps before anything is measured: hot weights are packed a piece per step, memory is touched."""


def warm_up(probe: Probe, model: str) -> None:
    """Run the model until it is as fast as it gets."""
    probe.run_turn(model, (Script(32, _WARM_UP, decoding=True),))


def measure(probe: Probe, model: str, other: str, point: Point) -> float:
    """Seconds of ``point`` for ``model``. ``other``: whose turn is before this one's in a hand-over; may be itself."""
    match point:
        case PrefillPoint():
            return probe.run_turn(model, (Script(point.tokens, 1, decoding=False),)).prefill_s
        case DecodePoint():
            members = (Script(point.context, DECODE_STEPS, decoding=True),) * point.batch
            if probe.captures:
                probe.run_turn(model, members)
                probe.settle(model)
            return probe.run_turn(model, members).decode_step_s
        case HandOverPoint():
            return _hand_over_s(probe, model, other)
        case SwitchPoint():
            return _switch_s(probe, model, point.cold)
        case CopyPoint():
            return probe.copy_s(model, point.what)
        case _:
            assert_never(point)


def _hand_over_s(probe: Probe, model: str, other: str) -> float:
    probe.hold(model, other)
    before = probe.run_turn(other, _SMALL_BATCH)
    after = probe.run_turn(model, _SMALL_BATCH)
    return max(0.0, after.token_times_s[0] - before.token_times_s[-1] - after.decode_step_s)


def _switch_s(probe: Probe, model: str, cold: bool) -> float:
    probe.hold(model)
    probe.take_back(model)
    if cold:
        probe.forget(model)
    asked_s = time.monotonic()
    probe.lend(model)
    turn = probe.run_turn(model, _SMALL_BATCH)
    return max(0.0, turn.token_times_s[0] - asked_s - turn.decode_step_s)
