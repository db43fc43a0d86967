"""Latency of a model on a device that nobody has profiled: a roofline estimate.

Good enough to start with: quotas follow ratios between models more than absolute times.
"""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.latency.device_spec import DeviceSpec


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """What a device can do (a multiply-add is two operations), and the fixed costs of a step and of a layer.

    ``host_link_bytes_per_s``: of copies between host and device; None where nothing is copied.
    """

    memory_bytes_per_s: float
    flops_per_s: float
    step_overhead_s: float
    layer_overhead_s: float
    host_link_bytes_per_s: float | None = None

    @classmethod
    def cpu(cls, threads: int, *, copying: bool = False) -> DeviceRates:
        """One to a few cores of a current server: 10 GB/s and 60 GFLOP/s each, 0.5 ms of dispatch per layer; where
        memory is copied, half of a core's."""
        return cls(10e9 * threads, 60e9 * threads, 1.5e-3, 0.5e-3, 5e9 if copying else None)

    @classmethod
    def gpu(cls, spec: DeviceSpec) -> DeviceRates:
        """Seven tenths of a data sheet's bandwidth, half of its arithmetic; 10 us of dispatch per layer, as graphs;
        eight tenths of the host link."""
        link = 0.8 * spec.host_link_bytes_per_s
        return cls(0.7 * spec.memory_bytes_per_s, 0.5 * spec.flops_per_s, 0.5e-3, 10e-6, link)


def estimate_profile(model: ModelSpec, parameters: int, rates: DeviceRates) -> LatencyProfile:
    """Decode reads the weights once a step and the KV of every context; prefill multiplies every weight per token."""
    layers = len(model.kv_shape.layers)
    fixed_s = rates.step_overhead_s + layers * rates.layer_overhead_s
    token_s = 2.0 * parameters / rates.flops_per_s
    kv_token_s = model.kv_shape.token_bytes / rates.memory_bytes_per_s
    return LatencyProfile(
        p0_s=fixed_s + model.weight_bytes / rates.memory_bytes_per_s,
        p1_s=token_s,
        p2_s=kv_token_s / 16,
        d0_s=fixed_s + model.weight_bytes / rates.memory_bytes_per_s,
        d1_s=kv_token_s,
        d2_s=token_s,
    )
