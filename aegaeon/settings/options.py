"""The one declaration of every configuration value: key of ``pool.yaml``, flag, variable, range, help.

Flags, environment names, validation and the table in ``docs/configuration.md`` are all made from ``OPTIONS``;
defaults are those of ``PoolConfig``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from enum import Enum

from aegaeon.core.config import ModelConfig, PoolConfig
from aegaeon.core.slo import LEAST_TARGET_S, MOST_TARGET_S, Slo
from aegaeon.memory.eviction import EVICTIONS
from aegaeon.scheduler.policies.registry import POLICIES

CONFIG_VARIABLE = "AEGAEON_CONFIG"  # the file
MODELS_VARIABLE = "AEGAEON_MODELS"  # NAME=DIR, separated by commas
_TIB = 1 << 40
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#]+", re.IGNORECASE)


class OptionKind(Enum):
    """What a value is; the text says how to write it on the command line."""

    TEXT = "TEXT"
    TEXTS = "TEXT,..."
    INTEGER = "N"
    SECONDS = "SECONDS"
    BYTES = "SIZE"
    SWITCH = ""
    PATH = "FILE"
    FOLDER = "DIR,SIZE"
    INSTANCES = "N|ROLE=N,..."


class Scope(Enum):
    """Whom a value belongs to; the text heads its part of the documentation."""

    SERVER = "Server"
    MODEL = "Models: defaults of those that do not set their own"
    POOL = "Pool"
    MEMORY = "Memory"
    CLUSTER = "Cluster"


def check_origin(text: str) -> str:
    """Browsers compare origins letter by letter: with a path, or without a scheme, one never fits."""
    if text != "*" and not _ORIGIN.fullmatch(text):
        raise ValueError("must be an origin such as http://localhost:3000 (no path), or *")
    return text


@dataclass(frozen=True, slots=True)
class Option:
    """One value.

    ``key``: where it stands in ``pool.yaml`` (a dot enters a mapping). ``field``: its name in ``PoolConfig`` (scope
    ``MODEL``: in ``ModelConfig``). ``low`` and ``high`` are inclusive. ``auto``: what stands in for a missing default.
    ``check``: gives a text back, or raises ``ValueError``.
    """

    key: str
    kind: OptionKind
    scope: Scope
    help: str
    field: str = ""
    name: str = ""
    low: int | float = 1
    high: int | float = 2**31
    multiple: int | None = None
    choices: tuple[str, ...] = ()
    auto: str = ""
    secret: bool = False
    check: Callable[[str], str] | None = None

    @property
    def path(self) -> tuple[str, ...]:
        """The key as steps into nested mappings."""
        return tuple(self.key.split("."))

    @property
    def parameter(self) -> str:
        """The value's name as a Python identifier."""
        return self.name or self.key

    @property
    def config_field(self) -> str:
        """The field of the configuration that it fills."""
        return self.field or self.path[0]

    @property
    def flag(self) -> str:
        """The command-line flag; a switch also has ``--no-...``."""
        return "--" + self.parameter.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "AEGAEON_" + self.parameter.upper()

    @property
    def default(self) -> object:
        """The configuration's own default; None where there is none."""
        return _DEFAULTS[self.scope is Scope.MODEL].get(self.field or self.path[-1])


_DEFAULTS = {
    False: {field.name: field.default for field in fields(PoolConfig) if field.name != "instances"},
    True: {field.name: field.default for cls in (ModelConfig, Slo) for field in fields(cls)},
}
_FITS = "what fits the machine"

OPTIONS = (
    Option("host", OptionKind.TEXT, Scope.SERVER, "address to listen on; 0.0.0.0 is every interface"),
    Option("port", OptionKind.INTEGER, Scope.SERVER, "TCP port to listen on; 0 picks a free one", low=0, high=65535),
    Option(
        "api_keys",
        OptionKind.TEXTS,
        Scope.SERVER,
        "keys of which clients must send one; prefer the file or the variable, flags show in process lists",
        auto="no key asked for",
        secret=True,
    ),
    Option(
        "max_queued_requests",
        OptionKind.INTEGER,
        Scope.SERVER,
        "requests that may wait; one more is answered 429",
        high=1_000_000,
    ),
    Option(
        "metrics_keys",
        OptionKind.TEXTS,
        Scope.SERVER,
        "keys of which /metrics asks for one; api_keys do not open it",
        auto="no key asked for",
        secret=True,
    ),
    Option(
        "cors_origins",
        OptionKind.TEXTS,
        Scope.SERVER,
        "origins whose pages may use the API from a browser, such as http://localhost:3000; * is every one, without "
        "credentials",
        name="cors_origin",
        auto="none",
        check=check_origin,
    ),
    Option(
        "max_connections",
        OptionKind.INTEGER,
        Scope.SERVER,
        "connections of clients at a time; one more is answered 503",
        high=1_000_000,
    ),
    Option(
        "max_header",
        OptionKind.BYTES,
        Scope.SERVER,
        "request line and headers of a request; more is answered 431",
        field="max_header_bytes",
        low=4096,
        high=1 << 30,
    ),
    Option(
        "max_body",
        OptionKind.BYTES,
        Scope.SERVER,
        "body of a request, also after decompression; more is answered 413",
        field="max_body_bytes",
        low=1024,
        high=1 << 30,
    ),
    Option(
        "max_stop_strings",
        OptionKind.INTEGER,
        Scope.SERVER,
        "stop strings of a request; more are answered 400",
        high=1024,
    ),
    Option(
        "max_stop_chars",
        OptionKind.INTEGER,
        Scope.SERVER,
        "characters of a stop string; more are answered 400",
        high=1_000_000,
    ),
    Option(
        "request_timeout",
        OptionKind.SECONDS,
        Scope.SERVER,
        "time for a request to arrive whole, headers and body, in seconds; a later one is answered 408",
        field="request_timeout_s",
        low=0.1,
        high=86400,
    ),
    Option(
        "keep_alive",
        OptionKind.SECONDS,
        Scope.SERVER,
        "time that a connection may be idle between two requests, in seconds",
        field="keep_alive_s",
        low=0.1,
        high=86400,
    ),
    Option(
        "send_timeout",
        OptionKind.SECONDS,
        Scope.SERVER,
        "time after which a client that takes none of its output has gone, in seconds",
        field="send_timeout_s",
        low=0.1,
        high=86400,
    ),
    Option(
        "grace",
        OptionKind.SECONDS,
        Scope.SERVER,
        "how long running requests may go on after SIGTERM or Ctrl-C, in seconds; a second signal ends them at once",
        field="grace_s",
        low=0,
        high=86400,
    ),
    Option("log_file", OptionKind.PATH, Scope.SERVER, "file that the log is appended to", auto="standard error"),
    Option(
        "cache_dir",
        OptionKind.PATH,
        Scope.SERVER,
        "folder of what is made once and kept: images of checkpoints that must be converted, what was found of models",
        auto="aegaeon in $XDG_CACHE_HOME, else in ~/.cache",
    ),
    Option(
        "slo.ttft_s",
        OptionKind.SECONDS,
        Scope.MODEL,
        "target for the time to the first token, in seconds",
        name="ttft_slo",
        low=LEAST_TARGET_S,
        high=MOST_TARGET_S,
    ),
    Option(
        "slo.tpot_s",
        OptionKind.SECONDS,
        Scope.MODEL,
        "target for the time per output token after the first, in seconds",
        name="tpot_slo",
        low=LEAST_TARGET_S,
        high=MOST_TARGET_S,
    ),
    Option(
        "max_context_tokens",
        OptionKind.INTEGER,
        Scope.MODEL,
        "limit on prompt and output together, in tokens",
        low=2,
        high=100_000_000,
        auto="the model's own",
    ),
    Option(
        "dtype",
        OptionKind.TEXT,
        Scope.MODEL,
        "type to compute in",
        choices=("bfloat16", "float16", "float32"),
        auto="the checkpoint's own",
    ),
    Option(
        "chat_template",
        OptionKind.TEXT,
        Scope.MODEL,
        "Jinja chat template: a file, or the text itself",
        auto="the model's own",
    ),
    Option(
        "generation_config",
        OptionKind.TEXT,
        Scope.MODEL,
        "sampling where a request says nothing: as the model's generation_config.json says, or the API's defaults",
        choices=("auto", "none"),
    ),
    Option("policy", OptionKind.TEXT, Scope.POOL, "scheduling policy", choices=tuple(POLICIES)),
    Option(
        "device",
        OptionKind.TEXT,
        Scope.POOL,
        "where models run; auto: on GPUs where there are some",
        choices=("auto", "cpu", "cuda"),
    ),
    Option(
        "instances",
        OptionKind.INSTANCES,
        Scope.POOL,
        "instances on every node: a number (mixed), or a number per role (prefill, decode, mixed)",
        high=1024,
        auto=_FITS,
    ),
    Option(
        "threads_per_instance", OptionKind.INTEGER, Scope.POOL, "compute threads of an instance", high=4096, auto=_FITS
    ),
    Option(
        "instance_timeout",
        OptionKind.SECONDS,
        Scope.POOL,
        "an instance that gives no sign of life for so many seconds is killed and replaced; one whose step takes 20 "
        "times what the slowest of its model took (its first two: 60 times this value) is, too",
        field="instance_timeout_s",
        low=1,
        high=86400,
    ),
    Option(
        "standby_driver",
        OptionKind.SWITCH,
        Scope.POOL,
        "on every node a second driver that waits, with everything imported: it takes over in seconds when the first "
        "one dies, with the KV and the weights that are in memory; takes 512 MiB",
        auto="on where the memory allows, with at least 4 cores",
    ),
    Option(
        "resident_models",
        OptionKind.INTEGER,
        Scope.POOL,
        "models whose weights may be on an instance's device at once; from 2 on the next one is prefetched",
        high=100_000,
        auto="16 on GPUs, 2 when copying on CPU, else all that fit",
    ),
    Option(
        "profile_dir",
        OptionKind.PATH,
        Scope.POOL,
        "folder of latency profiles (aegaeon profile); models without one for this device are estimated, and corrected",
        auto="all estimated",
    ),
    Option(
        "max_batch_requests",
        OptionKind.INTEGER,
        Scope.POOL,
        "rows of a decode step: requests, and each beam of a search",
        high=65536,
    ),
    Option(
        "prefill_chunk_tokens",
        OptionKind.INTEGER,
        Scope.POOL,
        "prompt tokens processed in one step; between two steps a turn can be preempted",
        high=1_000_000,
    ),
    Option(
        "copy_to_device",
        OptionKind.SWITCH,
        Scope.POOL,
        "on CPU: copy weights and KV into device pages, as a GPU must, instead of using them where they lie",
    ),
    Option(
        "weight_cache",
        OptionKind.BYTES,
        Scope.MEMORY,
        "host memory for weights, per node",
        field="weight_cache_bytes",
        low=1 << 20,
        high=1024 * _TIB,
        auto=_FITS,
    ),
    Option(
        "kv_cache",
        OptionKind.BYTES,
        Scope.MEMORY,
        "host memory for KV, per node",
        field="kv_cache_bytes",
        low=1 << 20,
        high=1024 * _TIB,
        auto=_FITS,
    ),
    Option(
        "device_memory",
        OptionKind.BYTES,
        Scope.MEMORY,
        "device memory for pages, per instance (copying devices only)",
        field="device_bytes",
        low=1 << 20,
        high=1024 * _TIB,
        auto=_FITS,
    ),
    Option(
        "page_size",
        OptionKind.BYTES,
        Scope.MEMORY,
        "device page; a multiple of 4KiB, and at least 64MiB on GPUs",
        field="page_bytes",
        low=64 << 10,
        high=1 << 30,
        multiple=4096,
    ),
    Option(
        "slab_size",
        OptionKind.BYTES,
        Scope.MEMORY,
        "slab of the KV cache; at least one block of every model must fit in; a multiple of 4KiB",
        field="slab_bytes",
        low=64 << 10,
        high=16 << 30,
        multiple=4096,
    ),
    Option(
        "block_tokens",
        OptionKind.INTEGER,
        Scope.MEMORY,
        "tokens of a KV block; of models with states at least 16 times as many",
        high=4096,
    ),
    Option(
        "prefix_cache",
        OptionKind.TEXT,
        Scope.MEMORY,
        "which KV of ended requests gives way first when room is needed; until then it is found again by requests that "
        "begin alike. slo: what was used least recently, of models whose prefill is long a while later; flop: the same "
        "of places in a context; lru, lfu: what was used least recently, or frequently; off: none is kept",
        choices=(*EVICTIONS, "off"),
    ),
    Option(
        "kv_disk",
        OptionKind.FOLDER,
        Scope.MEMORY,
        "folder on every node for KV of ended requests, and how much of it, such as /var/cache/aegaeon-kv,64GiB: what "
        "no longer is in host memory is read from there where that is sooner done than computing it, also after a "
        "restart; a folder serves one node of one pool",
        low=1 << 20,
        high=1024 * _TIB,
        auto="none",
    ),
    Option(
        "ray_address",
        OptionKind.TEXT,
        Scope.CLUSTER,
        "running Ray cluster to join (HOST:PORT or auto)",
        auto="a Ray of its own",
    ),
    Option("nodes", OptionKind.INTEGER, Scope.CLUSTER, "nodes to use", high=4096),
    Option(
        "event_log",
        OptionKind.PATH,
        Scope.CLUSTER,
        "file that every scheduling event and command is written to, for replay",
        auto="none",
    ),
    Option(
        "check",
        OptionKind.SWITCH,
        Scope.CLUSTER,
        "hold the policy to its contract, and the KV cache's books to each other when a node is idle: a node where "
        "either is broken is started anew, with an error in the log",
    ),
)


def in_scope(scope: Scope) -> Iterable[Option]:
    """The options of one scope, in order."""
    return (option for option in OPTIONS if option.scope is scope)
