"""The figure of the study of kept KV."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plots.results import main


def point(size_gb: float, hit_rate: float) -> dict[str, Any]:
    return {"cache_bytes": size_gb * 1e9, "hit_rate": hit_rate, "found_tokens": 1, "evicted_bytes": 0}


CACHES = {
    "name": "a trace",
    "requests": 10,
    "model": "qwen2.5-7b",
    "unlimited": point(100, 0.5),
    "curves": {"lru": [point(1, 0.1), point(10, 0.4)], "another": [point(1, 0.2), point(10, 0.3)]},
}
MARKET = {
    "devices": "2 x h100",
    "curves": {name: [{"models": n, "slo_attainment": 1 / n} for n in (1, 2)] for name in ("off", "slo")},
    "crossings": {"off": "1", "slo": "> 2"},
    "ratio": "> 2.00",
}


@pytest.mark.parametrize(
    "parts", [{"caches": [CACHES]}, {"market": MARKET}, {"caches": [CACHES] * 2, "market": MARKET}]
)
def test_whichever_parts_there_are_are_drawn(parts: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "reuse.json"
    file.write_text(json.dumps({"benchmark": "prefix reuse", **parts}))
    assert main([str(file)]) == 0
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
