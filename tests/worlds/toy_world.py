"""A toy world that plays instances for a scheduler, and checks at every command that it may be given.

Events wait in a mailbox before the scheduler sees them while commands are carried out at once, so the two cross as they
do between processes. Steps are driven from outside: nothing here knows a clock or draws a random number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from aegaeon.core.command import (
    Command,
    DropKv,
    EndTurn,
    EvictKv,
    EvictWeights,
    ExtendTurn,
    FetchWeights,
    LoadWeights,
    RejectRequest,
    ReleaseRequest,
    StartTurn,
)
from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.event import (
    Event,
    InstanceJoined,
    InstanceLost,
    KvDropped,
    KvExhausted,
    ModelFailed,
    ModelRecovered,
    RequestArrived,
    RequestCancelled,
    RequestFailed,
    RequestFinished,
    RequestPrefilled,
    TurnEnded,
    TurnEndReason,
    WeightsFetched,
)
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.request import Request
from aegaeon.core.slo import Slo
from aegaeon.scheduler.contract import CheckedScheduler
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.log import LogEntry
from aegaeon.scheduler.policies.registry import make_scheduler
from aegaeon.scheduler.scheduler import Scheduler

# A token's KV takes 8 bytes (keys and values of 2 elements of 2 bytes); a block of 16 tokens 128 bytes.
SMALL = KvShape((LayerKv(1, 2, 2),))
WIDE = KvShape((LayerKv(1, 4, 4),))
BLOCK_BYTES = SMALL.block_bytes
STEP_S = 0.05


def make_models(count: int, weight_bytes: int = 100, shapes: Sequence[KvShape] = (SMALL,)) -> list[ModelSpec]:
    """Models m0, m1, ... that all have the same weights; shapes in turn."""
    return [ModelSpec(f"m{i}", weight_bytes, shapes[i % len(shapes)], 4096) for i in range(count)]


def make_costs(models: Sequence[ModelSpec], switch_s: float = 0.5, step_s: float = 0.02) -> ProfiledCosts:
    """Every switch takes ``switch_s``, a prefill 10 ms and 1 ms a token, a decode step ``step_s``."""
    profile = LatencyProfile(p0_s=0.01, p1_s=0.001, p2_s=0.0, d0_s=step_s, d1_s=0.0, d2_s=0.0)
    profiles = {model.name: profile for model in models}
    by_name = {model.name: model for model in models}
    return ProfiledCosts(by_name, profiles, 1e18, 1e9, switch_overhead_s=switch_s)


def make_instance(name: str, role: Role = Role.MIXED, kv_blocks: int = 1000, **more: int) -> InstanceSpec:
    """An instance with room for two models of ``make_models``."""
    return InstanceSpec(name, role, kv_blocks * BLOCK_BYTES, more.pop("weight_bytes", 1000), **more)


def make_limits(slabs: int = 1000, slab_blocks: int = 10, **more: float) -> PoolLimits:
    """Slabs of ``slab_blocks`` small blocks."""
    return PoolLimits(slabs * slab_blocks * BLOCK_BYTES, slab_blocks * BLOCK_BYTES, **more)  # type: ignore[arg-type]


@dataclass
class ToyRequest:
    """``target``: the context at which it is finished."""

    request: Request
    target: int
    context: int
    prefilled: bool = False
    blocks: int = 0
    ends: int = 0
    told: bool = False  # the scheduler was told, or said itself, that it is over


@dataclass
class ToyTurn:
    command: StartTurn
    waiting: list[str] = field(default_factory=list)
    decoding: list[str] = field(default_factory=list)
    first_step_s: float | None = None
    end_asked: bool = False

    @property
    def members(self) -> list[str]:
        return [*self.waiting, *self.decoding]


@dataclass
class ToyInstance:
    spec: InstanceSpec
    turn: ToyTurn | None = None
    busy: bool = False  # until the scheduler has seen the end of the turn
    resident: set[str] = field(default_factory=set)
    on_device: set[str] = field(default_factory=set)


class ToyWorld:
    """Instances, requests, a slab cache counted in blocks by shape, and the scheduler under test."""

    def __init__(
        self,
        models: Sequence[ModelSpec],
        limits: PoolLimits,
        costs: ProfiledCosts | None = None,
        policy: str = "aegaeon",
    ) -> None:
        self.models = {model.name: model for model in models}
        self._block_bytes = {model.name: model.kv_shape.block_bytes for model in models}
        self.limits = limits
        self.costs = costs or make_costs(models)
        self._policy = policy
        self.scheduler = self.fresh_scheduler()
        self.instances: dict[str, ToyInstance] = {}
        self.requests: dict[str, ToyRequest] = {}
        self.mailbox: deque[Event] = deque()
        self.log: list[LogEntry] = []
        self.now_s = 0.0
        self.failed: set[str] = set()
        self.in_host: set[str] = set()  # models whose weights are in host memory, or on their way
        self.rejected: list[RejectRequest] = []
        self._starving: set[str] = set()  # reported since the last drop

    def fresh_scheduler(self) -> Scheduler:
        """Another scheduler, as the one under test was at the beginning."""
        models = list(self.models.values())
        return CheckedScheduler(make_scheduler(self._policy, models, self.costs, self.limits), models, self.limits)

    # -- what the outside does

    def arrive(
        self,
        request_id: str,
        model: str,
        prompt: int = 16,
        max_new: int = 16,
        new: int | None = None,
        slo: Slo | None = None,
    ) -> None:
        request = Request(request_id, model, self.now_s, prompt, max_new, slo or self.models[model].slo)
        self.requests[request_id] = ToyRequest(request, prompt + (max_new if new is None else new), prompt)
        self.mailbox.append(RequestArrived(request))

    def cancel(self, request_id: str) -> None:
        """The client goes away; tokens go on until the scheduler says so."""
        self.mailbox.append(RequestCancelled(request_id))

    def join(self, spec: InstanceSpec) -> None:
        self.instances[spec.instance_id] = ToyInstance(spec)
        self.mailbox.append(InstanceJoined(spec))

    def lose(self, instance_id: str, survive: bool = True) -> None:
        """Kill an instance; with ``survive`` every second member of its turn can go on."""
        instance = self.instances.pop(instance_id)
        members = instance.turn.decoding if instance.turn else []
        safe = members[::2] if survive else []
        for name in set(instance.turn.members if instance.turn else []) - set(safe):
            self._free(self.requests[name])
            self.requests[name].prefilled = False
        self.mailbox.append(InstanceLost(instance_id, tuple((name, self.requests[name].context) for name in safe)))

    def fail_request(self, request_id: str) -> None:
        self._leave(request_id)
        self._end(request_id)
        self.mailbox.append(RequestFailed(request_id, "toy"))

    def fail_model(self, model: str) -> None:
        self.failed.add(model)
        fetched = WeightsFetched(model)
        if fetched in self.mailbox:  # it could not be read
            self.mailbox.remove(fetched)
            self.in_host.discard(model)
        self.mailbox.append(ModelFailed(model, "toy"))

    def recover_model(self, model: str) -> None:
        self.failed.discard(model)
        self.mailbox.append(ModelRecovered(model))

    def step(self, instance_id: str) -> None:
        """One step of the instance's turn: at most one prompt, and a token for every decoding member."""
        instance = self.instances[instance_id]
        turn = instance.turn
        if turn is None:
            return
        self.now_s += STEP_S
        turn.first_step_s = self.now_s if turn.first_step_s is None else turn.first_step_s
        for name in list(turn.decoding):
            if self._grow(instance, turn, name):
                self._finish_if_done(instance, turn, name)
        if turn.waiting:
            self._prefill(instance, turn, turn.waiting[0])
        self._end_if_over(instance, turn)

    def fail_turn(self, instance_id: str) -> None:
        instance = self.instances[instance_id]
        if instance.turn is not None:
            self._end_turn(instance, TurnEndReason.FAILED)

    def deliver(self) -> list[Command]:
        """Let the scheduler see the oldest event, and carry out what it says."""
        if not self.mailbox:
            return []
        event = self.mailbox.popleft()
        if isinstance(event, TurnEnded) and event.instance_id in self.instances:
            self.instances[event.instance_id].busy = False
        if isinstance(event, RequestFinished | RequestFailed):
            self.requests[event.request_id].told = True
        commands = self.scheduler.handle(event, self.now_s)
        self.log.append(LogEntry(self.now_s, event, tuple(commands)))
        for command in commands:
            self._carry_out(command)
        return commands

    def deliver_all(self) -> list[Command]:
        """Until no event is left; all that was said."""
        said: list[Command] = []
        while self.mailbox:
            said += self.deliver()
        return said

    def run(self, max_rounds: int = 20_000) -> list[Command]:
        """Step and deliver until nothing moves any more."""
        said = self.deliver_all()
        for _ in range(max_rounds):
            if not any(instance.turn for instance in self.instances.values()):
                return said
            for name in list(self.instances):
                self.step(name)
                said += self.deliver_all()
        raise AssertionError(f"still running after {max_rounds} rounds: {self.unfinished()}")

    def unfinished(self) -> list[str]:
        return [name for name, toy in self.requests.items() if toy.ends == 0]

    # -- commands

    def _carry_out(self, command: Command) -> None:
        match command:
            case StartTurn():
                self._start(command)
            case ExtendTurn() | EndTurn():
                self._change_turn(command)
            case LoadWeights() | EvictWeights():
                self._change_residency(command)
            case FetchWeights():
                self._fetch(command)
            case EvictKv():
                self._evict_kv(command)
            case DropKv():
                self._drop(command.request_id)
            case ReleaseRequest():
                self._give_up(command.request_id)
            case RejectRequest():
                self.rejected.append(command)
                self._give_up(command.request_id)
            case _:
                assert_never(command)

    def _start(self, command: StartTurn) -> None:
        instance = self.instances.get(command.instance_id)
        if instance is None:
            return  # it died a moment ago
        instance.busy = True
        instance.resident.add(command.model)
        self._check_weights(instance)
        instance.turn = ToyTurn(command)
        self._take(instance, instance.turn, command.prefill, command.decode)
        self._check_device_kv(instance)
        if not instance.turn.members:
            self._end_turn(instance, TurnEndReason.DRAINED)

    def _change_turn(self, command: ExtendTurn | EndTurn) -> None:
        instance = self.instances.get(command.instance_id)
        turn = instance.turn if instance else None
        if instance is None or turn is None or turn.command.turn_id != command.turn_id:
            return  # it has just ended
        if isinstance(command, EndTurn):
            turn.end_asked = True
        else:
            self._take(instance, turn, command.prefill, command.decode)

    def _take(self, instance: ToyInstance, turn: ToyTurn, prefill: Iterable[str], decode: Iterable[str]) -> None:
        turn.waiting += [name for name in prefill if self._may_enter(name, prefilled=False)]
        turn.decoding += [name for name in decode if self._may_enter(name, prefilled=True)]
        instance.on_device |= set(turn.decoding)

    def _may_enter(self, name: str, prefilled: bool) -> bool:
        toy = self.requests[name]
        assert toy.ends or toy.prefilled == prefilled, f"{name}: prefilled {toy.prefilled}"
        return not toy.ends

    def _change_residency(self, command: LoadWeights | EvictWeights) -> None:
        instance = self.instances.get(command.instance_id)
        if instance is None:
            return
        if isinstance(command, LoadWeights):
            instance.resident.add(command.model)
            self._check_weights(instance)
            self._load_kv(instance, command)
        else:
            instance.resident.discard(command.model)

    def _load_kv(self, instance: ToyInstance, command: LoadWeights) -> None:
        for name in command.kv:
            assert not any(name in one.on_device for one in self.instances.values()), "it is on a device"
            if self._may_enter(name, prefilled=True):
                instance.on_device.add(name)
        self._check_device_kv(instance)

    def _fetch(self, command: FetchWeights) -> None:
        self.in_host.difference_update(command.instead_of)
        if any(isinstance(event, ModelFailed) and event.model == command.model for event in self.mailbox):
            return  # that is the answer
        self.in_host.add(command.model)
        self.mailbox.append(WeightsFetched(command.model))

    def _check_weights(self, instance: ToyInstance) -> None:
        assert self.limits.host_weight_bytes is None or instance.resident <= self.in_host

    def _evict_kv(self, command: EvictKv) -> None:
        instance = self.instances.get(command.instance_id)
        if instance is not None:
            assert not any(self.requests[name].told for name in command.request_ids)
            instance.on_device -= set(command.request_ids)

    def _drop(self, name: str) -> None:
        toy = self.requests[name]
        if toy.ends == 0:
            self._leave(name)
            self._free(toy)
            toy.prefilled = False
            self.mailbox.append(KvDropped(name, toy.context))
            self._starving.clear()  # whoever still waits at the next step is reported again

    def _give_up(self, name: str) -> None:
        toy = self.requests[name]
        toy.told = True
        self._leave(name)
        if toy.ends == 0:
            self._end(name)

    # -- steps

    def _grow(self, instance: ToyInstance, turn: ToyTurn, name: str) -> bool:
        """One more token, if there is a block for it."""
        toy = self.requests[name]
        if not self._allocate(instance, turn, toy, toy.context + 1):
            return False
        toy.context += 1
        return True

    def _prefill(self, instance: ToyInstance, turn: ToyTurn, name: str) -> None:
        toy = self.requests[name]
        if not self._allocate(instance, turn, toy, toy.context + 1):
            return
        toy.context += 1
        toy.prefilled = True
        turn.waiting.remove(name)
        if turn.command.keep_prefilled:
            turn.decoding.append(name)
            instance.on_device.add(name)
        self.mailbox.append(RequestPrefilled(instance.spec.instance_id, turn.command.turn_id, name, toy.context))
        self._finish_if_done(instance, turn, name)

    def _finish_if_done(self, instance: ToyInstance, turn: ToyTurn, name: str) -> None:
        if self.requests[name].context >= self.requests[name].target:
            self._leave(name)
            self._end(name)
            self.mailbox.append(RequestFinished(instance.spec.instance_id, turn.command.turn_id, name))

    def _allocate(self, instance: ToyInstance, turn: ToyTurn, toy: ToyRequest, tokens: int) -> bool:
        shape = self.models[toy.request.model].kv_shape
        grown = shape.blocks_for(tokens)
        before, toy.blocks = toy.blocks, grown
        if self._used_slabs() <= self.limits.slabs:
            self._starving.discard(toy.request.request_id)
            return True
        toy.blocks = before
        if toy.request.request_id not in self._starving:
            self._starving.add(toy.request.request_id)
            self.mailbox.append(KvExhausted(instance.spec.instance_id, turn.command.turn_id, toy.request.request_id))
        return False

    def _used_slabs(self) -> int:
        blocks: dict[int, int] = {}
        for toy in self.requests.values():
            if toy.blocks:
                block_bytes = self._block_bytes[toy.request.model]
                blocks[block_bytes] = blocks.get(block_bytes, 0) + toy.blocks
        return sum(-(-count // (self.limits.slab_bytes // size)) for size, count in blocks.items())

    def _end_if_over(self, instance: ToyInstance, turn: ToyTurn) -> None:
        assert turn.first_step_s is not None
        quota_s = turn.command.quota_s
        if not turn.members:
            self._end_turn(instance, TurnEndReason.DRAINED)
        elif turn.end_asked or self._device_bytes(instance) > instance.spec.kv_bytes:
            self._end_turn(instance, TurnEndReason.PREEMPTED)
        elif quota_s is not None and self.now_s - turn.first_step_s >= quota_s:
            self._end_turn(instance, TurnEndReason.QUOTA)

    def _end_turn(self, instance: ToyInstance, reason: TurnEndReason) -> None:
        turn = instance.turn
        assert turn is not None
        instance.turn = None
        contexts = tuple((name, self.requests[name].context) for name in turn.decoding)
        self.mailbox.append(TurnEnded(instance.spec.instance_id, turn.command.turn_id, reason, contexts))

    def _device_bytes(self, instance: ToyInstance) -> int:
        shapes = [(self.models[self.requests[name].request.model].kv_shape, name) for name in instance.on_device]
        return sum(shape.bytes_for(self.requests[name].context) for shape, name in shapes)

    def _check_device_kv(self, instance: ToyInstance) -> None:
        assert self._device_bytes(instance) <= instance.spec.kv_bytes, "the device's KV is too small for this turn"

    # -- requests

    def _leave(self, name: str) -> None:
        for instance in self.instances.values():
            instance.on_device.discard(name)
            if instance.turn and name in instance.turn.members:
                (instance.turn.waiting if name in instance.turn.waiting else instance.turn.decoding).remove(name)

    def _free(self, toy: ToyRequest) -> None:
        toy.blocks = 0
        self._starving.discard(toy.request.request_id)

    def _end(self, name: str) -> None:
        toy = self.requests[name]
        toy.ends += 1
        assert toy.ends == 1, f"{name} ended twice"
        self._free(toy)
