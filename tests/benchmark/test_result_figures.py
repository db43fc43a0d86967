"""Benchmarks say what their figures show: the project's own results, as they are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmark.loader import main as loader
from benchmark.policies import main as policies

RESULTS = Path(__file__).parents[2] / "benchmark" / "results"


def result(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_bytes())
    return content


def plain(content: object) -> object:
    return json.loads(json.dumps(content))


def test_the_policies_figure_is_of_the_curves_beside_it() -> None:
    kept = result("policies")
    assert plain(policies.figure(kept)) == kept["figure"]
    assert [sweep["rate"] for sweep in kept["figure"]["sweeps"]] == [0.1, 0.5]


def test_the_loaders_figure_is_of_the_measurements_beside_it() -> None:
    kept = result("loader")
    assert plain(loader.figure(kept["cold"], kept["warm"], kept["facts"])) == kept["figure"]
