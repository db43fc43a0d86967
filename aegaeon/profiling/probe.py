"""A node with one instance, whose scheduler follows a script: turns are run as in a pool, and timed.

The driver is the pool's own (``Driver``), and so is the instance's process (``run_worker``); this class is what a node
and a frontend are in a pool.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import quick_model_loader as qml
from aegaeon.core.command import Command, EvictWeights, FetchWeights, LoadWeights, ReleaseRequest, StartTurn
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.request import Request
from aegaeon.core.sampling import SamplingParams
from aegaeon.core.timeline import PhaseSpan
from aegaeon.engine.prepared.prepared_model import PreparedModel
from aegaeon.memory.token_hash import root_name
from aegaeon.profiling.copies import CopyBench
from aegaeon.profiling.errors import ProfilingError
from aegaeon.profiling.point import Copied
from aegaeon.profiling.pretended_kv import PRETENDED, PretendedKv
from aegaeon.profiling.script import ScriptedScheduler
from aegaeon.profiling.target import Target
from aegaeon.profiling.turn_times import TurnTimes
from aegaeon.runtime.instance.worker import run_worker
from aegaeon.runtime.instance.worker_options import WorkerModel, WorkerOptions
from aegaeon.runtime.node.core.driver_core import DriverCore
from aegaeon.runtime.node.driver import Driver
from aegaeon.runtime.node.host_weights import Fail, HostWeightCache, Post
from aegaeon.runtime.node.instance_handle import InstanceHandle
from aegaeon.runtime.process.process import die_with_parent
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.clock import MonotonicClock
from aegaeon.runtime.wire.fd_exchange import FdServer
from aegaeon.runtime.wire.link import create_link, link_over
from aegaeon.runtime.wire.ring import RingReader, create_ring, duplicate_fds

_INSTANCE = "probe"
_FRONTEND = "probe-frontend"
_START_S = 120.0
_STEP_S = 600.0  # no single step of any model takes longer
_LOOK_S = 0.05  # how often tokens are read, which nobody waits for
_IDLE_MOMENTS = 6  # a turn uses two sizes of steps at most, each of which is one thing to do
RESIDENT_MODELS = 2
"""On a device that models are copied to: one that runs, and the one before."""


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How the instance runs: as ``PoolConfig`` has it. ``kv_tokens``: the most that a turn's members hold together."""

    target: Target
    chunk_tokens: int
    kv_tokens: int
    max_batch_requests: int
    slab_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Script:
    """A member of a turn: a prompt of ``tokens`` to be processed, or (``decoding``) a context to go on from."""

    tokens: int
    new_tokens: int
    decoding: bool


class Probe:
    """A context manager that is entered when the instance is ready. Raises ``ProfilingError`` when it fails."""

    def __init__(self, models: Sequence[PreparedModel], options: ProbeOptions) -> None:
        self._models = {model.spec.name: model for model in models}
        self._options = options
        self._resident_models = RESIDENT_MODELS if options.target.copying else len(models)
        self._clock = MonotonicClock()
        self._random = random.Random(0)
        self._ids = count()
        self._lent: dict[str, None] = {}  # what the instance holds; those used longest ago come first
        self._token_times_s: list[float] = []
        self._spans: list[PhaseSpan] = []
        self._copies: CopyBench | None = None
        self._open()

    # --- life -------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Everything but the process."""
        shapes = [model.spec.kv_shape for model in self._models.values()]
        self._slab_bytes = max(self._options.slab_bytes, *(-(-shape.block_bytes // 4096) * 4096 for shape in shapes))
        self._kv = PretendedKv(self._kv_bytes(), self._slab_bytes, shapes, prefix_cache="off")
        self._script = ScriptedScheduler()
        core = DriverCore({name: model.spec for name, model in self._models.items()}, self._script, self._kv)
        # An instance that ends is not replaced.
        self._driver = Driver(core, self._make_weights, self._clock, lambda _spec: None)
        link, self._instance_fds = create_link()
        self._handle = InstanceHandle(self._spec(), 0, link)
        self._tokens_fds = create_ring()
        self._tokens = RingReader[m.Output](duplicate_fds(self._tokens_fds))
        self._server = FdServer(self._provide)
        ours, fds = create_link()
        self._frontend = link_over(fds)
        self._driver.add_frontend(_FRONTEND, ours)
        self._driver.add_instance(self._handle)
        self._process = multiprocessing.get_context("spawn").Process(
            target=_run_while_parent_lives,
            args=(self._worker_options(), os.getpid()),
            name="aegaeon-probe",
            daemon=True,
        )

    def __enter__(self) -> Self:
        try:
            self._process.start()
            self._frontend.send(m.AttachFrontend(_FRONTEND, self._server.address))
            self._await(lambda: self._script.joined, _START_S, "start")
            for model in tuple(self._models)[: self._resident_models]:
                self.lend(model)
        except BaseException:  # Ctrl-C too: nothing may stay behind
            self._close(0.0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._close(10.0 if kind is None else 0.0)

    def _close(self, patience_s: float) -> None:
        """The instance has so many seconds to end by itself."""
        with ExitStack() as closing:
            closing.callback(self._kv.close)
            closing.callback(self._tokens.close)
            closing.callback(self._frontend.close)
            closing.callback(self._server.close)
            closing.callback(self._end_process, patience_s)
            if self._copies is not None:
                closing.enter_context(self._copies)
            self._driver.stop()
            self._driver.run()

    def _end_process(self, patience_s: float) -> None:
        if self._process.pid is not None:
            self._process.join(patience_s)
            self._process.kill()
            self._process.join()

    def _kv_bytes(self) -> int:
        block_tokens = max(model.spec.kv_shape.block_tokens for model in self._models.values())
        padding = 3 * block_tokens * self._options.max_batch_requests  # what members grow into
        largest = max(m.spec.kv_shape.bytes_for(self._options.kv_tokens + padding) for m in self._models.values())
        return (-(-largest // self._slab_bytes) + 2) * self._slab_bytes

    def _make_weights(self, post: Post, fail: Fail) -> HostWeightCache:
        weight_bytes = sum(model.spec.weight_bytes for model in self._models.values())
        capacity_bytes = weight_bytes + qml.CHUNK_BYTES * len(self._models)
        paths: dict[str, Path] = {name: model.path for name, model in self._models.items()}
        try:
            cache = HostWeightCache(capacity_bytes, paths, post, fail)
        except qml.LoaderError as error:
            raise ProfilingError(f"there is no memory for the weights: {error}") from error
        if self._options.target.kind == "cuda":
            cache.wait_until_prepared()  # the instance pins it, which would give it small pages
        return cache

    def _spec(self) -> InstanceSpec:
        return InstanceSpec(
            _INSTANCE,
            Role.MIXED,
            self._kv.total_bytes,
            self._weight_bytes(),
            self._resident_models,
            self._options.max_batch_requests,
        )

    def _worker_options(self) -> WorkerOptions:
        models, target = tuple(_worker_model(model) for model in self._models.values()), self._options.target
        return WorkerOptions(
            self._handle.spec,
            self._handle.key,
            self._server.address,
            models,
            self._slab_bytes,
            self._kv.total_bytes,
            target.threads,
            self._options.chunk_tokens,
            device=target.kind,
            copy_to_device=target.copying,
            page_bytes=target.page_bytes,
        )

    def _weight_bytes(self) -> int:
        """Of the largest that may be resident together; in place all of them, packed, as when hot."""
        sizes = sorted((model.spec.weight_bytes for model in self._models.values()), reverse=True)
        return sum(sizes[: self._resident_models]) * (1 if self._options.target.copying else 4)

    def _provide(self, name: str) -> list[int]:
        """On the descriptor server's thread; each is asked for once."""
        if name == "slabs":
            return [os.dup(self._kv.fd)]
        key = self._handle.key
        return {f"instance:{key}": self._instance_fds, f"tokens:{key}": self._tokens_fds}[name]

    # --- weights ----------------------------------------------------------------------------------------------------

    def hold(self, *models: str) -> None:
        """Have the instance hold these (at most two), at the cost of what was used longest ago."""
        for model in models:
            if model in self._lent:
                self._lent[model] = self._lent.pop(model)
        for model in models:
            if model not in self._lent:
                self.lend(model)

    def lend(self, model: str) -> None:
        """Have the instance hold the model's weights; read from disk where they are not in the host cache."""
        if len(self._lent) >= self._resident_models:
            self.take_back(next(iter(self._lent)))
        self._lent[model] = None
        self._script.fetched.discard(model)
        self._play_alone(model, FetchWeights(model))
        self._await(lambda: model in self._script.fetched, _STEP_S, f"wait for {model}")
        self._play_alone(model, LoadWeights(_INSTANCE, model))

    def take_back(self, model: str) -> None:
        """Have the instance drop the model's weights."""
        del self._lent[model]
        self._play_alone(model, EvictWeights(_INSTANCE, model))
        self._await(lambda: model not in self._driver.weights.leased, _STEP_S, f"give back {model}")

    def forget(self, model: str) -> None:
        """Drop the weights from the host cache and from the kernel's page cache. Nobody may hold them."""
        self._driver.weights.drop((model,))
        for file in self._models[model].path.resolve().glob("*.safetensors"):
            fd = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)

    # --- turns ------------------------------------------------------------------------------------------------------

    def run_turn(self, model: str, members: Sequence[Script]) -> TurnTimes:
        """Run a turn until its members have all their tokens."""
        self.hold(model)
        names = {self._name(member): member for member in members}
        self._token_times_s, self._spans = [], []
        self._play_turn(model, names)
        return TurnTimes(tuple(self._token_times_s), tuple(self._spans))

    def settle(self, model: str) -> None:
        """Give the instance the time to capture what the last turns have made worth it.

        A turn that is left by its only member is answered between two things that are done ahead of time.
        """
        for _ in range(_IDLE_MOMENTS):
            one = Script(1, 1, decoding=True)
            name = self._name(one)
            self._play_turn(model, {name: one}, ReleaseRequest(name))

    def _play_turn(self, model: str, members: Mapping[str, Script], *then: Command) -> None:
        turn_id = next(self._ids)
        prefill = tuple(name for name, member in members.items() if not member.decoding)
        decode = tuple(name for name, member in members.items() if member.decoding)
        start = StartTurn(_INSTANCE, turn_id, model, prefill, decode, keep_prefilled=True)
        self._play(model, members, start, *then)
        self._await(lambda: turn_id in self._script.turns_over, _STEP_S, f"run {model}")

    def _play_alone(self, model: str, command: Command) -> None:
        """Give a command: a scheduler is asked when a request arrives, which is all that this one is for."""
        cue = Script(1, 1, decoding=False)
        name = self._name(cue)
        self._play(model, {name: cue}, command, ReleaseRequest(name))

    def _play(self, model: str, members: Mapping[str, Script], *commands: Command) -> None:
        self._script.play(members, commands)
        for name, member in members.items():
            self._frontend.send(self._submission(model, name, member))
        self._await(lambda: self._script.given, _STEP_S, "take requests")

    def _name(self, script: Script) -> str:
        return f"{PRETENDED if script.decoding else 'prompt-'}{next(self._ids)}"

    def _submission(self, model: str, request_id: str, script: Script) -> m.Submit:
        vocabulary = self._models[model].facts.vocab_size
        ids = tuple(self._random.randrange(vocabulary) for _ in range(script.tokens))
        request = Request(request_id, model, self._clock.now_s(), script.tokens, script.new_tokens)
        sampling = SamplingParams(max_new_tokens=script.new_tokens, temperature=0.0, ignore_eos=True, seed=0)
        return m.Submit(request, _FRONTEND, ids, sampling, m.KvNames(root_name(model)))

    # --- copies -----------------------------------------------------------------------------------------------------

    def copy_s(self, model: str, what: Copied) -> float:
        """Seconds of a copy of ``copied_bytes`` of the model's block; the instance is idle."""
        if self._copies is None:
            largest = max(model.spec.kv_shape.block_bytes for model in self._models.values())
            self._copies = CopyBench(self._options.target.kind, self._options.target.page_bytes, largest)
        return self._copies.seconds(what, self._models[model].spec.kv_shape.block_bytes)

    @property
    def captures(self) -> bool:
        """Whether decode steps get faster once the instance has had time to capture them."""
        return self._options.target.copying

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _await(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Be the driver, and the frontend, until something is so. All that came before it has been taken then."""
        deadline_s = time.monotonic() + timeout_s
        while not done():
            if not self._process.is_alive():
                raise ProfilingError(f"the instance ended (exit code {self._process.exitcode}) when it was to {what}")
            if time.monotonic() > deadline_s:
                raise ProfilingError(f"the instance did not {what} within {timeout_s:.0f} s")
            self._frontend.flush()
            self._driver.go_on(_LOOK_S)
            self._take_messages()
            if self._script.failure is not None:
                raise ProfilingError(self._script.failure)

    def _take_messages(self) -> None:
        for _ in self._frontend.drain():
            pass  # what the driver says of requests, the script has heard, too
        for message in self._tokens.drain():
            match message:
                case m.Tokens():
                    self._token_times_s.append(message.time_s)
                case m.Spans():
                    self._spans.extend(message.spans)
                case m.Finished():
                    pass


def _run_while_parent_lives(options: WorkerOptions, parent_pid: int) -> None:
    """The instance's process: a profiler that is killed leaves none."""
    die_with_parent(parent_pid)
    run_worker(options)


def _worker_model(model: PreparedModel) -> WorkerModel:
    facts, spec = model.facts, model.spec
    return WorkerModel(spec.name, model.path, spec.kv_shape, facts.dtype, spec.max_context_tokens, facts.eos_token_ids)
