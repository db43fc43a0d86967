"""What accelerators can do at best, from their makers' data sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from aegaeon.latency.estimate.errors import UnknownNameError, plain


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Peak rates of one device.

    ``flops_per_s``: dense bfloat16 with tensor cores, a multiply-add is two operations. ``host_link_bytes_per_s`` and
    ``peer_bytes_per_s``: one direction, to the host (PCIe x16) and to the other devices of the node.
    """

    name: str
    memory_bytes: int
    memory_bytes_per_s: float
    flops_per_s: float
    host_link_bytes_per_s: float
    peer_bytes_per_s: float
    source: str

    def __post_init__(self) -> None:
        rates = (self.memory_bytes_per_s, self.flops_per_s, self.host_link_bytes_per_s, self.peer_bytes_per_s)
        if self.memory_bytes < 1 or min(rates) <= 0:
            raise ValueError(f"device {self.name}: memory and rates must be positive")


_GEN4, _GEN5 = 31.5e9, 63.0e9  # PCIe x16 after 128b/130b coding
_H200_SHEET = "NVIDIA H200 data sheet (SXM)"

DEVICES: Mapping[str, DeviceSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            DeviceSpec("h100", 80 * 10**9, 3.35e12, 989e12, _GEN5, 450e9, "NVIDIA H100 data sheet (SXM5, 80 GB)"),
            DeviceSpec("h800", 80 * 10**9, 3.35e12, 989e12, _GEN5, 200e9, "NVIDIA H800 data sheet (SXM5, 80 GB)"),
            DeviceSpec("h20", 96 * 10**9, 4.0e12, 148e12, _GEN5, 450e9, "NVIDIA H20 data sheet (SXM, 96 GB)"),
            DeviceSpec("a100", 80 * 10**9, 2.039e12, 312e12, _GEN4, 300e9, "NVIDIA A100 data sheet (SXM4, 80 GB)"),
            DeviceSpec("a10", 24 * 10**9, 0.6e12, 125e12, _GEN4, _GEN4, "NVIDIA A10 data sheet (PCIe, 24 GB)"),
            DeviceSpec("h200", 141 * 10**9, 4.8e12, 989e12, _GEN5, 450e9, _H200_SHEET),
        )
    }
)


def device_spec(name: str) -> DeviceSpec:
    """The device of that name, in any case. Raises ``UnknownNameError``, which lists those there are."""
    spec = DEVICES.get(plain(name))
    if spec is None:
        raise UnknownNameError("device", name, DEVICES)
    return spec
