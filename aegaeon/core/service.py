"""What a service tells whoever started it, from its start to its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aegaeon.core.instance import Role


class ServiceError(Exception):
    """The service cannot start or go on, and the operator can change that; the message says how."""


class ServiceDiedError(ServiceError):
    """The service gives up: its processes died again and again. Starting it anew may help."""


@dataclass(frozen=True, slots=True)
class ModelFound:
    """A model of the configuration that can be served. ``note``: what the operator should know about it."""

    name: str
    architecture: str
    parameters: int
    weight_bytes: int
    dtype: str
    kv_token_bytes: int
    max_context_tokens: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class ModelRefused:
    """A model of the configuration that cannot be served; the others go on."""

    name: str
    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class InstanceStarted:
    """An instance's process runs and waits for turns."""

    instance_id: str
    role: Role
    pid: int
    device: str
    threads: int


@dataclass(frozen=True, slots=True)
class ListeningOn:
    """The HTTP server's socket is bound; requests may be refused until ``Ready``."""

    url: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Requests are served from now on."""

    url: str


@dataclass(frozen=True, slots=True)
class ProcessDied:
    """The ``pool`` or the ``server`` process ended unasked; another is started in ``pause_s``."""

    name: str
    reason: str
    pause_s: float


@dataclass(frozen=True, slots=True)
class Stopping:
    """The service ends. Where it was not asked to, an error says why."""


ServiceReport = ModelFound | ModelRefused | InstanceStarted | ListeningOn | Ready | ProcessDied | Stopping
