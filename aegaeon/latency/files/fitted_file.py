"""A fit as a profile file."""

from __future__ import annotations

from aegaeon.latency.estimate.device_spec import DeviceSpec
from aegaeon.latency.estimate.model_facts import CatalogueModel
from aegaeon.latency.files.profile_file import Coefficients, FitError, KvGeometry, ProfileFile, Provenance, Validity
from aegaeon.latency.fit.measured_fit import MeasuredFit
from aegaeon.latency.fit.part_fit import Fit, PartFit


def fitted_file(facts: CatalogueModel, device: DeviceSpec, fit: MeasuredFit, provenance: Provenance) -> ProfileFile:
    """The profile that was fitted to a model on one device."""
    model = facts.architecture
    return ProfileFile(
        model=facts.model,
        aliases=facts.aliases,
        device=device.name,
        coefficients=Coefficients.of(fit.profile),
        validity=validity(fit, fit.max_input_tokens),
        fit=fit_error(fit, fit.dropped),
        batched_token_cap=fit.batched_token_cap,
        weight_bytes=model.weight_bytes,
        kv=KvGeometry.of(model.kv_shape),
        max_context_tokens=model.max_context_tokens,
        provenance=provenance,
        notes=tuple(_narrowed(fit)),
    )


def validity(fit: Fit, longest_context_tokens: int) -> Validity:
    """The lengths and batches for which a fit holds."""
    return Validity(
        prefill_tokens=(fit.prefill.low, fit.prefill.high),
        context_tokens=(1, longest_context_tokens),
        decode_batch=(fit.decode.low, fit.decode.high),
    )


def fit_error(fit: Fit, dropped: int = 0) -> FitError:
    """How far off it is, and how many points are behind it."""
    return FitError(
        prefill_percent=round(100 * fit.prefill.mean_error, 2),
        decode_percent=round(100 * fit.decode.mean_error, 2),
        prefill_points=len(fit.prefill.samples),
        decode_points=len(fit.decode.samples),
        dropped_points=dropped,
    )


def _narrowed(fit: MeasuredFit) -> list[str]:
    """Says where a part had to leave points out to be within the error."""
    parts: list[tuple[str, PartFit, str]] = [
        ("prefill", fit.prefill, "tokens"),
        ("decode", fit.decode, "requests in a batch"),
    ]
    return [
        f"one line misses the {name} times of all {fit.sound} points; fitted to {part.low} to {part.high} {unit}"
        for name, part, unit in parts
        if len(part.samples) < fit.sound
    ]
