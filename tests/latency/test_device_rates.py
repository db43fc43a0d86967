"""What GPUs are called in latency profiles, and what a node makes of the devices that it is told to use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aegaeon.core.config import PoolConfig
from aegaeon.core.service import ServiceError
from aegaeon.device.cuda.inventory import Gpu
from aegaeon.latency.online import node_device as device_rates
from aegaeon.latency.online.node_device import gpu_name, node_device


@pytest.mark.parametrize(
    ("marketing_name", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A10", "a10"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "h100mig1g10gb"),
        ("NVIDIA", "gpu"),
    ],
)
def test_names(marketing_name: str, name: str) -> None:
    assert gpu_name(marketing_name) == name


def test_gpus_have_the_rates_of_their_data_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = tuple(Gpu(index, "NVIDIA H200", 140 << 30, 141 << 30, 2 << 20, "13.0") for index in range(2))
    monkeypatch.setattr(device_rates, "find_gpus", lambda: gpus)
    device = node_device(PoolConfig(models=(), device="cuda", copy_to_device=True, device_bytes=1 << 30), 8)
    assert (device.name, device.gpus) == ("h200", gpus)
    assert device.rates.host_link_bytes_per_s == pytest.approx(0.8 * 63e9)


def test_a_processor_copies_only_where_it_is_told_to() -> None:
    config = PoolConfig(models=(), device="cpu")
    assert node_device(config, 1).rates.host_link_bytes_per_s is None
    copying = node_device(replace(config, copy_to_device=True), 1)
    assert copying.rates.host_link_bytes_per_s
    assert copying.name == node_device(config, 1).name + "copying"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (PoolConfig(models=(), device="auto"), "'auto' was not settled"),
        (PoolConfig(models=(), device="cuda"), "fit the configuration first"),
        (
            PoolConfig(models=(), device="cuda", copy_to_device=True, device_bytes=1 << 30),
            "--device cuda: .*use --device cpu",
        ),
    ],
)
def test_a_device_that_instances_would_die_of_is_a_clear_error(
    config: PoolConfig, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here() -> tuple[Gpu, ...]:
        raise device_rates.NoCudaError("there is no NVIDIA driver here")

    monkeypatch.setattr(device_rates, "find_gpus", none_here)
    with pytest.raises(ServiceError, match=said):
        node_device(config, 1)
