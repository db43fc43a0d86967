"""What the comparison of policies simulates can be simulated in other processes."""

from __future__ import annotations

import pickle

import pytest

from benchmark.policies.cases import CaseLoad, ablations, contenders, misled, run

EVERY = {**contenders(), **ablations(), "misled": misled(contenders()["slack"], 1.3)}


@pytest.mark.parametrize("name", EVERY)
def test_a_contender_runs_where_it_is_sent(name: str) -> None:
    score = run(pickle.loads(pickle.dumps(EVERY[name])), CaseLoad("even", 2, 0.5, 5.0, 0))
    assert (score.devices, score.attainment) == (16, 1.0)
