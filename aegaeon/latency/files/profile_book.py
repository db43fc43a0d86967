"""The latency profiles of a folder, by model and device; estimates where nobody measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aegaeon.core.kv_shape import KvShape
from aegaeon.core.profile import LatencyProfile
from aegaeon.latency.estimate.device_spec import DEVICES, device_spec
from aegaeon.latency.estimate.errors import LatencyError, UnknownNameError, plain
from aegaeon.latency.estimate.model_facts import CatalogueModel
from aegaeon.latency.files.estimated_file import estimated_file
from aegaeon.latency.files.profile_file import ProfileFile

MODELS_FOLDER = "models"


@dataclass(frozen=True, slots=True)
class ProfileEntry:
    """What a simulation needs of a model on a device. ``weight_bytes`` are of the whole model, over ``tp`` devices."""

    model: str
    device: str
    profile: LatencyProfile
    weight_bytes: int
    kv_shape: KvShape
    max_context_tokens: int
    tp: int
    estimated: bool
    source: str
    hand_over_s: float | None = None  # between two turns, where it was measured
    weight_bytes_per_s: float | None = None  # from host to device, where it was measured; so for KV in
    kv_bytes_per_s: float | None = None

    @classmethod
    def of(cls, file: ProfileFile) -> Self:
        """The entry that a profile file makes."""
        return cls(
            model=file.model,
            device=file.device,
            profile=file.coefficients.profile,
            weight_bytes=file.weight_bytes,
            kv_shape=file.kv.shape,
            max_context_tokens=file.max_context_tokens,
            tp=file.tp,
            estimated=file.estimated,
            source=file.provenance.source,
            hand_over_s=file.switching.hand_over_s if file.switching else None,
            weight_bytes_per_s=file.copying.weights_in_bytes_per_s if file.copying else None,
            kv_bytes_per_s=file.copying.kv_in_bytes_per_s if file.copying else None,
        )


class ProfileBook:
    """A folder of ``<device>/<model>.json``, and of ``models/<model>.json`` to estimate from."""

    def __init__(
        self, directory: Path, files: Mapping[str, Mapping[str, ProfileFile]], facts: tuple[CatalogueModel, ...]
    ):
        self._directory = directory
        self._files = files  # by device, then by every plain name of the model
        self._facts = {plain(name): each for each in facts for name in (each.model, *each.aliases)}

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Read all of a folder. Raises ``LatencyError`` if it is no folder of profiles or one of its files is wrong."""
        if not directory.is_dir():
            raise LatencyError(f"there is no folder of latency profiles at {directory}")
        folders = (folder for folder in sorted(directory.iterdir()) if folder.name != MODELS_FOLDER)
        files = {folder.name: _read_folder(folder) for folder in folders if any(folder.glob("*.json"))}
        if not files:
            raise LatencyError(f"{directory} holds no latency profile; expected {directory}/<device>/<model>.json")
        return cls(directory, files, CatalogueModel.read_all(directory / MODELS_FOLDER))

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices with a profile, by name."""
        return tuple(sorted(self._files))

    def models(self, device: str) -> tuple[str, ...]:
        """Models with a profile on that device, by name."""
        return tuple(sorted({file.model for file in self._files.get(plain(device), {}).values()}))

    def measured(self, model: str, device: str) -> ProfileEntry | None:
        """The profile that somebody measured of a model on a device; None where nobody did."""
        file = self._files.get(plain(device), {}).get(plain(model))
        return ProfileEntry.of(file) if file is not None and not file.estimated else None

    def find(self, model: str, device: str) -> ProfileEntry:
        """The profile of a model on a device, whatever the case and punctuation of their names.

        Where nobody measured it but the model's config and the device are known, an estimate for one device
        (``estimated``). Raises ``UnknownNameError``, which lists the known names, the likest first.
        """
        name = plain(device)
        if name not in self._files and (name not in DEVICES or not self._facts):
            raise UnknownNameError("device", device, {*self.devices, *(DEVICES if self._facts else ())})
        file = self._files.get(name, {}).get(plain(model))
        if file is not None:
            return ProfileEntry.of(file)
        facts = self._facts.get(plain(model))
        if facts is None or name not in DEVICES:
            known = {*self.models(name), *(each.model for each in self._facts.values())}
            raise UnknownNameError("model", model, known, f" in the profiles of {name} in {self._directory}")
        return ProfileEntry.of(estimated_file(facts, device_spec(name)))


def _read_folder(folder: Path) -> Mapping[str, ProfileFile]:
    found: dict[str, ProfileFile] = {}
    for path in sorted(folder.glob("*.json")):
        file = ProfileFile.read(path)
        for name in {plain(name) for name in (file.model, path.stem, *file.aliases)}:
            if name in found:
                raise LatencyError(f"{path}: {found[name].model} is called {name!r} too; names must differ")
            found[name] = file
    return found
