"""How long the scheduler takes to decide: mean, median and 99th percentile of CPU time per event, at full load.

A crude executor plays the instances on a virtual clock; only the calls of ``Scheduler.handle`` are timed. Every
prefilled request is followed by an arrival, so the queue stays as long as it was asked to be.

    python -m benchmark.scheduler --models 1000 --queued 10000 --events 50000 --policy aegaeon
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean

from aegaeon.core.command import Command, EndTurn, ExtendTurn, StartTurn
from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.event import (
    Event,
    InstanceJoined,
    RequestArrived,
    RequestFinished,
    RequestPrefilled,
    TurnEnded,
    TurnEndReason,
)
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.request import Request
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.registry import POLICIES, make_scheduler
from benchmark.command.main import count, run_measuring
from benchmark.e2e.policy_choice import DEFAULT_POLICY

GIB = 1 << 30
LAYOUTS = {
    "disjoint": [Role.PREFILL] * 6 + [Role.DECODE] * 10,
    "mixed": [Role.MIXED] * 16,
    "one": [Role.MIXED],
}
PROMPT_S = 0.05
STEP_S = 0.02
STEPS = 25  # at once


@dataclass
class ModelTurn:
    """A turn under way: prompts still to process, and the tokens that each decoding member still wants."""

    turn_id: int
    end_s: float
    keep: bool
    prompts: list[str] = field(default_factory=list)
    members: list[str] = field(default_factory=list)


class Bench:
    """Drives one scheduler and times every decision."""

    def __init__(self, models: int, layout: str, seed: int, policy: str) -> None:
        self.random = random.Random(seed)
        self.models = [make_model(i) for i in range(models)]
        profile = LatencyProfile(0.01, 1e-4, 0.0, STEP_S, 1e-7, 1e-4)
        by_name = {model.name: model for model in self.models}
        costs = ProfiledCosts(by_name, dict.fromkeys(by_name, profile), 20e9, 20e9)
        limits = PoolLimits(2048 * GIB, GIB, max_queued_requests=1_000_000)
        self.scheduler = make_scheduler(policy, self.models, costs, limits)
        self.weights = [1.0 / (i + 1) for i in range(models)]  # few models are popular, most are not
        self.now_s = 0.0
        self.took_s: defaultdict[str, list[float]] = defaultdict(list)
        self.commands: defaultdict[str, int] = defaultdict(int)
        self.contexts: dict[str, int] = {}
        self.left: dict[str, int] = {}
        self.turns: dict[str, ModelTurn] = {}
        self.heap: list[tuple[float, int, str]] = []
        self.made = 0
        for index, role in enumerate(LAYOUTS[layout]):
            self.tell(InstanceJoined(InstanceSpec(f"gpu{index:02}", role, 40 * GIB, 40 * GIB)))

    def tell(self, event: Event) -> None:
        start_s = time.thread_time()
        commands = self.scheduler.handle(event, self.now_s)
        self.took_s[type(event).__name__].append(time.thread_time() - start_s)
        for command in commands:
            self.commands[type(command).__name__] += 1
            self.carry_out(command)

    def arrive(self) -> None:
        self.made += 1
        name = f"request-{self.made}"
        (model,) = self.random.choices(self.models, self.weights)
        prompt, new = self.random.randrange(16, 2000), self.random.randrange(1, 500)
        self.contexts[name], self.left[name] = prompt, new
        self.tell(RequestArrived(Request(name, model.name, self.now_s, prompt, 1024)))

    def carry_out(self, command: Command) -> None:
        if isinstance(command, StartTurn):
            end_s = self.now_s + (1e9 if command.quota_s is None else command.quota_s)
            turn = ModelTurn(command.turn_id, end_s, command.keep_prefilled)
            turn.prompts, turn.members = list(command.prefill), list(command.decode)
            self.turns[command.instance_id] = turn
            self.plan(command.instance_id, turn)
        elif isinstance(command, ExtendTurn):
            turn = self.turns[command.instance_id]
            turn.prompts += command.prefill
            turn.members += command.decode
        elif isinstance(command, EndTurn):
            self.turns[command.instance_id].end_s = self.now_s

    def plan(self, instance_id: str, turn: ModelTurn) -> None:
        """When something next happens in a turn: a prompt is done, or the batch is a few steps further."""
        wait_s = PROMPT_S if turn.prompts else STEPS * STEP_S
        heapq.heappush(self.heap, (self.now_s + wait_s, turn.turn_id, instance_id))

    def happen(self) -> bool:
        """The next thing that happens; returns whether a prompt was processed."""
        self.now_s, turn_id, instance_id = heapq.heappop(self.heap)
        turn = self.turns[instance_id]
        prefilled = bool(turn.prompts)
        (self.prefill if prefilled else self.decode)(instance_id, turn)
        if (turn.prompts or turn.members) and self.now_s < turn.end_s:
            self.plan(instance_id, turn)
        else:
            contexts = tuple((name, self.contexts[name]) for name in turn.members)
            reason = TurnEndReason.QUOTA if contexts else TurnEndReason.DRAINED
            self.tell(TurnEnded(instance_id, turn_id, reason, contexts))
        return prefilled

    def prefill(self, instance_id: str, turn: ModelTurn) -> None:
        name = turn.prompts.pop(0)
        self.contexts[name] += 1
        if turn.keep:
            turn.members.append(name)
        self.tell(RequestPrefilled(instance_id, turn.turn_id, name, self.contexts[name]))

    def decode(self, instance_id: str, turn: ModelTurn) -> None:
        for name in list(turn.members):
            made = min(STEPS, self.left[name])
            self.contexts[name] += made
            self.left[name] -= made
            if self.left[name] == 0:
                turn.members.remove(name)
                self.tell(RequestFinished(instance_id, turn.turn_id, name))


def make_model(index: int) -> ModelSpec:
    """Models of about 7B, in four KV shapes."""
    layers, heads = ((28, 4), (32, 8), (32, 32), (40, 40))[index % 4]
    return ModelSpec(f"model-{index}", (12 + index % 6) * GIB, KvShape((LayerKv(heads, 128, 128),) * layers), 32768)


def percentile_us(times_s: list[float], share: float) -> float:
    """The value in microseconds that ``share`` of the times do not exceed."""
    return 1e6 * sorted(times_s)[min(len(times_s) - 1, int(share * len(times_s)))]


def report(bench: Bench) -> None:
    rows = {**bench.took_s, "all": [t for times in bench.took_s.values() for t in times]}
    print(f"{'event':<18}{'count':>9}{'mean us':>10}{'median us':>12}{'p99 us':>10}{'max us':>10}")
    for name, times_s in rows.items():
        shares = [percentile_us(times_s, share) for share in (0.5, 0.99, 1.0)]
        mean_us = 1e6 * fmean(times_s)
        print(f"{name:<18}{len(times_s):>9}{mean_us:>10.1f}{shares[0]:>12.1f}{shares[1]:>10.1f}{shares[2]:>10.1f}")
    print("commands: " + ", ".join(f"{count} {name}" for name, count in sorted(bench.commands.items())))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Decision latency of a scheduling policy.")
    parser.add_argument("--policy", choices=sorted(POLICIES), default=DEFAULT_POLICY)
    parser.add_argument("--models", type=count, default=1000)
    parser.add_argument("--queued", type=count, default=10_000, help="requests kept waiting for prefill")
    parser.add_argument("--events", type=count, default=50_000, help="events after the queue is full")
    parser.add_argument(
        "--layout", choices=LAYOUTS, help="default: disjoint for aegaeon, which is made for it, else mixed"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _run(options: argparse.Namespace) -> int:
    layout = options.layout or ("disjoint" if options.policy == "aegaeon" else "mixed")
    print(f"{options.policy}, {layout} instances, {options.models} models, {options.queued} requests queued")
    bench = Bench(options.models, layout, options.seed, options.policy)
    for _ in range(options.queued):
        bench.arrive()
    told = sum(map(len, bench.took_s.values()))
    while sum(map(len, bench.took_s.values())) < told + options.events:
        if bench.happen():
            bench.arrive()
    report(bench)
    return 0


def main() -> int:
    """Run the command line: 0, 130 after Ctrl-C."""
    options = parse_options()
    return run_measuring("scheduler", lambda _spinners: _run(options))


if __name__ == "__main__":
    sys.exit(main())
