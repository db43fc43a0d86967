"""What a node's device can do, and what a model that nobody has profiled takes on it: the same roofline as everywhere.

Here a model is known by what the pool knows of it (its parameters, the shape of its KV), not by its architecture: what
attention multiplies is taken from the shape, and a mixture of experts for a dense model.
"""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.latency.estimate.device_spec import DeviceSpec
from aegaeon.latency.estimate.roofline import CALIBRATED, PeakTimes, Slowdown, slowed

_PAIRS_PER_KV_READ = 16  # a prompt's token reads a past one's KV once for so many queries
_LINK_EFFICIENCY = 0.8

# Rates of a processor are what its kernels reach; beside them it has half a millisecond of dispatch per layer.
CPU_SLOWDOWN = Slowdown(
    prefill_weights=1.0,
    prefill_flops=1.0,
    prefill_layer_s=0.5e-3,
    prefill_expert_layer_s=0.0,
    decode_weights=1.0,
    decode_kv=1.0,
    decode_flops=1.0,
    decode_layer_s=0.5e-3,
    decode_expert_layer_s=0.0,
    decode_request_s=0.0,
)


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """Rates of a device (a multiply-add is two operations), and how much slower than these it is.

    ``host_link_bytes_per_s``: of copies between host and device; None where nothing is copied.
    """

    memory_bytes_per_s: float
    flops_per_s: float
    slowdown: Slowdown
    host_link_bytes_per_s: float | None = None

    @classmethod
    def cpu(cls, threads: int, *, copying: bool = False) -> DeviceRates:
        """One to a few cores of a current server: 10 GB/s and 60 GFLOP/s each; where memory is copied, half of a
        core's."""
        return cls(10e9 * threads, 60e9 * threads, CPU_SLOWDOWN, 5e9 if copying else None)

    @classmethod
    def gpu(cls, spec: DeviceSpec) -> DeviceRates:
        """A data sheet's rates, slowed down as published measurements are; eight tenths of the host link."""
        link = _LINK_EFFICIENCY * spec.host_link_bytes_per_s
        return cls(spec.memory_bytes_per_s, spec.flops_per_s, CALIBRATED, link)


def estimate_profile(model: ModelSpec, parameters: int, rates: DeviceRates) -> LatencyProfile:
    """Decode reads the weights once a step and the KV of every context; prefill multiplies every weight per token."""
    kv_token_s = model.kv_shape.token_bytes / rates.memory_bytes_per_s
    time = PeakTimes(
        weights_s=model.weight_bytes / rates.memory_bytes_per_s,
        kv_token_s=kv_token_s,
        token_s=2.0 * parameters / rates.flops_per_s,
        token_pair_s=kv_token_s / _PAIRS_PER_KV_READ,
    )
    return slowed(time, len(model.kv_shape.layers), 0, rates.slowdown)
