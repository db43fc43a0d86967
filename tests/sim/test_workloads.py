"""Workloads of requests that begin alike: the readers of traces, and sessions that are made up."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from aegaeon.workload import Arrival, NamedBlocks, WorkloadError, read_trace, spread
from sim.workloads.conversation_trace import is_conversations, read_conversations, within
from sim.workloads.named_blocks import require_names
from sim.workloads.sessions import SessionSpec, make_sessions

CONVERSATIONS = [
    {
        "id": "one",
        "block_size": 64,
        "requests": [
            {"t": 0.0, "in": 130, "out": 5, "hash_runs": [[1, 2]]},
            {"t": 9.5, "in": 260, "out": 7, "hash_runs": [[1, 1], [7, 3]]},
            {"t": 12.0, "type": "subagent", "requests": []},
            {"t": 13.0, "in": 260, "out": 0, "hash_runs": [[1, 4]]},
        ],
    },
    {"id": "two", "block_size": 64, "requests": [{"t": 0.0, "in": 64, "out": 1, "hash_runs": [[1, 1]]}]},
]


def written(path: Path, lines: list[object]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def ids(content: NamedBlocks | None) -> list[int]:
    assert content is not None
    return [content[index] for index in range(len(content))]


def test_names_are_runs_of_ids() -> None:
    content = NamedBlocks.of_ids(16, [3, 4, 5, 9, 10, 2])
    assert content.runs == ((3, 3), (9, 2), (2, 1))
    assert ids(content) == [3, 4, 5, 9, 10, 2]
    assert ids(content.cut(4)) == [3, 4, 5, 9]
    assert ids(content.cut(9)) == ids(content)
    assert ids(NamedBlocks(16, ())) == []
    with pytest.raises(ValueError, match="from 0 on"):
        NamedBlocks(16, ((-1, 1),))


def test_a_name_has_one_thing_before_it() -> None:
    def of(*runs: tuple[int, int], scope: str = "") -> NamedBlocks:
        return NamedBlocks(16, runs, scope)

    require_names([of((1, 5)), of((1, 3), (8, 2)), of((1, 9), scope="another"), of((6, 1), scope="another one")])
    for other in (of((7, 1), (1, 1)), of((1, 2), (4, 1)), of((3, 1)), of((1, 1), (1, 1))):
        with pytest.raises(ValueError, match="follows on one block here"):
            require_names([of((1, 5)), other])


def test_mooncake_names_whole_blocks_of_the_prompt(tmp_path: Path) -> None:
    line = {"timestamp": 0, "input_length": 1100, "output_length": 9, "hash_ids": [0, 1, 2]}
    (arrival,) = read_trace(written(tmp_path / "m.jsonl", [line]))
    assert arrival.content == NamedBlocks(512, ((0, 2),))
    with pytest.raises(WorkloadError, match=r"m\.jsonl:1: 'x' are no ids of blocks"):
        read_trace(written(tmp_path / "m.jsonl", [line | {"hash_ids": "x"}]))


def test_conversations_have_names_of_their_own(tmp_path: Path) -> None:
    path = written(tmp_path / "agents.jsonl", list(CONVERSATIONS))
    assert is_conversations(path)
    arrivals = read_conversations(path, rate_per_s=100.0)
    assert [(a.input_tokens, a.output_tokens, ids(a.content)) for a in arrivals] == [
        (130, 5, [1, 2]),
        (64, 1, [1]),
        (260, 7, [1, 7, 8, 9]),
    ]
    assert [a.content.scope for a in arrivals if a.content is not None] == ["one", "two", "one"]
    assert arrivals[2].time_s - arrivals[0].time_s == pytest.approx(9.5)
    assert arrivals == read_conversations(path, rate_per_s=100.0)
    assert [a.input_tokens for a in within(arrivals, 200)] == [130, 64]
    by_scope = {a.content.scope: a.model for a in spread(arrivals * 5, ["x", "y", "z"]) if a.content is not None}
    assert all(by_scope[a.content.scope] == a.model for a in spread(arrivals * 5, ["x", "y", "z"]) if a.content)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "a", "requests": [{"t": 0, "in": 5, "out": 5}]}, "no 'hash_runs' in it"),
        ({"id": "a", "block_size": 0, "requests": [{"t": 0, "in": 5, "out": 5, "hash_runs": []}]}, "at least 1 token"),
        ({"id": "a", "block_size": 4, "requests": [{"t": 0, "in": 5, "out": 5, "hash_runs": [[1]]}]}, "unpack"),
        ({"id": "a", "requests": []}, "no request in it"),
    ],
)
def test_a_wrong_conversation_is_named(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        read_conversations(written(tmp_path / "agents.jsonl", [line]), 1.0)


def test_a_session_grows_and_all_of_a_model_begin_alike() -> None:
    spec = SessionSpec(models=2, rate_per_s=0.2, duration_s=100.0, turns=4.0)
    arrivals = make_sessions(spec)
    assert arrivals == make_sessions(spec)
    assert [a.time_s for a in arrivals] == sorted(a.time_s for a in arrivals)
    turns: dict[tuple[str, int], list[Arrival]] = {}
    for arrival in arrivals:
        assert arrival.content is not None
        assert ids(arrival.content)[: 3008 // 16] == list(range(3008 // 16))
        turns.setdefault((arrival.model, arrival.content.runs[1][0]), []).append(arrival)
    assert max(map(len, turns.values())) > 2
    for session in turns.values():
        for before, after in pairwise(session):
            assert after.input_tokens > before.input_tokens + before.output_tokens
            assert ids(after.content)[: len(ids(before.content))] == ids(before.content)
    require_names(a.content for a in arrivals if a.content is not None)
