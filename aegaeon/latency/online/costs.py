"""What a node's scheduler is told of costs: measured profiles where there are some for this device, else estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.model import ModelSpec
from aegaeon.engine.prepared.prepared_model import PreparedModel
from aegaeon.latency.estimate.device_rates import DeviceRates, estimate_profile
from aegaeon.latency.files.profile_book import ProfileBook, ProfileEntry

# A host-cache hit on CPU is a mapping: what a switch costs there is the hand-over between two turns, a few
# milliseconds on an idle machine and several times that on a busy one. Too low a figure makes turns so short that the
# hand-overs eat the time; too high a figure only makes them longer. Profiles have the measured one.
_HAND_OVER_S = 0.02
_IN_PLACE_BYTES_PER_S = 1e12  # nothing is copied


def find_profiles(directory: Path | None, device: str, models: Sequence[PreparedModel]) -> dict[str, ProfileEntry]:
    """The measured profiles of a folder for this device, by the name that a model is served under.

    A profile is of a model if it has its name, or its folder's, and as many bytes of weights. Raises ``LatencyError``
    where the folder is no folder of profiles.
    """
    if directory is None:
        return {}
    book = ProfileBook.open(directory)
    return {model.spec.name: entry for model in models if (entry := _profile_of(book, device, model)) is not None}


def _profile_of(book: ProfileBook, device: str, model: PreparedModel) -> ProfileEntry | None:
    for name in (model.spec.name, model.config.path.name):
        entry = book.measured(name, device)
        if entry is not None and entry.weight_bytes == model.spec.weight_bytes:
            return entry
    return None


def make_costs(
    specs: Sequence[ModelSpec],
    models: Mapping[str, PreparedModel],
    measured: Mapping[str, ProfileEntry],
    rates: DeviceRates,
) -> ProfiledCosts:
    """``specs`` are the models as the scheduler knows them."""
    estimates = {
        name: estimate_profile(model.spec, model.facts.parameters, rates)
        for name, model in models.items()
        if name not in measured
    }
    return ProfiledCosts(
        {spec.name: spec for spec in specs},
        {**estimates, **{name: entry.profile for name, entry in measured.items()}},
        weight_bytes_per_s=_copy_rate(rates, [entry.weight_bytes_per_s for entry in measured.values()]),
        kv_bytes_per_s=_copy_rate(rates, [entry.kv_bytes_per_s for entry in measured.values()]),
        switch_overhead_s=_median([entry.hand_over_s for entry in measured.values()], _HAND_OVER_S),
    )


def _copy_rate(rates: DeviceRates, measured: Sequence[float | None]) -> float:
    """Bytes per second between host and device: as measured, else what the link gives."""
    if rates.host_link_bytes_per_s is None:
        return _IN_PLACE_BYTES_PER_S
    return _median(measured, rates.host_link_bytes_per_s)


def _median(values: Sequence[float | None], otherwise: float) -> float:
    """The median of the values that there are."""
    known = [value for value in values if value is not None]
    return median(known) if known else otherwise
