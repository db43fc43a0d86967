"""One instance process, driven by a script: it runs the turns that it is given, as in a pool, and is timed.

The process is the pool's own (``run_worker``); this class is its driver and its frontend.

Does not know: what is measured, schedulers, Ray.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Self

import quick_model_loader as qml
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.sampling import SamplingParams
from aegaeon.core.timeline import PhaseSpan
from aegaeon.engine.architecture.prepare import PreparedModel
from aegaeon.profiling.copies import CopyBench
from aegaeon.profiling.errors import ProfilingError
from aegaeon.profiling.point import Copied
from aegaeon.profiling.target import Target
from aegaeon.profiling.turn_times import TurnTimes
from aegaeon.runtime.instance.worker import WorkerModel, WorkerOptions, run_worker
from aegaeon.runtime.node.host_weights import chunk_bytes, wait_until_prepared
from aegaeon.runtime.node.node_kv import NodeKv
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.clock import MonotonicClock
from aegaeon.runtime.wire.fd_exchange import FdServer
from aegaeon.runtime.wire.link import create_link
from aegaeon.runtime.wire.ring import RingReader, create_ring, duplicate_fds

_KEY = "probe:0"
_FRONTEND = "probe-frontend"
_START_S = 120.0
_STEP_S = 600.0  # no single step of any model takes longer
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
        shapes = [model.spec.kv_shape for model in models]
        self._slab_bytes = max(options.slab_bytes, *(-(-shape.block_bytes // 4096) * 4096 for shape in shapes))
        self._copies: CopyBench | None = None
        self._kv = NodeKv(self._kv_bytes(), self._slab_bytes, shapes)
        weight_bytes = sum(model.spec.weight_bytes for model in models)
        chunk = chunk_bytes(weight_bytes)
        self._store = qml.Store(weight_bytes + chunk * len(models), chunk_bytes=chunk)
        if options.target.kind == "cuda":
            wait_until_prepared(self._store)  # the instance pins it, which would give it small pages
        self._link, self._link_fds = create_link()
        self._tokens_fds = create_ring()
        self._tokens = RingReader[m.Output](duplicate_fds(self._tokens_fds))
        self._server = FdServer(self._provide)
        self._process = multiprocessing.get_context("spawn").Process(
            target=run_worker, args=(self._worker_options(),), name="aegaeon-probe", daemon=True
        )
        self._leases: dict[int, qml.Entry] = {}
        self._lent: dict[str, int] = {}  # those used longest ago come first
        self._forgotten = 0
        self._ids = count()
        self._started = False
        self._turn: int | None = None
        self._token_times_s: list[float] = []
        self._spans: list[PhaseSpan] = []

    # --- life -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._process.start()
            self._await(lambda: self._started, _START_S, "start")
            self._link.send(m.AttachFrontend(_FRONTEND, self._server.address))
            for model in tuple(self._models)[: self._resident_models]:
                self.lend(model)
        except BaseException:  # Ctrl-C too: nothing may stay behind
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is None and self._process.is_alive():
            self._link.send(m.Shutdown())
            self._process.join(10.0)
        self._close()

    def _close(self) -> None:
        if self._copies is not None:
            self._copies.__exit__(None, None, None)
        if self._process.is_alive():
            self._process.kill()
        if self._process.pid is not None:
            self._process.join()
        self._server.close()
        self._store.close()
        for entry in self._leases.values():
            entry.close()
        self._link.close()
        self._tokens.close()
        self._kv.close()

    def _kv_bytes(self) -> int:
        block_tokens = max(model.spec.kv_shape.block_tokens for model in self._models.values())
        padding = 3 * block_tokens * self._options.max_batch_requests  # what members grow into
        largest = max(m.spec.kv_shape.bytes_for(self._options.kv_tokens + padding) for m in self._models.values())
        return (-(-largest // self._slab_bytes) + 2) * self._slab_bytes

    def _worker_options(self) -> WorkerOptions:
        models, target = tuple(_worker_model(model) for model in self._models.values()), self._options.target
        resident = self._resident_models
        spec = InstanceSpec(
            "probe", Role.MIXED, self._kv.total_bytes, self._weight_bytes(), resident, self._options.max_batch_requests
        )
        return WorkerOptions(
            spec,
            _KEY,
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
        return {f"instance:{_KEY}": self._link_fds, f"tokens:{_KEY}": self._tokens_fds}[name]

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
        entry = self._entry(model)
        lease_id = next(self._ids)
        self._leases[lease_id] = entry
        self._lent[model] = lease_id
        self._link.send(m.HostWeights(model, lease_id, entry.handle()))

    def take_back(self, model: str) -> None:
        """Have the instance drop the model's weights."""
        lease_id = self._lent.pop(model)
        self._link.send(m.EvictModel(model))
        self._await(lambda: lease_id not in self._leases, _STEP_S, f"give back {model}")

    def forget(self, model: str) -> None:
        """Drop the weights from the host cache and from the kernel's page cache. Nobody may hold them."""
        self._store.evict(model)
        for file in self._models[model].path.resolve().glob("*.safetensors"):
            fd = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)

    def _entry(self, model: str) -> qml.Entry:
        try:
            return self._store.load(self._models[model].path, model).result()
        except qml.LoaderError as error:
            raise ProfilingError(f"cannot load {model}: {error}") from error

    # --- turns ------------------------------------------------------------------------------------------------------

    def run_turn(self, model: str, members: Sequence[Script]) -> TurnTimes:
        """Run a turn until its members have all their tokens."""
        self.hold(model)
        turn_id = next(self._ids)
        prefill = [self._member(model, member) for member in members if not member.decoding]
        decode = [self._member(model, member) for member in members if member.decoding]
        self._turn, self._token_times_s, self._spans = turn_id, [], []
        issued_s = self._clock.now_s()
        self._link.send(m.RunTurn(turn_id, model, tuple(prefill), tuple(decode), None, True, issued_s))
        self._await(lambda: self._turn is None, _STEP_S, f"run {model}")
        for member in (*prefill, *decode):
            self._kv.free(member.request_id)
        return TurnTimes(issued_s, tuple(self._token_times_s), tuple(self._spans))

    def settle(self) -> None:
        """Give the instance the time to capture what the last turns have made worth it."""
        for _ in range(_IDLE_MOMENTS):
            asked = self._forgotten
            self._link.send(m.Forget(()))  # answered between two things that are done ahead of time
            self._await(lambda asked=asked: self._forgotten > asked, _STEP_S, "get ready")  # type: ignore[misc]

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

    def _member(self, model: str, script: Script) -> m.Member:
        request_id = f"r{next(self._ids)}"
        facts = self._models[model].facts
        self._kv.open(request_id, facts.kv_shape)
        room_tokens = script.tokens + script.new_tokens + facts.kv_shape.block_tokens
        blocks = self._kv.extend(request_id, room_tokens)
        ids = tuple(self._random.randrange(facts.vocab_size) for _ in range(script.tokens))
        kv_tokens = script.tokens - 1 if script.decoding else 0  # what lies in the KV does not change what it costs
        sampling = SamplingParams(max_new_tokens=script.new_tokens, temperature=0.0, ignore_eos=True, seed=0)
        state = m.SequenceState(request_id, _FRONTEND, ids, script.tokens, kv_tokens, sampling)
        return m.Member(request_id, blocks, state)

    # --- messages ---------------------------------------------------------------------------------------------------

    def _await(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline_s = time.monotonic() + timeout_s
        poll = select.poll()
        for fd in (self._link.data_fd, self._tokens.data_fd, self._process.sentinel):
            poll.register(fd, select.POLLIN)
        while True:
            self._take_messages()
            if done():
                return
            if not self._process.is_alive():
                raise ProfilingError(f"the instance ended (exit code {self._process.exitcode}) when it was to {what}")
            if time.monotonic() > deadline_s:
                raise ProfilingError(f"the instance did not {what} within {timeout_s:.0f} s")
            poll.poll(1000.0)

    def _take_messages(self) -> None:
        for message in self._link.drain():
            self._take(message)
        for message in self._tokens.drain():  # after the link: what was sent before the end of a turn is here by now
            match message:
                case m.Tokens():
                    self._token_times_s.append(message.time_s)
                case m.Spans():
                    self._spans.extend(message.spans)
                case _:
                    pass  # of a request: that it is finished

    def _take(self, message: object) -> None:
        match message:
            case m.Started():
                self._started = True
            case m.TurnOver():
                self._turn = None
            case m.NeedBlocks():
                blocks = self._kv.extend(message.request_id, message.tokens)
                self._link.send(m.GrantBlocks(message.request_id, blocks))
            case m.Forgotten():
                self._forgotten += 1
            case m.WeightsReturned():
                self._leases.pop(message.lease_id).close()
            case m.WeightsRefused() | m.SequenceFailed():
                raise ProfilingError(message.reason)
            case _:
                pass  # of a request: that it is prefilled or finished


def _worker_model(model: PreparedModel) -> WorkerModel:
    facts, spec = model.facts, model.spec
    return WorkerModel(spec.name, model.path, spec.kv_shape, facts.dtype, spec.max_context_tokens, facts.eos_token_ids)
