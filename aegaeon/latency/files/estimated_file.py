"""A roofline estimate as a profile file."""

from __future__ import annotations

from aegaeon.latency.estimate.device_spec import DeviceSpec
from aegaeon.latency.estimate.model_facts import CatalogueModel
from aegaeon.latency.estimate.roofline import estimate
from aegaeon.latency.files.profile_file import Coefficients, KvGeometry, ProfileFile, Provenance

ESTIMATED_ON = "2026-11-21"  # the calibration of the roofline, not the day somebody asked


def estimated_file(facts: CatalogueModel, device: DeviceSpec, tp: int = 1) -> ProfileFile:
    """Estimate a model on ``tp`` devices. Raises ``LatencyError`` if the config lacks something or cannot be split."""
    model = facts.architecture
    notes = ["an estimate: nobody measured this model on this device"]
    if model.weight_bytes >= tp * device.memory_bytes:
        notes.append(f"the weights do not fit {tp} of these devices: an estimate of what cannot run")
    return ProfileFile(
        model=facts.model,
        aliases=(*facts.aliases, *([f"{facts.model}-tp{tp}"] if tp > 1 else [])),
        device=device.name,
        tp=tp,
        estimated=True,
        coefficients=Coefficients.of(estimate(model, device, tp)),
        weight_bytes=model.weight_bytes,
        kv=KvGeometry.of(model.kv_shape),
        max_context_tokens=model.max_context_tokens,
        provenance=Provenance(
            source=f"roofline of {facts.repository}'s config and the {device.source}",
            licence="Apache-2.0",
            date=ESTIMATED_ON,
            tool="python -m aegaeon.latency estimate",
        ),
        notes=tuple(notes),
    )
