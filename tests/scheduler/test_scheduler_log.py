"""Logs: written and read back equal, and answered alike by a fresh scheduler.

The committed log pins the policy: a refactoring must not change it. After a change of policy write it anew::

    PYTHONPATH=. python tests/scheduler/test_scheduler_log.py
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from aegaeon.core.command import EvictKv, RejectReason, RejectRequest, StartTurn
from aegaeon.core.event import InstanceLost, RequestArrived, TurnEnded, TurnEndReason
from aegaeon.core.instance import Role
from aegaeon.core.request import Request
from aegaeon.core.slo import Slo
from aegaeon.scheduler.log import LogEntry, LogError, LoggingScheduler, decode, encode, replay
from aegaeon.scheduler.policies.registry import UnknownPolicyError, make_scheduler
from tests.worlds.toy_play import Play
from tests.worlds.toy_world import SMALL, WIDE, ToyWorld, make_instance, make_limits, make_models

LOG = Path(__file__).parent / "data" / "scheduler_log.jsonl"
KINDS = ["arrive"] * 4 + ["step"] * 9 + ["deliver"] * 6 + ["cancel", "fail_request", "fail_turn"]
RARE = ["lose", "restart", "break_model"]


def recorded_run() -> ToyWorld:
    """A run with a bit of everything: all roles, little memory, faults."""
    world = ToyWorld(make_models(5, shapes=(SMALL, WIDE)), make_limits(slabs=5))
    play = Play(world, [Role.PREFILL, Role.MIXED, Role.DECODE], kv_blocks=60, max_resident_models=2)
    draw = random.Random(3)
    for _ in range(700):
        kinds = RARE if draw.random() < 0.02 else KINDS
        play.act((kinds[int(draw.random() * len(kinds))], int(draw.random() * 10_000)))
    play.finish()
    return play.world


def committed_log() -> list[LogEntry]:
    return [decode(line) for line in LOG.read_text().splitlines()]


def test_a_fresh_scheduler_answers_the_committed_log_alike() -> None:
    log = committed_log()
    assert len(log) > 300
    assert replay(log, recorded_run().fresh_scheduler()) is None


def test_the_run_itself_can_be_repeated() -> None:
    assert [encode(entry) for entry in recorded_run().log] == LOG.read_text().splitlines()


def test_the_committed_log_knows_every_event_and_command() -> None:
    log = committed_log()
    assert len({type(entry.event) for entry in log}) == 12
    assert len({type(command) for entry in log for command in entry.commands}) == 9


def test_a_replay_names_the_first_difference() -> None:
    log = committed_log()
    index = next(i for i, entry in enumerate(log) if i > 50 and entry.commands)
    log[index] = replace(log[index], commands=())
    divergence = replay(log, recorded_run().fresh_scheduler())
    assert divergence is not None
    assert divergence.index == index
    assert divergence.commands == committed_log()[index].commands


@pytest.mark.parametrize(
    "entry",
    [
        LogEntry(0.1 + 0.2, RequestArrived(Request("é\n", "m", 1e-300, 1, 2, Slo(0.1, 1 / 3), 7)), ()),
        LogEntry(0.0, TurnEnded("i", 1, TurnEndReason.QUOTA, (("a", 1), ("b", 2))), (EvictKv("i", ("a", "b")),)),
        LogEntry(1.5, InstanceLost("i"), (StartTurn("i", 2, "m", decode=("a",), quota_s=0.30000000000000004),)),
        LogEntry(2.0, InstanceLost("i"), (RejectRequest("r", RejectReason.OVERLOADED, "x", 1.25),)),
    ],
)
def test_what_is_written_is_read_back_equal(entry: LogEntry) -> None:
    line = encode(entry)
    assert "\n" not in line
    assert decode(line) == entry
    read = decode(line)
    assert type(read.event) is type(entry.event)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no json",
        "[]",
        '{"now_s": 0.0, "event": {"type": "Nothing"}, "commands": []}',
        '{"now_s": 0.0, "event": {"type": "ModelRecovered"}, "commands": []}',
        '{"now_s": 0.0, "event": {"type": "ModelRecovered", "model": "m", "more": 1}, "commands": []}',
        '{"now_s": 0.0, "event": {"type": "ModelRecovered", "model": "m"}}',
    ],
)
def test_another_line_is_an_error_that_shows_it(line: str) -> None:
    with pytest.raises(LogError, match="not a line of a scheduler log"):
        decode(line)


def test_a_logging_scheduler_passes_every_call_on() -> None:
    toy = ToyWorld(make_models(2), make_limits())
    lines: list[str] = []
    toy.scheduler = LoggingScheduler(toy.scheduler, lines.append)
    toy.join(make_instance("i"))
    toy.arrive("r", "m1")
    toy.run()
    assert [decode(line) for line in lines] == toy.log
    assert toy.unfinished() == []


def test_an_unknown_policy_is_told_the_names_nearest_first() -> None:
    toy = ToyWorld(make_models(1), make_limits())
    with pytest.raises(UnknownPolicyError, match=r"'aegeon'; there are: aegaeon, "):
        make_scheduler("aegeon", make_models(1), toy.costs, toy.limits)
    with pytest.raises(UnknownPolicyError, match=r"'slak'; there are: slack, "):
        make_scheduler("slak", make_models(1), toy.costs, toy.limits)


if __name__ == "__main__":
    LOG.write_text("".join(encode(entry) + "\n" for entry in recorded_run().log))
