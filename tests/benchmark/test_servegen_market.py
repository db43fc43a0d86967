"""A market composed of clients: their rates, their burstiness, their lengths."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from benchmark.policies.servegen import ARRIVALS, LENGTHS, ServeGen, Window


@pytest.mark.parametrize("weibull", [False, True])
@pytest.mark.parametrize("shape", [0.4, 1.0, 3.0])
def test_a_window_has_its_rate_whatever_its_shape(weibull: bool, shape: float) -> None:
    random = np.random.default_rng(1)
    counts = [len(Window(0.5, weibull, shape).times_s(600.0, random)) for _ in range(300)]
    assert np.mean(counts) == pytest.approx(300.0, rel=0.1)


def test_the_smaller_the_shape_the_burstier() -> None:
    def spread(shape: float) -> float:
        random = np.random.default_rng(2)
        return float(np.std([len(Window(0.5, False, shape).times_s(120.0, random)) for _ in range(200)]))

    assert spread(0.2) > 1.5 * spread(1.0) > 2.0 * spread(10.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    header = "model,client,timestamp,rate,cv,pattern,arg1,arg2\n"
    for index, name in enumerate(ARRIVALS):
        rows = [f"m,{index},0,0.1,1.0,Gamma,0.7,0.1", f"m,{index},600,5.0,1.0,Weibull,0.5,0.1"]
        (tmp_path / name).write_bytes(gzip.compress((header + "\n".join(rows) + "\n").encode()))
    lengths = ["model,client,timestamp,field,value,prob", "m,0,0,input_tokens,40000,1.0"]
    lengths += ["m,0,0,output_tokens,4,0.5", "m,0,0,output_tokens,100,0.5"]
    (tmp_path / LENGTHS).write_bytes(gzip.compress(("\n".join(lengths) + "\n").encode()))
    return tmp_path


def test_a_market_keeps_to_the_cold_tail_and_to_the_context_limit(folder: Path) -> None:
    arrivals = ServeGen.open(folder).arrivals(60, 120.0, seed=0)
    assert len(arrivals) / 60 / 120.0 == pytest.approx(0.1, rel=0.25)  # the window of 5 req/s is no part of it
    assert {arrival.output_tokens for arrival in arrivals} == {16, 100}
    assert {arrival.input_tokens + arrival.output_tokens for arrival in arrivals} == {32768}


def test_more_models_leave_the_others_as_they_are(folder: Path) -> None:
    market = ServeGen.open(folder)
    few, many = market.arrivals(5, 120.0, seed=3), market.arrivals(9, 120.0, seed=3)
    names = {arrival.model for arrival in few}
    assert [arrival for arrival in many if arrival.model in names] == few
