"""The pool's configuration, complete and immutable once the service starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from aegaeon.core.instance import Role
from aegaeon.core.slo import Slo

PREFIX_CACHE = "slo"
"""By which policy kept KV is given up, where nobody says: in a pool, and in a simulated one."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One served model: a directory with a Hugging Face config, safetensors weights and a tokenizer.

    ``generation_config``: ``auto`` takes sampling defaults from the file of that name, ``none`` does not.
    """

    name: str
    path: Path
    slo: Slo = Slo()
    max_context_tokens: int | None = None
    dtype: str | None = None
    chat_template: str | None = None
    generation_config: str = "auto"


@dataclass(frozen=True, slots=True)
class InstanceConfig:
    """Instances of one role on every node."""

    role: Role
    count: int


@dataclass(frozen=True, slots=True)
class KvDiskConfig:
    """A folder for KV on every node, and what may be in it."""

    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Everything that ``aegaeon serve`` needs. Byte sizes are per node; None means: what fits the machine.

    ``device`` is ``auto`` until that is settled.
    """

    models: tuple[ModelConfig, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    policy: str = "slack"
    device: str = "auto"
    instances: tuple[InstanceConfig, ...] = (InstanceConfig(Role.MIXED, 1),)
    threads_per_instance: int | None = None
    instance_timeout_s: float = 10.0
    standby_driver: bool | None = None
    profile_dir: Path | None = None
    resident_models: int | None = None
    copy_to_device: bool = False
    device_bytes: int | None = None
    page_bytes: int = 2 << 20
    weight_cache_bytes: int | None = None
    kv_cache_bytes: int | None = None
    slab_bytes: int = 16 << 20
    block_tokens: int = 16
    prefix_cache: str = PREFIX_CACHE
    kv_disk: KvDiskConfig | None = None
    prefill_chunk_tokens: int = 512
    max_batch_requests: int = 64
    max_queued_requests: int = 4096
    grace_s: float = 30.0
    ray_address: str | None = None
    nodes: int = 1
    event_log: Path | None = None
    check: bool = False
    log_file: Path | None = None
    cache_dir: Path | None = None
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    metrics_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    max_connections: int = 8192
    max_header_bytes: int = 64 << 10
    max_body_bytes: int = 16 << 20
    max_stop_strings: int = 16
    max_stop_chars: int = 1024
    request_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    send_timeout_s: float = 60.0
