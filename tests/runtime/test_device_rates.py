"""What GPUs are called in latency profiles."""

from __future__ import annotations

import pytest

from aegaeon.runtime.device_rates import gpu_name


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
