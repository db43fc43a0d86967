"""Estimates the latency of a model on a device from what both are made of (the roofline model).

A decode step reads the weights once and every request's KV; a prefill multiplies every weight with every token. Peak
rates are slowed down by what ``slowdown.py`` found on the published measurements. With ``tp`` devices each
does its share, and two all-reduces per layer (ring: 2 (tp - 1) / tp of the activations per device, and a latency) join
them.
"""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.core.profile import LatencyProfile
from aegaeon.latency.estimate.architecture import Architecture
from aegaeon.latency.estimate.device_spec import DeviceSpec
from aegaeon.latency.estimate.errors import LatencyError

ALL_REDUCE_LATENCY_S = 12e-6  # assumed: one small all-reduce within a node
_ALL_REDUCES_PER_LAYER = 2


@dataclass(frozen=True, slots=True)
class Slowdown:
    """How many times longer real kernels take than the peak rates say, and what no peak rate knows of.

    ``prefill_weights`` is the share of reading the weights that a prefill pays beside its multiplications: long prompts
    hide it, short ones do not, and a line lies between. Overheads (launches, host) are per layer, and per request of a
    decode batch; a layer of experts has an overhead on top.
    """

    prefill_weights: float
    prefill_flops: float
    prefill_layer_s: float
    prefill_expert_layer_s: float
    decode_weights: float
    decode_kv: float
    decode_flops: float
    decode_layer_s: float
    decode_expert_layer_s: float
    decode_request_s: float


# From ``python -m aegaeon.latency check`` on the published sets; errors: profiles/README.md.
CALIBRATED = Slowdown(
    prefill_weights=0.93,
    prefill_flops=1.48,
    prefill_layer_s=97e-6,
    prefill_expert_layer_s=880e-6,
    decode_weights=1.18,
    decode_kv=1.51,
    decode_flops=1.47,
    decode_layer_s=123e-6,
    decode_expert_layer_s=760e-6,
    decode_request_s=79e-6,
)
# A decode step may hide its multiplications behind its reading, a prefill its reading behind its multiplications.
PEAK = Slowdown(0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)


def estimate(model: Architecture, device: DeviceSpec, tp: int = 1, slowdown: Slowdown = CALIBRATED) -> LatencyProfile:
    """The profile of ``model`` on ``tp`` devices. Raises ``LatencyError`` if its heads cannot be shared out evenly."""
    if tp < 1 or model.heads % tp:
        raise LatencyError(f"{model.heads} attention heads cannot be shared by {tp} devices; choose a divisor")
    alone = slowed(peak_times(model, device, tp), model.layers, model.expert_layers, slowdown)
    latency_s, token_s = _all_reduce_latency_s(model, tp), _all_reduce_token_s(model, device, tp)
    return LatencyProfile(
        p0_s=alone.p0_s + latency_s,
        p1_s=alone.p1_s + token_s,
        p2_s=alone.p2_s,
        d0_s=alone.d0_s + latency_s,
        d1_s=alone.d1_s,
        d2_s=alone.d2_s + token_s,
    )


def slowed(time: PeakTimes, layers: int, expert_layers: int, slowdown: Slowdown) -> LatencyProfile:
    """The profile of a model, ``expert_layers`` of whose ``layers`` have experts, whose work takes ``time`` at peak."""
    prefill_layers_s = layers * slowdown.prefill_layer_s + expert_layers * slowdown.prefill_expert_layer_s
    decode_layers_s = layers * slowdown.decode_layer_s + expert_layers * slowdown.decode_expert_layer_s
    return LatencyProfile(
        p0_s=prefill_layers_s + slowdown.prefill_weights * time.weights_s,
        p1_s=slowdown.prefill_flops * time.token_s,
        p2_s=slowdown.prefill_flops * time.token_pair_s,
        d0_s=decode_layers_s + slowdown.decode_weights * time.weights_s,
        d1_s=slowdown.decode_kv * time.kv_token_s,
        d2_s=slowdown.decode_request_s + slowdown.decode_flops * time.token_s,
    )


@dataclass(frozen=True, slots=True)
class PeakTimes:
    """Seconds at the peak rates: reading the weights and a token's KV, multiplying a token, attending a pair."""

    weights_s: float
    kv_token_s: float
    token_s: float
    token_pair_s: float


def peak_times(model: Architecture, device: DeviceSpec, tp: int = 1) -> PeakTimes:
    """Times of ``tp`` devices that share the work evenly. A causal prompt of n tokens attends n^2 / 2 pairs, twice."""
    memory, flops = device.memory_bytes_per_s * tp, device.flops_per_s * tp
    return PeakTimes(
        weights_s=model.step_parameters * model.element_bytes / memory,
        kv_token_s=model.kv_shape.token_bytes / memory,
        token_s=2.0 * model.layer_parameters_per_token / flops,
        token_pair_s=2.0 * model.layers * model.heads * model.head_size / flops,
    )


def fastest(model: Architecture, device: DeviceSpec, tp: int = 1) -> LatencyProfile:
    """What the peak rates allow: no measurement can be below it."""
    return estimate(model, device, tp, PEAK)


def _all_reduce_latency_s(model: Architecture, tp: int) -> float:
    return _ALL_REDUCES_PER_LAYER * model.layers * ALL_REDUCE_LATENCY_S if tp > 1 else 0.0


def _all_reduce_token_s(model: Architecture, device: DeviceSpec, tp: int) -> float:
    """Seconds per token of the batch: its activations, after every attention and every feed-forward layer."""
    sent = 2.0 * (tp - 1) / tp * model.hidden_size * model.element_bytes
    return _ALL_REDUCES_PER_LAYER * model.layers * sent / device.peer_bytes_per_s
