"""One node of the simulated pool: its scheduler, its instances, its slab cache and host memory.

Every event goes to the scheduler, and its commands are carried out, before time goes on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, assert_never

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
from aegaeon.core.event import Event, InstanceJoined, KvDropped, RequestArrived, WeightsFetched
from aegaeon.core.kv_shape import KvShape
from aegaeon.core.request import Request
from aegaeon.memory.slab_ledger import SlabLedger
from aegaeon.scheduler.layout import Layout
from aegaeon.scheduler.scheduler import Scheduler
from sim.world.constants import Constants
from sim.world.device import SimDevice
from sim.world.event_queue import Action, EventQueue, Priority
from sim.world.host_cache import HostCache
from sim.world.instance import SimInstance
from sim.world.kept_kv import KeptKv
from sim.world.model_facts import SimModel
from sim.world.observer import WorldObserver
from sim.world.request_state import RequestState

MakeKept = Callable[[SlabLedger], KeptKv]


class SimNode:
    """``requests``: those that are under way here, by id. ``observer``: instances report to it too.

    ``kept``: None where no KV is reused.
    """

    def __init__(
        self,
        index: int,
        layout: Layout,
        models: Mapping[str, SimModel],
        constants: Constants,
        scheduler: Scheduler,
        queue: EventQueue,
        observer: WorldObserver,
        at_home: Iterable[str] | None = None,
        make_kept: MakeKept | None = None,
    ) -> None:
        self.index = index
        self.models = models
        self.constants = constants
        self._queue = queue
        self.slabs = SlabLedger(constants.kv_cache_bytes, constants.slab_bytes)
        shapes = {id(model.spec.kv_shape): model.spec.kv_shape for model in models.values()}  # hashing one takes long
        for shape in shapes.values():
            self.slabs.register(shape)
        self.kept = make_kept(self.slabs) if make_kept is not None else None
        sizes = {name: model.spec.weight_bytes for name, model in models.items()}
        self.host = HostCache(sizes, constants.host_memory_bytes, constants.disk_bytes_per_s, at_home)
        self.requests: dict[str, RequestState] = {}
        self.of_model: Counter[str] = Counter()
        self._scheduler = scheduler
        self.observer = observer
        self._outbox: deque[Event] = deque()
        self._awake: dict[str, SimInstance] = {}
        self._starving: dict[str, SimInstance] = {}  # by request; reported
        self.devices = self._make_devices(layout)
        self.instances = {item.instance_id: item for device in self.devices for item in device.instances}
        self._joining = [placed.spec for placed in layout.on_node(index)]
        self.events = 0

    def _make_devices(self, layout: Layout) -> list[SimDevice]:
        placed = layout.on_node(self.index)
        by_device = {item.device: [other for other in placed if other.device == item.device] for item in placed}
        return [SimDevice(layout.devices[device], items, layout.overlap, self) for device, items in by_device.items()]

    # --- from the world

    def join_instances(self, now_s: float) -> None:
        """Tell the scheduler which instances there are, and which models are in host memory."""
        self._outbox.extend(InstanceJoined(spec) for spec in self._joining)
        self._outbox.extend(WeightsFetched(model) for model in self.host.models)
        self.settle(now_s)

    def arrive(self, request: Request, target_tokens: int, now_s: float) -> None:
        """A client's request is routed here."""
        state = RequestState(request, self.models[request.model], target_tokens)
        self.requests[request.request_id] = state
        self.of_model[request.model] += 1
        ready_s = None if self.kept is None else self.kept.fetch(state, now_s)
        if ready_s is None:
            self._announce(state, now_s)
            self.settle(now_s)
        else:
            self.at(ready_s, Priority.ARRIVAL, self._read, state)

    def _read(self, state: RequestState, now_s: float) -> None:
        """Its KV on disk is in host memory."""
        assert self.kept is not None, "it came from there"
        self.kept.restore(state)
        self._announce(state, now_s)

    def _announce(self, state: RequestState, now_s: float) -> None:
        if self.kept is not None:
            self.kept.arrive(state, now_s)
        self._outbox.append(RequestArrived(state.request, state.kv_tokens))

    def is_warm(self, model: str) -> bool:
        """Whether a model is in this node's host memory or on one of its devices."""
        return model in self.host or any(model in instance.weights for instance in self.instances.values())

    def settle(self, now_s: float) -> None:
        """Let the scheduler see what happened, and instances go on, until nothing is left to do at this time."""
        outbox, awake = self._outbox, self._awake
        while True:
            if outbox:
                self.events += 1
                for command in self._scheduler.handle(outbox.popleft(), now_s):
                    self._carry_out(command, now_s)
            elif awake:
                instance_id = next(iter(awake))
                awake.pop(instance_id).advance(now_s)
            else:
                return

    def at(self, time_s: float, priority: Priority, action: Action, argument: Any) -> None:
        """Have something done at a later time; the node settles after it."""
        self._queue.push(time_s, priority, _settled, (self, action, argument))

    # --- from instances

    def tell(self, event: Event) -> None:
        """Report an event to the scheduler, in order."""
        self._outbox.append(event)

    def wake(self, instance: SimInstance) -> None:
        """Let an instance see what it can do now."""
        self._awake[instance.instance_id] = instance

    def finish(self, request: RequestState, now_s: float) -> None:
        """Its last token is out."""
        request.error = None  # it was given up too late
        self._forget(request, now_s)

    def left(self, request: RequestState, now_s: float) -> None:
        """A member has left a turn as ``DropKv``, ``ReleaseRequest`` or ``RejectRequest`` asked."""
        request.place = None
        self._drop_kv(request, now_s)

    def seat(self, request: RequestState, now_s: float) -> None:
        """A request has come into a turn to be prefilled."""
        if self.kept is not None:
            self.kept.seat(request, now_s)

    def has_room(self, shape: KvShape, blocks: int) -> bool:
        """Whether so many blocks of the slab cache can be had; what is kept gives way."""
        if self.kept is None:
            return self.slabs.can_allocate(shape, blocks)
        return self.kept.make_room(shape, blocks)

    def starve(self, instance: SimInstance, request: RequestState) -> bool:
        """A request waits for a block; True where that is news."""
        known = request.request_id in self._starving
        self._starving[request.request_id] = instance
        return not known

    def feed(self, request: RequestState) -> None:
        """A request waits for no block any more."""
        if self._starving:
            self._starving.pop(request.request_id, None)

    # --- commands

    def _carry_out(self, command: Command, now_s: float) -> None:
        match command:
            case StartTurn():
                self.instances[command.instance_id].start(command, now_s)
            case ExtendTurn():
                instance = self.instances[command.instance_id]
                instance.join(command.turn_id, command.prefill, command.decode, now_s)
            case EndTurn():
                self.instances[command.instance_id].stop(command.turn_id, now_s)
            case LoadWeights():
                self._load(command, now_s)
            case EvictWeights():
                self.instances[command.instance_id].weights.evict(command.model, now_s)
            case FetchWeights():
                self._fetch(command, now_s)
            case EvictKv():
                self._evict_kv(command)
            case DropKv() | ReleaseRequest() | RejectRequest():
                self._carry_out_for_request(command, now_s)
            case _:
                assert_never(command)

    def _load(self, command: LoadWeights, now_s: float) -> None:
        found = [self.requests.get(request_id) for request_id in command.kv]
        self.instances[command.instance_id].load(command.model, [one for one in found if one is not None], now_s)

    def _fetch(self, command: FetchWeights, now_s: float) -> None:
        for model in command.instead_of:
            self.host.drop(model)
        self.at(self.host.fetch(command.model, now_s), Priority.LANDED, self._fetched, command.model)

    def _fetched(self, model: str, now_s: float) -> None:
        self.tell(WeightsFetched(model))

    def _evict_kv(self, command: EvictKv) -> None:
        instance = self.instances[command.instance_id]
        for request_id in command.request_ids:
            request = self.requests.get(request_id)
            if request is not None:
                instance.evict_kv(request)

    def _carry_out_for_request(self, command: DropKv | ReleaseRequest | RejectRequest, now_s: float) -> None:
        request = self.requests.get(command.request_id)
        if request is None:
            if isinstance(command, DropKv):
                self.tell(KvDropped(command.request_id, 0))
            return
        match command:
            case DropKv():
                request.dropping = True
            case ReleaseRequest():
                request.error = "cancelled"
            case RejectRequest():
                request.error = f"{command.reason}: {command.detail}" if command.detail else str(command.reason)
            case _:
                assert_never(command)
        if request.place is None or not request.place.remove(request, now_s):
            self.left(request, now_s)

    def _drop_kv(self, request: RequestState, now_s: float) -> None:
        """Free all it has; tell the scheduler where it asked for that, and the observer where the request is over."""
        if request.error is not None:
            self._forget(request, now_s)
            return
        self._free(request, now_s)
        request.forget_kv()
        if request.dropping:
            request.dropping = False
            self._starving.clear()  # whoever still waits is reported again
            self.tell(KvDropped(request.request_id, request.context))

    def _forget(self, request: RequestState, now_s: float) -> None:
        request.ended = True
        request.place = None
        del self.requests[request.request_id]
        self.of_model[request.request.model] -= 1
        self._free(request, now_s)
        self.observer.ended(request, now_s)

    def _free(self, request: RequestState, now_s: float) -> None:
        """Its blocks here and in the slab cache are free; whoever waits for some looks again."""
        if request.home is not None:
            self.instances[request.home].evict_kv(request)
        if self.kept is None:
            self.slabs.give_back(sorted(request.let_go(request.blocks)))
        else:
            self.kept.leave(request, request.kv_tokens if self.constants.kv_streams_out else request.saved_tokens)
        self.feed(request)
        for instance in dict.fromkeys(self._starving.values()):
            instance.interrupt(now_s)


def _settled(entry: tuple[SimNode, Action, Any], now_s: float) -> None:
    node, action, argument = entry
    action(argument, now_s)
    node.settle(now_s)
