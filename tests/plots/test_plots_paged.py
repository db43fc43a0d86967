"""The figures of the study of paged KV."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plots.results import main

SYSTEMS = ("astra", "orca-oracle", "orca-power2", "orca-constant")
SAMPLINGS = ("n2", "n4", "n2-beam")

PANEL = {
    "figure": "12",
    "title": "a model",
    "curves": {system: [[1.0, 0.1], [2.0, 0.3 + place]] for place, system in enumerate(SYSTEMS)},
    "gains": dict.fromkeys(SYSTEMS[1:], 2.0),
}
RATES = {"level_s": 1.0, "panels": [PANEL] * 4}
MEMORY = {
    "use": {
        system: {"token states": 40.0, "reservation": 30.0, "internal": 20.0, "external": 10.0} for system in SYSTEMS
    },
    "batched": {name: {key: {"requests": 9.0, "kv_gb": 10.0} for key in SYSTEMS} for name in ("sharegpt", "alpaca")},
    "batched_published": {name: dict.fromkeys(SYSTEMS, 8.0) for name in ("sharegpt", "alpaca")},
    "saving": {name: dict.fromkeys(SAMPLINGS, 20.0) for name in ("sharegpt", "alpaca")},
    "saving_published": {"alpaca": dict.fromkeys(SAMPLINGS, 21.0)},
}
MOVED = {"recompute": 50.0, "swap in": 20.0, "swap out": 20.0, "swap in and out": 40.0}
BLOCKS = {
    "sizes": [1, 16, 256],
    "loads": {"alpaca": 30.1, "sharegpt": 2.01},
    "latency_s": {"alpaca": [0.3, 0.1, 0.2], "sharegpt": [0.3, 0.1, 0.2]},
    "swap_latency_s": [0.5, 0.1, 0.2],
    "moved_ms": [MOVED] * 3,
}


@pytest.mark.parametrize(("part", "content"), [("rates", RATES), ("memory", MEMORY), ("blocks", BLOCKS)])
def test_every_part_is_drawn(part: str, content: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / f"paged_{part}.json"
    file.write_text(json.dumps({"benchmark": f"paged {part}", **content}))
    assert main([str(file)]) == 0
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_file_that_lacks_a_part_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "paged_rates.json"
    file.write_text(json.dumps({"benchmark": "paged rates"}))
    assert main([str(file)]) == 2
    assert "paged_rates.json" in capsys.readouterr().err


def test_the_harness_is_drawn(tmp_path: Path) -> None:
    row = {"expr_id": 0, "engine_id": 0, "TTFT": 1.0, "throughput": 3.0, "context_len": 9, "gpu_memory": '{"gpu-0": 1}'}
    file = tmp_path / "test.json"
    file.write_text(json.dumps({"benchmark": "lmcache harness", "rows": [{**row, "request_id": n} for n in range(2)]}))
    assert main([str(file)]) == 0
    assert file.with_suffix(".png").is_file()
