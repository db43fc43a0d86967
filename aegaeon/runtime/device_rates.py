"""What a node's devices are called in latency profiles, and what they can do where nobody has profiled them.

Does not know: models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aegaeon.core.config import PoolConfig
from aegaeon.device.cuda_inventory import find_gpus
from aegaeon.device.local_cpu import local_cpu
from aegaeon.latency.device_spec import DEVICES
from aegaeon.runtime.estimate import DeviceRates

_UNKNOWN_GPU = "a100"  # what an unknown one is taken for until it has been measured


@dataclass(frozen=True, slots=True)
class NodeDevice:
    """``name``: of the folder of its profiles. ``count``: how many there are for instances to share."""

    name: str
    rates: DeviceRates
    count: int = 1


def node_device(config: PoolConfig, threads: int) -> NodeDevice:
    """The devices that this node's instances run on; they are taken to be alike."""
    if config.device != "cuda":
        return NodeDevice(local_cpu(threads).name, DeviceRates.cpu(threads))
    gpus = find_gpus()
    name = gpu_name(gpus[0].name)
    return NodeDevice(name, DeviceRates.gpu(DEVICES.get(name, DEVICES[_UNKNOWN_GPU])), len(gpus))


def gpu_name(marketing_name: str) -> str:
    """``NVIDIA A100-SXM4-80GB`` is ``a100``; a MIG slice keeps its size: ``h100mig1g10gb``."""
    words = re.split(r"[\s-]+", marketing_name.lower())
    model = next(word for word in [*words, "gpu"] if word not in ("nvidia", "tesla", "geforce", ""))
    _, mig, part = marketing_name.lower().partition("mig")
    return re.sub(r"[^a-z0-9]", "", model + mig + part)
