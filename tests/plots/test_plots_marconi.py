"""The figures of Marconi's experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plots.results import main


def point(rate: float, *systems: str) -> dict[str, Any]:
    found = {"hit_rate": rate, "ttft_p95_ms": 400.0, "by_length": [(0, 0.1), (1000, rate)]}
    settings = {"capacity_gb": 80, "sessions_per_s": 1.0, "ttft_p95_ms": 1000.0}
    return {**settings, "systems": dict.fromkeys(("vLLM+", "V1", "V2", "follow", *systems), found)}


SERIES = {"x": "cache (GB)", "labels": ["60", "80"], "chosen": "", "published": {"V1": [5, 10], "V2": [9, 20]}}
RESULTS = {
    "benchmark": "marconi",
    "sweeps": {"lmsys": [point(0.2), point(0.3)], "swebench": [point(0.1), point(0.4)]},
    "lengths": point(0.3),
    "series": [
        {**SERIES, "figure": figure, "points": [point(0.1, "V3"), point(0.2, "V3")]}
        for figure in ("11", "12a", "12b", "13a", "13b")
    ],
}


def test_all_figures_are_on_one_page(tmp_path: Path) -> None:
    file = tmp_path / "marconi.json"
    file.write_text(json.dumps(RESULTS))
    assert main([str(file)]) == 0
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_results_of_one_sweep_alone_have_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "marconi.json"
    file.write_text(json.dumps({"benchmark": "marconi", "sweeps": RESULTS["sweeps"]}))
    assert main([str(file)]) == 2
    assert "marconi.json" in capsys.readouterr().err
