"""What is known of a model without measuring it: ``profiles/models/<model>.json``, around its Hugging Face config."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from aegaeon.latency.estimate.architecture import Architecture
from aegaeon.latency.estimate.errors import LatencyError


class CatalogueModel(BaseModel):
    """A model by name. ``measured_as``: its names in measurement files; ``repository``: where its config is from."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str
    repository: str
    measured_as: tuple[str, ...] = ()
    published_parameters: float | None = None
    config: dict[str, Any]

    @property
    def architecture(self) -> Architecture:
        """The model's sizes. Raises ``LatencyError``."""
        return Architecture.of(self.config, f"the config of {self.model}")

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names people know it by."""
        return tuple(dict.fromkeys([self.repository, *self.measured_as]))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ``LatencyError`` that names the file."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise LatencyError(f"{path} does not describe a model: {error}") from None

    @classmethod
    def read_all(cls, directory: Path) -> tuple[Self, ...]:
        """Every model of a folder, by name; none where there is no such folder."""
        return tuple(cls.read(path) for path in sorted(directory.glob("*.json")))
