"""What the fidelity benchmark shows: both sides of each load, how far apart they are, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from aegaeon.core.record import RequestRecord
from aegaeon.metrics import RunMetrics
from benchmark.fidelity.simulated import MeasuredMachine

ATTAINMENT_TARGET_POINTS, LATENCY_TARGET = 2.0, 0.10


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """One load on one side."""

    slo_attainment: float
    ttft_p50_s: float
    tpot_p50_s: float
    ttft_p90_s: float
    tpot_p90_s: float

    @classmethod
    def of(cls, records: Sequence[RequestRecord]) -> LoadOutcome:
        seen = RunMetrics.of(records)
        return cls(seen.slo_attainment, seen.ttft_s.p50, seen.tpot_s.p50, seen.ttft_s.p90, seen.tpot_s.p90)


@dataclass(frozen=True, slots=True)
class Simulated:
    """The simulated side of a load, and how far it is from the measured one.

    ``attainment_points``: simulated less measured, in percentage points; the errors are of medians, as shares.
    """

    outcome: LoadOutcome
    attainment_points: float
    ttft_error: float
    tpot_error: float
    within: bool

    @classmethod
    def of(cls, outcome: LoadOutcome, measured: LoadOutcome) -> Simulated:
        points = 100 * (outcome.slo_attainment - measured.slo_attainment)
        ttft_error = outcome.ttft_p50_s / measured.ttft_p50_s - 1
        tpot_error = outcome.tpot_p50_s / measured.tpot_p50_s - 1
        latency_within = max(abs(ttft_error), abs(tpot_error)) <= LATENCY_TARGET
        return cls(outcome, points, ttft_error, tpot_error, abs(points) <= ATTAINMENT_TARGET_POINTS and latency_within)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One load on both sides, all rounds together. ``failed`` requests are the real pool's.

    ``predicted``: with the constants of ``machine``, measured beside the load. ``at_speed``: with the same, each round
    as much slower as its ``slowness`` says. ``own_cores`` were busy with the pool and its clients, ``other_cores`` with
    what has nothing to do with it (the most in a round).
    """

    rate_per_s: float
    requests: int
    failed: int
    own_cores: float
    other_cores: float
    machine: MeasuredMachine
    slowness: tuple[float, ...]
    measured: LoadOutcome
    predicted: Simulated
    at_speed: Simulated


def comparison_table(policy: str, rows: Sequence[Comparison]) -> Table:
    """How far the simulator is from the pool, as predicted and at the machine's speed."""
    table = Table(title=f"The real pool and the simulator, same requests, {policy} on both sides")
    heads = ("req/s", "requests", "on\ntime", "TTFT\np50 ms", "TPOT\np50 ms", "pre-\ndicted", "TTFT", "TPOT", "within")
    for head in (*heads, "steps\nslower", "at that\nspeed", "TTFT", "TPOT", "within"):
        table.add_column(head, justify="right")
    for row in rows:
        failed = f" ({row.failed} failed)" if row.failed else ""
        table.add_row(
            f"{row.rate_per_s:g}",
            f"{row.requests}{failed}",
            f"{row.measured.slo_attainment:.1%}",
            f"{row.measured.ttft_p50_s * 1e3:.0f}",
            f"{row.measured.tpot_p50_s * 1e3:.1f}",
            *_cells(row.predicted),
            " ".join(f"{each - 1:+.0%}" for each in row.slowness),
            *_cells(row.at_speed),
        )
    return table


def _cells(side: Simulated) -> tuple[str, str, str, str]:
    within = "yes" if side.within else "no"
    return f"{side.attainment_points:+.1f}", f"{side.ttft_error:+.1%}", f"{side.tpot_error:+.1%}", within


def machine_table(policy: str, rows: Sequence[Comparison]) -> Table:
    """The constants of the machine, as measured beside each load."""
    table = Table(title=f"What it takes in the pool, against the profiles; measured beside each load, {policy}")
    for head in (
        "req/s",
        "cores\nown",
        "\nothers'",
        "prefill\nstep",
        "\n+ ms",
        "decode\nstep",
        "\n+ ms a member",
        "turn\n+ ms",
        "mixed step saves\n(of the smaller)",
        "there and back\nms",
    ):
        table.add_column(head, justify="right")
    for row in rows:
        turns = row.machine.turns
        table.add_row(
            f"{row.rate_per_s:g}",
            f"{row.own_cores:.2f}",
            f"{row.other_cores:.2f}",
            f"{turns.prefill_ratio:.2f} x",
            f"{turns.prompt_s * 1e3:.1f}",
            f"{turns.decode_ratio:.2f} x",
            f"{turns.member_s * 1e3:.2f}",
            f"{turns.hand_over_s * 1e3:.1f}",
            f"{turns.mixed_overlap:.0%}",
            f"{row.machine.way_s * 1e3:.1f}",
        )
    return table
