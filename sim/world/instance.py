"""A simulated instance: carries out the commands that name it, turn by turn, boundary by boundary.

Between two boundaries nothing changes, so what happens there is planned in one go (``DecodePlan``, ``PromptPlan``) and
booked when the boundary comes; whatever changes something earlier cuts the plan at the next step's end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from aegaeon.core.command import StartTurn
from aegaeon.core.event import (
    KvExhausted,
    RequestFinished,
    RequestPrefilled,
    TurnEnded,
    TurnEndReason,
)
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.scheduler.layout import PlacedInstance
from sim.systems.errors import SimulationError
from sim.world.decode_plan import DecodePlan, plan_decode
from sim.world.event_queue import Priority
from sim.world.pace import Pace
from sim.world.prompt_plan import PromptPlan, plan_chunks, plan_prompt
from sim.world.request_state import RequestState
from sim.world.turn import SimTurn

if TYPE_CHECKING:
    from sim.world.device import SimDevice
    from sim.world.node import SimNode


class SimInstance:
    """``weights`` are its models; ``kv_bytes`` the device copies of its requests' KV."""

    def __init__(self, placed: PlacedInstance, device: SimDevice, node: SimNode) -> None:
        self.instance_id = placed.spec.instance_id
        self.spec = placed.spec
        self.share = placed.compute_share
        self._device = device
        self._node = node
        self._constants = node.constants
        self.weights = device.weights_for(self)
        for model in placed.preloaded:
            self.weights.preload(model)
        self.turn: SimTurn | None = None
        self._plan: DecodePlan | PromptPlan | None = None
        self._bound: str | None = placed.preloaded[0] if len(placed.preloaded) == 1 else None
        self._switching = False
        self.kv_bytes = 0
        self.busy_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether it computes now."""
        return self._plan is not None

    @property
    def kv_room_bytes(self) -> int:
        """What KV may take: its share, or what weights leave of the memory that they share."""
        total_bytes = self.spec.memory_bytes
        if total_bytes is None:
            return self.spec.kv_bytes
        return min(self.spec.kv_bytes, total_bytes - self.weights.bytes)

    def _require_memory(self) -> None:
        """Members that leave at the end of the step that is under way count no more."""
        total_bytes = self.spec.memory_bytes
        if total_bytes is not None and self.kv_bytes - self._leaving_bytes() + self.weights.bytes > total_bytes:
            raise SimulationError(
                f"{self.instance_id} has {total_bytes} bytes, but {self.weights.bytes} of weights and {self.kv_bytes} "
                f"of KV are to be on it"
            )

    def _leaving_bytes(self) -> int:
        leaving = self.turn.leaving if self.turn is not None else ()
        return sum(
            request.blocks * request.model.block_bytes for request in leaving if request.home == self.instance_id
        )

    # --- commands

    def load(self, model: str, requests: Iterable[RequestState], now_s: float) -> None:
        """Bring a model in ahead of its turn, and the KV of some of its requests."""
        self.weights.want(model, now_s, urgent=False)
        for request in requests:
            self._bring_in(request, now_s)
        self._require_memory()

    def start(self, command: StartTurn, now_s: float) -> None:
        if self.turn is not None:
            raise SimulationError(f"{command} is given to an instance that is in turn {self.turn.turn_id}")
        model = self._node.models[command.model]
        self.turn = turn = SimTurn(command, model, now_s)
        self._switching = self._bound != command.model
        if self._constants.control_s:
            turn.ready_s = now_s + self._constants.control_s
            self._node.at(turn.ready_s, Priority.BOUNDARY, self._command_arrived, turn)
        self.weights.want(command.model, now_s, urgent=True)
        self._require_memory()
        self.join(command.turn_id, command.prefill, command.decode, now_s)
        if self.weights.is_ready(command.model):
            self._bind(turn, now_s)

    def join(self, turn_id: int, prefill: Iterable[str], decode: Iterable[str], now_s: float) -> None:
        turn = self.turn
        if turn is None or turn.turn_id != turn_id:
            return  # it has just ended
        find = self._node.requests.get
        prompts = [request for name in prefill if (request := find(name)) is not None]
        batch = [request for name in decode if (request := find(name)) is not None]
        for request in (*prompts, *batch):
            if request.place is not None:
                raise SimulationError(f"request {request.request_id} is in a turn of {request.place.instance_id}")
            request.place = self
        for request in prompts:
            self._node.seat(request, now_s)
        turn.waiting.update((request.request_id, request) for request in prompts)
        for request in batch:
            turn.decoding[request.request_id] = request
            self._bring_in(request, now_s)
        self.interrupt(now_s)

    def stop(self, turn_id: int, now_s: float) -> None:
        turn = self.turn
        if turn is not None and turn.turn_id == turn_id:
            turn.stopping = True
            self.interrupt(now_s)

    def remove(self, request: RequestState, now_s: float) -> bool:
        """Lose a member at the next boundary; False if it is none (or its prompt has just been done)."""
        turn = self.turn
        if turn is None:
            return False
        if self._plan is not None and (request.request_id in turn.decoding or request.request_id in turn.waiting):
            turn.leaving.append(request)
            self.interrupt(now_s)
            return True
        turn.drop(request)
        self._node.wake(self)
        return False

    def evict_kv(self, request: RequestState) -> None:
        """Drop the device copy of a request's KV, if it is here."""
        if request.home == self.instance_id:
            request.home = None
            self.kv_bytes -= request.blocks * request.model.block_bytes

    def interrupt(self, now_s: float) -> None:
        """Something changed: come to a boundary after the step that is under way."""
        plan = self._plan
        if plan is None:
            self._node.wake(self)
        elif plan.cut(now_s):
            self._await_boundary(plan)

    # --- the boundary

    def weights_landed(self, model: str, now_s: float) -> None:
        turn = self.turn
        if turn is not None and turn.command.model == model:
            self._bind(turn, now_s)
            self._node.wake(self)

    def _command_arrived(self, turn: SimTurn, now_s: float) -> None:
        self._node.wake(self)

    def _bind(self, turn: SimTurn, now_s: float) -> None:
        if self._switching:
            self._switching = False
            self._bound = turn.command.model
            self._node.observer.switched(self, turn, now_s)

    def _await_boundary(self, plan: DecodePlan | PromptPlan) -> None:
        self._node.at(plan.boundary_s, Priority.BOUNDARY, self._reach, plan)

    def _reach(self, plan: DecodePlan | PromptPlan, now_s: float) -> None:
        if plan is not self._plan or plan.boundary_s != now_s:
            return  # an entry that is out of date
        turn = self.turn
        assert turn is not None
        self._plan = None
        self.busy_s += now_s - plan.start_s
        if not turn.stepped:
            turn.first_step(float(plan.times[0]))
        if isinstance(plan, DecodePlan):
            self._book_decode(turn, plan)
        else:
            self._book_prompt(turn, plan, now_s)
        if turn.leaving:
            self._let_leave(turn, now_s)
        self._node.wake(self)

    def _book_decode(self, turn: SimTurn, plan: DecodePlan) -> None:
        end_s, steps, start_s = plan.boundary_s, plan.steps, plan.start_s
        seconds = end_s - start_s
        whole = plan.times if steps == len(plan.times) else plan.times[:steps]
        for member, first in zip(plan.members, plan.joins, strict=True):
            if not first:
                member.decode(whole, seconds)
            elif first < steps:
                joined_s = float(plan.times[first - 1])
                member.spend_kv(joined_s - start_s)
                member.decode(whole[first:], end_s - joined_s)
            if member.generated >= member.target:
                self._finish(turn, member, end_s)

    def _book_prompt(self, turn: SimTurn, plan: PromptPlan, now_s: float) -> None:
        request, steps = plan.request, plan.steps
        for member in plan.members:
            member.decode(plan.times[:steps], now_s - plan.start_s)
            if member.finished:
                self._finish(turn, member, now_s)
        request.spend_prefill(now_s - plan.start_s)
        request.kv_tokens = plan.filled[steps - 1]
        if request.kv_tokens < request.context:
            return
        request.take_tokens(plan.times[steps - 1 : steps])
        if request.finished:
            self._finish(turn, request, now_s)
        else:
            self._prefilled(turn, request, now_s)

    def _prefilled(self, turn: SimTurn, request: RequestState, now_s: float) -> None:
        del turn.waiting[request.request_id]
        self._save(request, now_s, request.kv_tokens - request.saved_tokens)
        if turn.command.keep_prefilled:
            turn.decoding[request.request_id] = request
            request.arrive_s = now_s
            self._tell_prefilled(turn.turn_id, request)
            return
        turn.landing += 1
        self._node.at(request.saved_s, Priority.LANDED, self._landed, (turn, request, request.epoch))

    def _landed(self, what: tuple[SimTurn, RequestState, int], now_s: float) -> None:
        turn, request, epoch = what
        turn.landing -= 1
        if not request.ended and request.epoch == epoch:
            request.spend_kv(now_s - float(request.times[-1][-1]))
            self.evict_kv(request)
            request.place = None
            self._tell_prefilled(turn.turn_id, request)
        self._node.wake(self)

    def _tell_prefilled(self, turn_id: int, request: RequestState) -> None:
        self._node.tell(RequestPrefilled(self.instance_id, turn_id, request.request_id, request.context))

    def _finish(self, turn: SimTurn, request: RequestState, now_s: float) -> None:
        turn.drop(request)
        self._node.tell(RequestFinished(self.instance_id, turn.turn_id, request.request_id))
        self._node.finish(request, now_s)

    def _let_leave(self, turn: SimTurn, now_s: float) -> None:
        for request in turn.leaving:
            if not request.ended:
                turn.drop(request)
                self._node.left(request, now_s)
        turn.leaving.clear()

    # --- what is next

    def advance(self, now_s: float) -> None:
        """Begin the next plan of the turn, end it, or wait for something to come."""
        turn = self.turn
        if turn is None or self._plan is not None:
            return
        plan = self._next_plan(turn, now_s)
        if plan is None:
            self._device.rest(self, now_s)
            return
        self._plan = plan
        self._device.work(self, now_s)
        self._await_boundary(plan)

    def _next_plan(self, turn: SimTurn, now_s: float) -> DecodePlan | PromptPlan | None:
        reason = turn.over(now_s)
        if reason is not None:
            if not turn.landing:
                self._end(turn, reason, now_s)
            return None
        if now_s < turn.ready_s or not self.weights.is_ready(turn.command.model):
            return None
        if turn.waiting:
            plan = self._plan_prompt(turn, now_s)
            if plan is not None or self.turn is not turn:
                return plan
        return self._plan_decode(turn, now_s) if turn.decoding else None

    def _plan_prompt(self, turn: SimTurn, now_s: float) -> PromptPlan | None:
        request = next(iter(turn.waiting.values()))
        extra_bytes = self._missing_blocks(request, request.context) * turn.model.block_bytes
        if request.home != self.instance_id:
            extra_bytes += request.blocks * turn.model.block_bytes
        if turn.stepped and self.kv_bytes + extra_bytes > self.kv_room_bytes:
            if not turn.landing:  # KV on its way out makes room
                self._end(turn, TurnEndReason.PREEMPTED, now_s)
            return None
        if request.home != self.instance_id:
            self._bring_in(request, now_s)
            if request.shared is not None:
                self._node.at(request.arrive_s, Priority.LANDED, self._found_landed, (turn, request, now_s))
        if not self._grow(turn, request, request.context) or (request.shared is not None and request.arrive_s > now_s):
            return None
        pace = Pace(self._device.speed(self), self._constants.step_quantum_s)
        chunk_tokens = self._constants.prefill_chunk_tokens
        if chunk_tokens is None:
            return plan_prompt(turn.model.profile, request, now_s, pace)
        members = self._with_room(turn, [member for member in turn.decoding.values() if member.arrive_s <= now_s])
        overlap = self._constants.mixed_overlap
        return plan_chunks(turn.model.profile, request, members, chunk_tokens, now_s, pace, overlap)

    def _found_landed(self, what: tuple[SimTurn, RequestState, float], now_s: float) -> None:
        """What was found of a prompt is on the device: the rest can be computed."""
        turn, request, asked_s = what
        if self.turn is turn and request.place is self:
            request.spend_kv(now_s - asked_s)
            self.interrupt(now_s)

    def _plan_decode(self, turn: SimTurn, now_s: float) -> DecodePlan | None:
        members = self._with_room(turn, list(turn.decoding.values()))
        if not members:
            return None
        if turn.stepped and self.kv_bytes > self.kv_room_bytes and len(turn.decoding) > 1:
            self._end(turn, TurnEndReason.PREEMPTED, now_s)  # the next round packs by what is reported now
            return None
        pace = Pace(self._device.speed(self), self._constants.step_quantum_s)
        quota_s = None if turn.stepped else turn.command.quota_s
        plan = plan_decode(turn.model.profile, members, now_s, pace, turn.until_s, quota_s)
        self._reserve(plan)
        return plan

    # --- KV

    def _bring_in(self, request: RequestState, now_s: float) -> None:
        if request.home == self.instance_id:
            request.arrive_s = max(request.arrive_s, now_s)
            return
        if request.home is not None:
            raise SimulationError(f"the KV of request {request.request_id} is on {request.home}")
        request.home = self.instance_id
        self.kv_bytes += request.blocks * request.model.block_bytes
        size_bytes = request.kv_tokens * request.model.token_bytes
        if size_bytes:
            seconds = size_bytes / self._constants.kv_bytes_per_s
            request.arrive_s = self._device.link.move_kv(now_s, request.saved_s, seconds)
            self._node.observer.kv_moved(self, request, request.arrive_s - seconds, request.arrive_s, inward=True)
        else:
            request.arrive_s = now_s

    def _save(self, request: RequestState, now_s: float, tokens: int) -> None:
        """Send the KV of ``tokens`` tokens to the slab cache; then all of it is there."""
        seconds = tokens * request.model.token_bytes / self._constants.kv_bytes_per_s
        request.saved_s = self._device.out_link.move(now_s, seconds)
        request.saved_tokens = request.kv_tokens
        self._node.observer.kv_moved(self, request, request.saved_s - seconds, request.saved_s, inward=False)

    def _missing_blocks(self, request: RequestState, tokens: int) -> int:
        return max(0, request.model.blocks_for(tokens) - request.blocks)

    def _grow(self, turn: SimTurn, request: RequestState, tokens: int) -> bool:
        """Have blocks for ``tokens`` tokens; without them the request begins to wait."""
        missing = self._missing_blocks(request, tokens)
        if not missing:
            return True
        try:
            if self._node.kept is not None:
                self._node.kept.make_room(request.model.spec.kv_shape, missing)
            shares = self._node.slabs.take(request.model.spec.kv_shape, missing)
        except OutOfSlabsError:
            if self._node.starve(self, request):
                self._node.tell(KvExhausted(self.instance_id, turn.turn_id, request.request_id))
            return False
        request.hold(shares[::-1], missing)
        self.kv_bytes += missing * request.model.block_bytes
        self._node.feed(request)
        return True

    def _with_room(self, turn: SimTurn, members: list[RequestState]) -> list[RequestState]:
        """Those that have a block to write the next token to; the others wait."""
        return [
            member
            for member in members
            if member.room_tokens > member.kv_tokens or self._grow(turn, member, member.kv_tokens + 1)
        ]

    def _reserve(self, plan: DecodePlan) -> None:
        """Give the members blocks for all steps of the plan; shorten it to what there is room for."""
        model = plan.members[0].model
        while True:
            missing = [
                model.blocks_for(tokens) - member.blocks
                if (tokens := member.kv_tokens + plan.steps - first) > member.room_tokens
                else 0
                for member, first in zip(plan.members, plan.joins, strict=True)
            ]
            total = sum(missing)
            if not total:
                return  # everybody has a block for one step, so this is where it ends at the latest
            extra_bytes = total * model.block_bytes
            roomy = self.kv_bytes + extra_bytes <= self.kv_room_bytes or len(plan.members) == 1
            if roomy and self._node.has_room(model.spec.kv_shape, total):
                break
            plan.limit(max(1, plan.steps // 2))
        shares = self._node.slabs.take(model.spec.kv_shape, total)[::-1]
        for member, count in zip(plan.members, missing, strict=True):
            if count:
                member.hold(shares, count)
        self.kv_bytes += extra_bytes

    # --- the end of a turn

    def _end(self, turn: SimTurn, reason: TurnEndReason, now_s: float) -> None:
        self.turn = None
        contexts = []
        for request in turn.decoding.values():
            request.place = None
            self._node.feed(request)
            contexts.append((request.request_id, request.context))
            self._trim(request)
            unsaved = request.kv_tokens - request.saved_tokens
            if unsaved:
                streams = self._constants.kv_streams_out
                self._save(request, now_s, min(unsaved, request.model.block_tokens) if streams else unsaved)
        for request in turn.waiting.values():
            request.place = None
            self._node.feed(request)
            if request.content is not None and request.kv_tokens == request.saved_tokens:
                self.evict_kv(request)  # what was found of it is in the slab cache
        self._node.observer.turn_ended(self, turn, now_s)
        self._node.tell(TurnEnded(self.instance_id, turn.turn_id, reason, tuple(contexts)))

    def _trim(self, request: RequestState) -> None:
        """Give back the blocks that a plan which was cut did not come to use, but for one to grow into."""
        keep = request.model.blocks_for(request.context) + 1
        spare = request.blocks - keep
        if spare > 0:
            self._node.slabs.give_back(request.let_go(spare))
            self.kv_bytes -= spare * request.model.block_bytes
