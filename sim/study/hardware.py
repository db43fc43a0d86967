"""The hardware of a run: devices by name, how they are grouped and spread over nodes, and the constants that hold.

Stated defaults: weights and KV move at 80 % of the host link's rate per direction (what a good loader reaches), 90 % of
a device's memory is usable, a node has 2 TB of host memory for weights, reads its disks at 5 GB/s, and has 32 GiB of KV
slab cache per device in slabs of 1 GiB. ``artifact`` constants: 16 GiB/s for weights and KV (half of PCIe 4.0 x16) and
80 GiB a device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aegaeon.latency.estimate.device_spec import DeviceSpec, device_spec
from aegaeon.scheduler.layout import PoolDevice, PoolSpec
from sim.systems.errors import InputError
from sim.world.constants import GIB, Constants

LINK_EFFICIENCY = 0.8
USABLE_MEMORY = 0.9
HOST_MEMORY_BYTES = 2 * 10**12
DISK_BYTES_PER_S = 5e9
KV_CACHE_BYTES_PER_DEVICE = 32 * GIB
SLAB_BYTES = GIB
ARTIFACT_EFFICIENCY = 0.5
ARTIFACT_MODELS_PER_DEVICE = 2

_LANE_BYTES_PER_S = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}  # PCIe, one direction
_ARTIFACT_LANE_BYTES_PER_S = {3: GIB, 4: 2 * GIB, 5: 4 * GIB, 6: 8 * GIB}
_LINK = re.compile(r"gen([3-6])x(1|2|4|8|16)")
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class HardwareOptions:
    """What the command line says of the hardware; None means the default for the device."""

    devices: tuple[str, ...] = ("h100",) * 16
    nodes: int = 1
    h2d: str | None = None
    swap_overhead_s: float = 0.0
    host_memory_bytes: int = HOST_MEMORY_BYTES
    kv_disk_bytes: int = 0
    prefill_chunk_tokens: int | None = None
    artifact: bool = False


@dataclass(frozen=True, slots=True)
class Hardware:
    """A pool of equal device groups (``tp`` devices each), and its constants."""

    device: DeviceSpec
    tp: int
    pool: PoolSpec
    constants: Constants

    @property
    def label(self) -> str:
        """For tables and figures, e.g. ``16 x h100`` or ``2 x 4 h100``."""
        group = self.device.name if self.tp == 1 else f"{self.tp} {self.device.name}"
        return f"{len(self.pool.devices)} x {group}"


def the_device(options: HardwareOptions) -> DeviceSpec:
    """The one kind of device of the pool."""
    kinds = sorted(set(options.devices))
    if not kinds:
        raise InputError("--devices names no device")
    specs = {device_spec(kind).name: device_spec(kind) for kind in kinds}
    if len(specs) > 1:
        raise InputError(f"--devices must be of one kind, got {', '.join(specs)}: simulate each kind on its own")
    return next(iter(specs.values()))


def make_hardware(options: HardwareOptions, tp: int) -> Hardware:
    """The pool in groups of ``tp`` devices. Raises ``InputError``."""
    device = the_device(options)
    groups, rest = divmod(len(options.devices), tp)
    if rest or not groups:
        raise InputError(f"{len(options.devices)} devices do not make groups of {tp}, as the models need: --devices")
    if not 1 <= options.nodes <= groups:
        raise InputError(f"--nodes must be between 1 and the {groups} devices of the pool, got {options.nodes}")
    memory_bytes = 80 * GIB if options.artifact and device.name == "h100" else int(device.memory_bytes * USABLE_MEMORY)
    devices = tuple(
        PoolDevice(f"{device.name}-{index:02d}", memory_bytes * tp, index * options.nodes // groups)
        for index in range(groups)
    )
    most_models = ARTIFACT_MODELS_PER_DEVICE if options.artifact else None
    return Hardware(device, tp, PoolSpec(devices, most_models), _constants(options, device, tp, groups))


def _constants(options: HardwareOptions, device: DeviceSpec, tp: int, groups: int) -> Constants:
    link_bytes_per_s = _link_bytes_per_s(options, device) * tp
    kv_cache_bytes = KV_CACHE_BYTES_PER_DEVICE * tp * -(-groups // options.nodes)
    return Constants(
        weight_bytes_per_s=link_bytes_per_s,
        kv_bytes_per_s=link_bytes_per_s,
        disk_bytes_per_s=DISK_BYTES_PER_S,
        host_memory_bytes=options.host_memory_bytes,
        kv_disk_bytes=options.kv_disk_bytes,
        kv_cache_bytes=kv_cache_bytes,
        slab_bytes=SLAB_BYTES,
        switch_overhead_s=options.swap_overhead_s,
        prefill_chunk_tokens=options.prefill_chunk_tokens,
    )


def _link_bytes_per_s(options: HardwareOptions, device: DeviceSpec) -> float:
    """What a copy reaches in one direction."""
    name = options.h2d or ("gen4x16" if options.artifact else None)
    if name is None:
        return device.host_link_bytes_per_s * LINK_EFFICIENCY
    efficiency = ARTIFACT_EFFICIENCY if options.artifact else LINK_EFFICIENCY
    return _named_bytes_per_s(name, options.artifact) * efficiency


def _named_bytes_per_s(name: str, artifact: bool) -> float:
    """The rate of ``gen4x16``, or of ``32`` (GB/s; the artifact's are GiB/s)."""
    matched = _LINK.fullmatch(name.lower())
    if matched is not None:
        lane_bytes_per_s = _ARTIFACT_LANE_BYTES_PER_S if artifact else _LANE_BYTES_PER_S
        return lane_bytes_per_s[int(matched[1])] * int(matched[2])
    if _NUMBER.fullmatch(name) and float(name) > 0:
        return float(name) * (GIB if artifact else 1e9)
    raise InputError(
        f"--h2d {name!r} is no host link: give gen3x16, gen4x16, gen5x16, gen6x16 (or x8, x4, x2, x1), or GB/s, as 32"
    )
