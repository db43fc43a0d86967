"""The instance's core alone: whatever its driver may send, every request's tokens come once, and nothing is left."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon.core.event import TurnEndReason
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.sampling.sampling_state import SamplingState
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.runtime.instance.core.instance_core import InstanceCore, Instruction
from aegaeon.runtime.instance.core.instance_model import InstanceModel
from aegaeon.runtime.instance.core.live_sequence import LiveSequence
from aegaeon.runtime.instance.core.outbox import Report
from aegaeon.runtime.instance.core.weight_store import WeightError
from aegaeon.runtime.wire import messages as m

SHAPE = KvShape((LayerKv(1, 4, 4),), element_bytes=4, block_tokens=4)
MODELS = ("one", "two")
EOS = 1
POISON = 7
"""A token of a prompt: a step with it fails, however often."""
ROOM = 3
"""Requests whose KV fits the device at once."""


def next_token(context: Sequence[int]) -> int:
    """What either model makes of the tokens that it reads from its KV: any of twenty."""
    return EOS + sum((place + 1) * token for place, token in enumerate(context)) * 31 % 20


class Weights:
    """Leases of host weights; ``broken``: what cannot be used now, at which moment."""

    loading = False

    def __init__(self) -> None:
        self.leased: dict[str, int] = {}
        self.broken: set[tuple[str, str]] = set()
        self._over: list[tuple[str, int]] = []

    def take(self, weights: m.HostWeights) -> None:
        if ("take", weights.model) in self.broken:
            raise WeightError("not these")
        assert weights.model not in self.leased
        self.leased[weights.model] = weights.lease_id

    def ready(self, model: str) -> bool:
        return model in self.leased

    def bind(self, model: str) -> None:
        if ("bind", model) in self.broken:
            raise ValueError("they do not fit")

    def evict(self, model: str) -> None:
        if model in self.leased:
            self._over.append((model, self.leased.pop(model)))

    def collect_returned(self) -> list[tuple[str, int]]:
        over, self._over = self._over, []
        return over

    def check_device(self) -> None:
        return

    def prepare_one(self) -> bool:
        return False

    def close(self) -> None:
        for model in tuple(self.leased):
            self.evict(model)


class Kv:
    """KV on a device that has room for few, as the tokens it is of; whoever asks a second time finds a copy landed."""

    def __init__(self) -> None:
        self.device: dict[str, list[int]] = {}
        self.host: dict[str, list[int]] = {}
        self.owner: dict[int, str] = {}
        self._arriving: set[str] = set()
        self._leaving: dict[str, int] = {}
        self._asked: set[str] = set()

    def fetch(self, model: str, sequence: LiveSequence) -> bool:
        name = sequence.request_id
        if name not in self.device:
            if len(self.device) == ROOM:
                raise OutOfSlabsError(SHAPE, 1, 0)
            sequence.kv_tokens = sequence.saved_tokens
            self.device[name] = self.host.get(name, [])[: sequence.kv_tokens]
            assert len(self.device[name]) == sequence.kv_tokens
            self._arriving.add(name)
            return False
        self._arriving.discard(name)
        return True

    def blocks(self, sequence: LiveSequence) -> Sequence[int]:
        return sequence.blocks

    def write_back(self, sequences: Iterable[LiveSequence]) -> None:
        return

    def save(self, sequences: Iterable[LiveSequence]) -> None:
        self._leaving |= {one.request_id: one.kv_tokens for one in sequences if one.request_id in self.device}

    def saved(self, sequence: LiveSequence) -> bool:
        name = sequence.request_id
        if name not in self.device:
            return True
        if name in self._leaving and name in self._asked:
            self._asked.discard(name)
            sequence.saved_tokens = self._leaving.pop(name)
            self.host[name] = self.device[name][: sequence.saved_tokens]
        elif name in self._leaving:
            self._asked.add(name)
        return sequence.saved_tokens == sequence.kv_tokens

    def evict(self, request_id: str) -> None:
        self.device.pop(request_id, None)
        self._leaving.pop(request_id, None)
        self._arriving.discard(request_id)
        self._asked.discard(request_id)

    def close(self) -> None:
        self.device.clear()

    def step(self, model: str, slices: Sequence[SequenceSlice], sampling: Sequence[SamplingState]) -> list[int | None]:
        """A ``StepEngine`` too: whoever counts KV that is not there gives a wrong token."""
        if any(POISON in one.token_ids for one in slices):
            raise IndexError("out of range")
        chosen: list[int | None] = []
        for one in slices:
            name = self.owner[one.blocks[0]]
            assert name not in self._arriving
            assert one.end <= len(one.blocks) * SHAPE.block_tokens
            here = self.device[name]
            assert len(here) >= one.start
            here[one.start :] = one.token_ids
            if one.wants_logits:
                chosen.append(next_token(here))
        assert len(chosen) == len(sampling)
        return chosen


@dataclass
class Job:
    """A request as its driver knows it. ``told``: tokens that its frontend was told."""

    request_id: str
    model: str
    prompt: tuple[int, ...]
    limit: int
    made: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    kv_tokens: int = 0
    blocks: tuple[int, ...] = ()
    prefilled: bool = False
    running: bool = False
    known: bool = False  # to the instance, which has its newest state
    forgetting: bool = False
    wants_tokens: int = 0


class ToyDriver:
    """Says what a driver may say at that moment. The reports that the core makes lie there until they are read."""

    def __init__(self) -> None:
        self.weights, self.kv = Weights(), Kv()
        self.now_s = 0.0
        models = {name: InstanceModel(name, SHAPE, (EOS,)) for name in MODELS}
        self.core = InstanceCore("i0", models, self.weights, self.kv, self.kv, self._clock, chunk_tokens=5)
        self.jobs: dict[str, Job] = {}
        self.over: dict[str, Job] = {}
        self.failed: dict[str, Job] = {}
        self.reports: deque[m.FromInstance] = deque()
        self.turn: m.RunTurn | None = None
        self.leases: dict[int, str] = {}
        self.held: set[str] = set()  # models whose weights the instance was given
        self.ends: list[TurnEndReason] = []
        self._blocks, self._ids = itertools.count(), itertools.count(1)

    def _clock(self) -> float:
        self.now_s += 1e-3
        return self.now_s

    # --- what it says -----------------------------------------------------------------------------------------------

    def send(self, message: Instruction) -> None:
        self.core.receive(message, self._clock())
        self._hear()

    def _hear(self) -> None:
        """A frontend hears at once; tokens are told one after the other, and those of the model."""
        for send in self.core.take_sends():
            if isinstance(send, Report):
                self.reports.append(send.message)
                for progress in _progress(send.message):
                    self._has_been_told(progress)
            elif isinstance(send.message, m.Tokens):
                for request_id, index, token in send.message.items:
                    job = self._job(request_id)
                    assert index == len(job.told)
                    assert token == next_token((*job.prompt, *job.told))
                    job.told.append(token)

    def _has_been_told(self, progress: m.Progress) -> None:
        """No report of output goes before the output."""
        job = self._job(progress.request_id)
        unread = [own for report in self.reports for own in _progress(report) if own.request_id == job.request_id]
        assert [*job.made, *(token for own in unread for token in own.new_ids)] == job.told

    def _job(self, request_id: str) -> Job:
        return self.jobs.get(request_id) or self.over.get(request_id) or self.failed[request_id]

    def idle(self, model: str | None = None) -> list[Job]:
        return [
            job for job in self.jobs.values() if not job.running and not job.forgetting and model in (None, job.model)
        ]

    def ask(self, number: int) -> None:
        name = f"r{len(self.jobs) + len(self.over) + len(self.failed)}"
        prompt = tuple(range(10, 11 + number % 12)) + ((POISON,) if number % 7 == 0 else ())
        self.jobs[name] = Job(name, MODELS[number % 2], prompt, 1 + number % 5)

    def member(self, job: Job) -> m.Member:
        self._grow(job, len(job.prompt) + len(job.made))
        state = None
        if not job.known:
            sampling = SamplingParams(max_new_tokens=job.limit, temperature=0.0, seed=1)
            tokens = (*job.prompt, *job.made)
            state = m.SequenceState(job.request_id, "f", tokens, len(job.prompt), job.kv_tokens, sampling)
        job.known = True
        return m.Member(job.request_id, job.blocks, state)

    def _grow(self, job: Job, tokens: int) -> tuple[int, ...]:
        more = tuple(itertools.islice(self._blocks, max(0, SHAPE.blocks_for(tokens) - len(job.blocks))))
        self.kv.owner |= dict.fromkeys(more, job.request_id)
        job.blocks += more
        return more

    def _members(self, jobs: list[Job]) -> tuple[tuple[m.Member, ...], tuple[m.Member, ...]]:
        prefill, decode = [], []
        for job in jobs:
            job.running = True
            (decode if job.prefilled else prefill).append(self.member(job))
        return tuple(prefill), tuple(decode)

    def give_weights(self, number: int) -> None:
        model = MODELS[number % 2]
        if model not in self.held:
            lease_id = next(self._ids)
            self.leases[lease_id] = model
            self.held.add(model)
            self.send(m.HostWeights(model, lease_id, None))  # type: ignore[arg-type]

    def evict_weights(self, number: int) -> None:
        model = MODELS[number % 2]
        if model in self.held and (self.turn is None or self.turn.model != model):
            self.held.discard(model)
            self.send(m.EvictModel(model))

    def run(self, number: int) -> None:
        model = MODELS[number % 2]
        jobs = self.idle(model)[: 1 + number % 4]
        if self.turn is None and jobs:
            self.give_weights(number)
            quota_s = (None, 0.0, 0.01)[number % 3]
            prefill, decode = self._members(jobs)
            self.turn = m.RunTurn(next(self._ids), model, prefill, decode, quota_s, number % 5 < 3, issued_s=self.now_s)
            self.send(self.turn)

    def join(self, number: int) -> None:
        if self.turn is not None and self.idle(self.turn.model):
            self.send(m.JoinTurn(self.turn.turn_id, self.turn.model, *self._members(self.idle(self.turn.model)[:1])))

    def stop(self, number: int) -> None:
        self.send(m.StopTurn(self.turn.turn_id if self.turn is not None else 0))

    def fetch(self, number: int) -> None:
        jobs = self.idle(MODELS[number % 2])[:1]
        if jobs:
            self.send(m.FetchKv(MODELS[number % 2], (self.member(jobs[0]),)))

    def evict_kv(self, number: int) -> None:
        self.send(m.EvictDeviceKv(tuple(job.request_id for job in self.idle()[: number % 9])))

    def forget(self, number: int) -> None:
        jobs = [job for job in self.jobs.values() if job.running and not job.forgetting]
        for job in jobs[number % len(jobs) :][:1] if jobs else ():
            job.forgetting = True
            self.send(m.Forget((job.request_id,)))

    def discard(self, number: int) -> None:
        for job in self.idle()[:1]:
            job.known = False
            self.send(m.Discard((job.request_id,)))

    def grant(self, number: int) -> None:
        for job in self.jobs.values():
            if job.wants_tokens:
                more, job.wants_tokens = self._grow(job, job.wants_tokens), 0
                self.send(m.GrantBlocks(job.request_id, more))
                return

    def break_model(self, number: int) -> None:
        self.weights.broken ^= {(("take", "bind")[number // 2 % 2], MODELS[number % 2])}

    def step(self, number: int) -> None:
        self.core.return_leases()
        self.core.step(self._clock())
        self._hear()

    # --- what it hears ----------------------------------------------------------------------------------------------

    def read(self, number: int) -> None:
        if self.reports:
            self._take(self.reports.popleft())

    def _take(self, report: m.FromInstance) -> None:
        for progress in _progress(report):
            self._advance(progress)
        match report:
            case m.Prefilled():
                self._prefilled(report)
            case m.SequenceFinished():
                self.over[report.progress.request_id] = self.jobs.pop(report.progress.request_id)
            case m.SequenceFailed():
                self.failed[report.request_id] = self.jobs.pop(report.request_id)
            case m.TurnOver():
                self._turn_over(report)
            case m.NeedBlocks():
                self._need_blocks(report)
            case m.Forgotten():
                self._forgotten(report)
            case m.WeightsReturned():
                assert self.leases.pop(report.lease_id) == report.model
            case m.WeightsRefused():
                self.held.discard(report.model)
                self.leases.pop(report.lease_id or 0, None)
                self.stop(0)  # a turn of it, if there is one: it has failed
            case _:
                assert isinstance(report, m.Attempt)

    def _need_blocks(self, report: m.NeedBlocks) -> None:
        job = self.jobs.get(report.request_id)
        if job is not None and job.running and not job.forgetting:
            job.wants_tokens = report.tokens

    def _forgotten(self, report: m.Forgotten) -> None:
        for job in (self.jobs[request_id] for request_id in report.request_ids if request_id in self.jobs):
            job.running = job.forgetting = job.known = False
            job.wants_tokens = 0

    def _advance(self, progress: m.Progress) -> None:
        job = self.jobs.get(progress.request_id)
        if job is not None:
            job.made += progress.new_ids
            job.kv_tokens = progress.kv_tokens

    def _prefilled(self, report: m.Prefilled) -> None:
        job = self.jobs[report.progress.request_id]
        job.prefilled = True
        if self.turn is not None and not self.turn.keep_prefilled and not job.forgetting:
            job.running, job.wants_tokens = False, 0

    def _turn_over(self, report: m.TurnOver) -> None:
        assert self.turn is not None
        assert report.turn_id == self.turn.turn_id
        self.turn = None
        self.ends.append(report.reason)
        for job in self.jobs.values():
            if not job.forgetting:
                job.running, job.wants_tokens = False, 0

    # --- the end ----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """All requests are run to their ends."""
        self.weights.broken.clear()
        for number in range(400):
            if self.turn is None:
                self.evict_kv(8)  # of models whose turn it is not
            for act in (self.run, self.grant, self.step, self.step, self.read, self.read):
                act(number)
            if not self.jobs and self.turn is None:
                return

    def check(self) -> None:
        assert not self.jobs
        for job in self.over.values():
            assert len(job.told) == job.limit or job.told[-1] == EOS
            assert POISON not in job.prompt
        for job in self.failed.values():
            assert POISON in job.prompt, "one request's fault is no other's"
        assert self.core.request_ids == ()
        assert self.kv.device == {}
        for number in range(2):
            self.evict_weights(number)
        self.step(0)
        while self.reports:
            self.read(0)
        assert self.leases == {}
        assert not self.core.restless


def _progress(report: Any) -> tuple[m.Progress, ...]:
    match report:
        case m.TurnOver() | m.Forgotten():
            return report.progress
        case m.Prefilled() | m.SequenceFinished():
            return (report.progress,)
        case _:
            return ()


ACTS = ("ask", "run", "join", "stop", "fetch", "evict_kv", "forget", "discard", "grant", "break_model")
WEIGHTS = ("give_weights", "evict_weights")
ACTIONS = st.lists(
    st.tuples(st.sampled_from([*ACTS, *WEIGHTS, "ask", "run", *["step"] * 8, *["read"] * 6]), st.integers(0, 999)),
    min_size=20,
    max_size=120,
)


@settings(max_examples=200, derandomize=True)
@given(actions=ACTIONS)
def test_every_token_comes_once_and_nothing_is_left(actions: list[tuple[str, int]]) -> None:
    driver = ToyDriver()
    for what, number in actions:
        getattr(driver, what)(number)
    driver.finish()
    driver.check()


def running(*prompts: tuple[int, ...], quota_s: float | None = None) -> ToyDriver:
    """A driver whose instance is about to make a turn's first step with these."""
    driver = ToyDriver()
    for number, prompt in enumerate(prompts):
        driver.jobs[f"r{number}"] = Job(f"r{number}", "one", prompt, 2, prefilled=True)
    driver.give_weights(0)
    prefill, decode = driver._members(list(driver.jobs.values()))
    driver.turn = m.RunTurn(99, "one", prefill, decode, quota_s, keep_prefilled=True, issued_s=0.0)
    driver.send(driver.turn)
    return driver


def test_what_is_done_next_is_said_before_it_is_done() -> None:
    driver = running((10,), (11, POISON), (12,))
    said: list[tuple[str, ...]] = []
    compute = driver.kv.step

    def watched(model: str, slices: Sequence[SequenceSlice], sampling: Sequence[SamplingState]) -> list[int | None]:
        said.append(tuple(driver.kv.owner[one.blocks[0]] for one in slices))
        heard = [report for report in driver.reports if isinstance(report, m.Attempt)]
        assert heard[-1] == m.Attempt(99, said[-1])
        return compute(model, slices, sampling)

    driver.kv.step = watched  # type: ignore[method-assign]
    while len(said) < 5:
        driver.step(0)
    attempts = [report.request_ids for report in driver.reports if isinstance(report, m.Attempt)]
    assert attempts[0] == (), "the model is bound first"
    assert said[:4] == [("r0", "r1", "r2"), ("r0",), ("r1",), ("r2",)]
    assert "r1" not in said[4]


def test_a_turn_goes_on_until_it_is_known_who_is_at_fault() -> None:
    """However short it is, or it would begin with the same step for ever."""
    driver = running((10,), (12,), (11, POISON), quota_s=0.0)
    while driver.turn is not None:
        driver.step(0)
        driver.read(0)
    assert list(driver.failed) == ["r2"]
    assert driver.ends == [TurnEndReason.QUOTA]
    driver.finish()
    driver.check()


def test_a_device_without_room_ends_the_turn_and_nobody_is_at_fault() -> None:
    driver = running(*((10 + number,) for number in range(ROOM + 1)))
    while driver.turn is not None:
        driver.step(0)
        driver.read(0)
    assert driver.ends == [TurnEndReason.PREEMPTED]
    assert not driver.failed
