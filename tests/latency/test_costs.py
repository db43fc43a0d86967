"""What a node's scheduler is told of moving weights and KV, and of the time between turns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.latency.estimate.device_rates import DeviceRates
from aegaeon.latency.estimate.device_spec import DEVICES
from aegaeon.latency.files.profile_book import ProfileEntry
from aegaeon.latency.online.costs import make_costs

GPU, HOST = DeviceRates.gpu(DEVICES["h200"]), DeviceRates.cpu(2)
SHAPE = KvShape((LayerKv(2, 16, 16),))
SPEC = ModelSpec("m", 10 * 10**9, SHAPE, 4096)
ENTRY = ProfileEntry(
    "m", "h200", LatencyProfile(1, 1, 1, 1, 1, 1), 10**10, SHAPE, 4096, 1, False, "a test", 0.0, 40e9, 20e9
)


def test_where_nothing_is_copied_a_switch_costs_the_hand_over() -> None:
    costs = make_costs([SPEC], {}, {"m": replace(ENTRY, hand_over_s=0.003)}, HOST)
    assert costs.switch_s("m") == pytest.approx(0.003 + 0.01, abs=1e-3)


def test_on_a_gpu_weights_take_the_link_until_it_is_measured() -> None:
    assert make_costs([SPEC], {}, {}, GPU).switch_s("m") == pytest.approx(0.02 + 10 / (0.8 * 63))
    assert make_costs([SPEC], {}, {"m": ENTRY}, GPU).switch_s("m") == pytest.approx(10 / 40)


def test_kv_moves_as_fast_as_it_was_measured() -> None:
    costs = make_costs([SPEC], {}, {"m": ENTRY}, GPU)
    assert costs.kv_move_s("m", 1600) == pytest.approx(SHAPE.bytes_for(1600) / 20e9)
