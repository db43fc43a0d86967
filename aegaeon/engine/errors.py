"""What can be wrong with a model."""

from __future__ import annotations


class ModelError(Exception):
    """A model cannot be used; the message names it, and says why."""


class CheckpointError(ValueError):
    """A model directory cannot be used; the message says why and what to do."""


class UnsupportedModelError(ModelError):
    """A model that the engine would not run, or not run right. ``architecture`` may be empty if it is not known."""

    def __init__(self, path: object, architecture: str, reason: str) -> None:
        self.path = str(path)
        self.architecture = architecture
        self.reason = reason
        who = f"{path} ({architecture})" if architecture else str(path)
        super().__init__(f"cannot serve {who}: {reason}")
