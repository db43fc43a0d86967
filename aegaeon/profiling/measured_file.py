"""A profile file made of measurements."""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.core.kv_shape import KvShape
from aegaeon.engine.prepared.prepared_model import PreparedModel
from aegaeon.latency.files.fitted_file import fit_error, validity
from aegaeon.latency.files.profile_file import (
    Coefficients,
    Copying,
    KvGeometry,
    ProfileFile,
    Provenance,
    Switching,
)
from aegaeon.latency.fit.part_fit import Fit, Sample
from aegaeon.latency.fit.step_fit import fit_steps
from aegaeon.profiling.copies import copied_bytes
from aegaeon.profiling.grid import DECODE_STEPS
from aegaeon.profiling.journal import Journal
from aegaeon.profiling.point import Copied, CopyPoint, DecodePoint, HandOverPoint, Point, PrefillPoint, SwitchPoint


def fit_journal(points: Sequence[Point], journal: Journal, chunk_tokens: int, max_error: float) -> Fit:
    """Raises ``ValueError`` where too few points were measured."""
    measured = [(point, seconds) for point in points if (seconds := journal.seconds(point)) is not None]
    prefill = [
        prompt_sample(point.tokens, chunk_tokens, seconds)
        for point, seconds in measured
        if isinstance(point, PrefillPoint)
    ]
    decode = [
        # the contexts grow while the steps are taken
        batch_sample(point.batch, point.batch * (point.context + DECODE_STEPS // 2), seconds)
        for point, seconds in measured
        if isinstance(point, DecodePoint)
    ]
    return fit_steps(prefill, decode, max_error)


def prompt_sample(tokens: int, chunk_tokens: int, seconds: float) -> Sample:
    """A prompt, chunk by chunk."""
    return Sample((-(-tokens // chunk_tokens), tokens, tokens**2), seconds, tokens)


def batch_sample(batch: int, context_tokens: int, seconds: float) -> Sample:
    """A step of ``batch`` requests with ``context_tokens`` in all."""
    return Sample((1, context_tokens, batch), seconds, batch)


def measured_file(
    model: PreparedModel,
    device: str,
    fit: Fit,
    journal: Journal,
    points: Sequence[Point],
    chunk_tokens: int,
    provenance: Provenance,
) -> ProfileFile:
    """The profile of one model on a device of that name."""
    spec = model.spec
    longest = max(point.context for point in points if isinstance(point, DecodePoint))
    geometry, notes = _geometry(spec.kv_shape)
    return ProfileFile(
        model=spec.name,
        device=device,
        coefficients=Coefficients.of(fit.profile),
        validity=validity(fit, longest),
        fit=fit_error(fit),
        batched_token_cap=chunk_tokens,
        switching=Switching(
            hand_over_s=journal.seconds(HandOverPoint()) or 0.0,
            from_host_s=journal.seconds(SwitchPoint(cold=False)) or 0.0,
            from_disk_s=journal.seconds(SwitchPoint(cold=True)) or 0.0,
        ),
        copying=_copying(journal, spec.kv_shape),
        weight_bytes=spec.weight_bytes,
        kv=geometry,
        max_context_tokens=spec.max_context_tokens,
        provenance=provenance,
        notes=notes,
    )


def _copying(journal: Journal, shape: KvShape) -> Copying | None:
    """None where copies were not measured (by an older version)."""
    seconds = {what: journal.seconds(CopyPoint(what)) for what in Copied}
    if not all(seconds.values()):
        return None
    rates = {what: copied_bytes(shape.block_bytes) / each for what, each in seconds.items() if each}
    return Copying(
        weights_in_bytes_per_s=rates[Copied.WEIGHTS_IN],
        kv_in_bytes_per_s=rates[Copied.KV_IN],
        kv_out_bytes_per_s=rates[Copied.KV_OUT],
    )


def _geometry(shape: KvShape) -> tuple[KvGeometry, tuple[str, ...]]:
    """Layers that differ are told as equal ones with as many bytes, rounded up; a model without KV as one of a byte."""
    if not shape.layers:
        return KvGeometry(layers=1, kv_heads=1, head_size=1, element_bytes=shape.element_bytes), ("it has no KV",)
    first = shape.layers[0]
    if all(layer == first for layer in shape.layers) and first.key_size == first.value_size:
        return KvGeometry.of(shape), ()
    size = -(-shape.token_bytes // (2 * len(shape.layers) * shape.element_bytes))
    geometry = KvGeometry(layers=len(shape.layers), kv_heads=1, head_size=size, element_bytes=shape.element_bytes)
    return geometry, (f"layers differ in their KV: told as equal ones of {shape.token_bytes} bytes a token in all",)
