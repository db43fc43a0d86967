"""How much slower than the peak rates real devices are, from measured sets; and how well that predicts unseen ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aegaeon.latency.estimate.architecture import Architecture
from aegaeon.latency.estimate.device_spec import DeviceSpec
from aegaeon.latency.estimate.roofline import Slowdown, estimate, peak_times
from aegaeon.latency.fit.least_squares import Matrix, fit_relative, mean_relative_error
from aegaeon.latency.fit.part_fit import Sample, done_of, seconds_of


@dataclass(frozen=True, slots=True)
class MeasuredSet:
    """The samples of one model on one device that a fit was made of: prefill and decode may differ in range."""

    model_name: str
    model: Architecture
    device: DeviceSpec
    prefill: tuple[Sample, ...]
    decode: tuple[Sample, ...]


def calibrate(sets: Sequence[MeasuredSet]) -> Slowdown:
    """The slowdown that predicts all points of ``sets`` with the least squared relative errors.

    Reading is never faster than at peak, and neither is multiplying in a prefill.
    """
    prefill = np.concatenate([_prefill_times(each) for each in sets])
    decode = np.concatenate([_decode_times(each) for each in sets])
    prefill_s = np.concatenate([seconds_of(each.prefill) for each in sets])
    decode_s = np.concatenate([seconds_of(each.decode) for each in sets])
    return Slowdown(
        *map(float, fit_relative(prefill, prefill_s, np.array([0.0, 1.0, 0.0, 0.0]))),
        *map(float, fit_relative(decode, decode_s, np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]))),
    )


@dataclass(frozen=True, slots=True)
class EstimateError:
    """Mean relative errors of an estimate against a measured set."""

    prefill: float
    decode: float


def estimate_error(measured: MeasuredSet, slowdown: Slowdown) -> EstimateError:
    """How far the roofline with ``slowdown`` is from the set's points."""
    profile = estimate(measured.model, measured.device, slowdown=slowdown)
    prefill = np.array([profile.p0_s, profile.p1_s, profile.p2_s])
    decode = np.array([profile.d0_s, profile.d1_s, profile.d2_s])
    return EstimateError(
        mean_relative_error(done_of(measured.prefill), seconds_of(measured.prefill), prefill),
        mean_relative_error(done_of(measured.decode), seconds_of(measured.decode), decode),
    )


def leave_one_out(sets: Sequence[MeasuredSet], measured: MeasuredSet, *, whole_device: bool = False) -> EstimateError:
    """The error on ``measured`` of a calibration that has not seen it, nor its device where ``whole_device``."""
    unseen = [other for other in sets if other is not measured]
    others = [other for other in unseen if not (whole_device and other.device.name == measured.device.name)]
    return estimate_error(measured, calibrate(others))


def _prefill_times(measured: MeasuredSet) -> Matrix:
    """[n, 4]: seconds at peak of reading the weights and of multiplying; layers, and those with experts."""
    time = peak_times(measured.model, measured.device)
    features = done_of(measured.prefill)
    multiply_s = features @ np.array([0.0, time.token_s, time.token_pair_s])
    ones = features[:, 0]
    layers = [ones * measured.model.layers, ones * measured.model.expert_layers]
    return np.stack([ones * time.weights_s, multiply_s, *layers], axis=1)


def _decode_times(measured: MeasuredSet) -> Matrix:
    """[n, 6]: seconds at peak of reading weights and KV and of multiplying; layers, those with experts; batch size."""
    time = peak_times(measured.model, measured.device)
    ones, context, batch = done_of(measured.decode).T
    columns = [ones * time.weights_s, context * time.kv_token_s, batch * time.token_s]
    layers = [ones * measured.model.layers, ones * measured.model.expert_layers]
    return np.stack([*columns, *layers, batch], axis=1)
