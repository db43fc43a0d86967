"""What a node's devices are called in latency profiles, and what they can do where nobody has profiled them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aegaeon.core.config import PoolConfig
from aegaeon.core.service import ServiceError
from aegaeon.device.common.local_cpu import local_cpu
from aegaeon.device.cuda.driver import CudaError, NoCudaError
from aegaeon.device.cuda.inventory import Gpu, find_gpus
from aegaeon.latency.estimate.device_rates import DeviceRates
from aegaeon.latency.estimate.device_spec import DEVICES

_UNKNOWN_GPU = "a100"  # what an unknown one is taken for until it has been measured


@dataclass(frozen=True, slots=True)
class NodeDevice:
    """``name``: of the folder of its profiles. ``gpus`` that there are for instances to share; none on the CPU."""

    name: str
    rates: DeviceRates
    gpus: tuple[Gpu, ...] = ()


def node_device(config: PoolConfig, threads: int) -> NodeDevice:
    """The devices that this node's instances run on; they are taken to be alike. Raises ``ServiceError``."""
    _require_settled(config)
    if config.device != "cuda":
        device = local_cpu(threads, copying=config.copy_to_device)
        return NodeDevice(device.name, DeviceRates.cpu(threads, copying=config.copy_to_device))
    try:
        gpus = find_gpus()
    except (NoCudaError, CudaError) as error:
        raise ServiceError(f"--device cuda: {error}; use --device cpu") from error
    name = gpu_name(gpus[0].name)
    return NodeDevice(name, DeviceRates.gpu(DEVICES.get(name, DEVICES[_UNKNOWN_GPU])), gpus)


def _require_settled(config: PoolConfig) -> None:
    """An instance that has to guess dies, again and again."""
    if config.device == "auto":
        raise ServiceError("device 'auto' was not settled: fit the configuration to the machine, or say cpu or cuda")
    if config.device == "cuda" and (not config.copy_to_device or config.device_bytes is None):
        raise ServiceError("on GPUs weights and KV are copied into --device-memory: fit the configuration first")


def gpu_name(marketing_name: str) -> str:
    """``NVIDIA A100-SXM4-80GB`` is ``a100``; a MIG slice keeps its size: ``h100mig1g10gb``."""
    words = re.split(r"[\s-]+", marketing_name.lower())
    model = next(word for word in [*words, "gpu"] if word not in ("nvidia", "tesla", "geforce", ""))
    _, mig, part = marketing_name.lower().partition("mig")
    return re.sub(r"[^a-z0-9]", "", model + mig + part)
