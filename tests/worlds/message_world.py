"""A pool without processes: real frontend, driver, scheduler and instances; rings are read when a test says so.

A ring keeps its order; when it is read, and by that the order among rings, is the test's. An instance can be killed
before any of its messages. The model is a hash of all tokens so far *as they are read from the KV cache*, so whoever
counts KV that is not there, or of other tokens, gives a wrong answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.generation import FinishReason, Generation, GenerationRequest, TokenPrompt
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.sampling.stop import finish_reason
from aegaeon.runtime.frontend.frontend import PoolFrontend
from aegaeon.runtime.frontend.node_inbox import NodeInbox
from aegaeon.runtime.frontend.node_peer import NodePeer
from aegaeon.runtime.frontend.served_model import ServedModel
from aegaeon.runtime.frontend.text import StopStrings
from aegaeon.runtime.instance.core.instance_core import InstanceCore
from aegaeon.runtime.instance.core.instance_model import InstanceModel
from aegaeon.runtime.instance.in_place_kv import InPlaceKv
from aegaeon.runtime.instance.instance import Instance
from aegaeon.runtime.instance.model_engine import ModelEngine
from aegaeon.runtime.node.core import driver_inputs as i
from aegaeon.runtime.node.core.driver_core import DriverCore
from aegaeon.runtime.node.core.incarnation import instance_key
from aegaeon.runtime.node.node_kv import NodeKv
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.pulse import NoPulse
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.registry import find_policy
from tests.worlds.played_driver import PlayedDriver

SHAPE = KvShape((LayerKv(2, 8, 8),), element_bytes=4)
SLAB_BYTES = 8 * SHAPE.block_bytes
MODELS = ("one", "two")
EOS = 2
VOCABULARY = 100
LAYOUTS = {
    "aegaeon": (Role.PREFILL, Role.DECODE),
    "slack": (Role.MIXED, Role.MIXED),
    "sllm": (Role.MIXED, Role.MIXED),
}


class Killed(BaseException):
    """The process ends here."""


def next_token(model: str, context: Sequence[int]) -> int:
    """The model: any token may be next, now and then the end."""
    value = 17 * len(model)
    for token in (*context, len(context)):
        value = (value * 1103515245 + token + 12345) % (1 << 31)
    return EOS + (value >> 8) % (VOCABULARY - EOS)


def answer(request: GenerationRequest) -> tuple[tuple[int, ...], str, FinishReason]:
    """What a client must get: tokens, text, and why it ended."""
    assert isinstance(request.prompt, TokenPrompt)
    stops, text = StopStrings(request.sampling.stop), ""
    ids: list[int] = []
    while True:
        ids.append(next_token(request.model, (*request.prompt.token_ids, *ids)))
        piece, hit = stops.push(Words().push(ids[-1]))
        text += piece
        if hit:
            return tuple(ids), text, FinishReason.STOP
        reason = finish_reason(request.sampling, (EOS,), ids)
        if reason is not None:
            return tuple(ids), text + stops.finish(), reason


class Words:
    """Text of tokens: their numbers."""

    def encode(self, prompt: TokenPrompt, most_tokens: int | None = None) -> tuple[int, ...]:
        return prompt.token_ids

    def stream(self, context: Sequence[int]) -> Words:
        return self

    def push(self, token_id: int) -> str:
        return f"<{token_id}>"

    def finish(self) -> str:
        return ""


class Clock:
    """Time goes on whenever somebody looks."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        self.time_s += 1e-4
        return self.time_s


class Ring:
    """Shared memory: what was sent is there, until it is read. From a ``slow`` writer comes one message at a time."""

    def __init__(self) -> None:
        self.messages: deque[Any] = deque()
        self.slow = False

    def drain(self) -> Iterator[Any]:
        while self.messages:
            yield self.messages.popleft()
            if self.slow:
                return


class End:
    """One end of a link."""

    pending = False

    def __init__(self, incoming: Ring, outgoing: Ring, before_send: Callable[[], None] = lambda: None) -> None:
        self._incoming, self._outgoing, self._before_send = incoming, outgoing, before_send

    def send(self, message: Any) -> None:
        self._before_send()
        self._outgoing.messages.append(message)

    def flush(self) -> None:
        return

    def drain(self) -> Iterator[Any]:
        return self._incoming.drain()


class Store:
    """An instance's weights, and its only runner: it writes tokens where KV would be, and reads them back."""

    loading = False

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}
        self._returned: list[tuple[str, int]] = []
        self._model = ""

    @property
    def leases(self) -> set[int]:
        return set(self._taken.values())

    def take(self, weights: m.HostWeights) -> None:
        assert weights.model not in self._taken, "what is there of it was to be evicted"
        self._taken[weights.model] = weights.lease_id

    def ready(self, model: str) -> bool:
        return model in self._taken

    def bind(self, model: str) -> None:
        self._model = model

    def runner(self, model: str) -> Store:
        return self

    def evict(self, model: str) -> None:
        if model in self._taken:
            self._returned.append((model, self._taken.pop(model)))

    def collect_returned(self) -> list[tuple[str, int]]:
        returned, self._returned = self._returned, []
        return returned

    def prepare_one(self) -> bool:
        return False

    def check_device(self) -> None:
        return

    def close(self) -> None:
        return

    def step(self, slices: Sequence[SequenceSlice], memory: dict[tuple[int, int], int]) -> list[int]:
        chosen = []
        for one in slices:
            for position, token in enumerate(one.token_ids, one.start):
                memory[_place(one, position)] = token
            if one.wants_logits:
                chosen.append(next_token(self._model, [memory[_place(one, at)] for at in range(one.end)]))
        return chosen


def _place(one: SequenceSlice, position: int) -> tuple[int, int]:
    return one.blocks[position // SHAPE.block_tokens], position % SHAPE.block_tokens


class Greedy:
    """The runner has chosen."""

    def sample(self, logits: list[int], states: Sequence[object]) -> list[int]:
        return list(logits)


class Sinks:
    """Token rings of an instance; while one is full, what is sent waits in the process, and dies with it."""

    blocked_fds: Sequence[int] = ()

    def __init__(self, attach: Callable[[str], Ring | None], before_send: Callable[[], None]) -> None:
        self._attach, self._before_send = attach, before_send
        self._rings: dict[str, Ring] = {}
        self._waiting: deque[tuple[str, Any]] = deque()
        self.full = False

    def attach(self, frontend_id: str, address: str) -> None:
        ring = self._attach(frontend_id)
        if ring is not None:
            self._rings[frontend_id] = ring

    def detach(self, frontend_id: str) -> None:
        self._rings.pop(frontend_id, None)

    @property
    def pending(self) -> bool:
        return bool(self._waiting)

    def send(self, frontend_id: str, message: Any) -> None:
        """Tokens one by one: a process may die between any two of them."""
        items = message.items if isinstance(message, m.Tokens) else ()
        for part in [m.Tokens(message.time_s, (item,)) for item in items] or [message]:
            self._before_send()
            self._waiting.append((frontend_id, part))
            self.flush()

    def flush(self) -> None:
        while self._waiting and not self.full:
            frontend_id, message = self._waiting.popleft()
            if frontend_id in self._rings:
                self._rings[frontend_id].messages.append(message)


@dataclass
class Process:
    """An instance's process: ``fuse`` counts the messages that it can still send."""

    key: str
    fuse: int | None = None
    dead: bool = False
    to_driver: Ring = field(default_factory=Ring)
    to_instance: Ring = field(default_factory=Ring)
    store: Store = field(default_factory=Store)
    sinks: Sinks = field(init=False)
    instance: Instance = field(init=False)

    def burn(self) -> None:
        if self.fuse is not None:
            if self.fuse == 0:
                self.dead = True
                raise Killed
            self.fuse -= 1

    def go_on(self) -> None:
        if not self.dead:
            with contextlib.suppress(Killed):
                self.instance.go_on()


class Peer:
    """A frontend's side of the node. ``far``: it is on another machine, and hears all through a gateway, in order."""

    def __init__(
        self, frontend_id: str, link: End, far: bool, receive: Callable[[NodePeer, m.ToFrontend], None]
    ) -> None:
        self.node_id, self.frontend_id = "n0", frontend_id
        self.link = link
        self._far = far
        self._frames: deque[m.ToFrontend] = deque()
        self._receive = receive
        self.inbox: NodeInbox[Ring] = NodeInbox(link, self._take)

    def _take(self, message: m.ToFrontend) -> None:
        if not self._far:
            self._receive(self, message)
            return
        if isinstance(message, m.Interrupted):
            self.inbox.take_from_instances()
        self._frames.append(message)

    def read_frames(self) -> None:
        while self._frames:
            self._receive(self, self._frames.popleft())

    def send(self, message: object) -> None:
        self.link.send(message)

    def drain_instance(self, instance_key: str) -> None:
        if not self._far:
            self.inbox.take_from_instances()
            self.inbox.remove(instance_key)

    def drop_instance(self, instance_key: str) -> None:
        if not self._far:
            self.inbox.take_from(instance_key)
            self.inbox.remove(instance_key)

    def close(self) -> None:
        self.send(m.DetachFrontend(self.frontend_id))


class MessageWorld:
    """A node, and a frontend of it; must be made and used on an asyncio loop."""

    def __init__(self, policy: str, far: bool = False, slabs: int = 40) -> None:
        self.clock = Clock()
        specs = {name: ModelSpec(name, 8192, SHAPE, 512) for name in MODELS}
        costs = ProfiledCosts(specs, dict.fromkeys(specs, LatencyProfile(0.01, 1e-5, 0.0, 0.01, 0.0, 0.0)), 1e9, 1e9)
        limits = PoolLimits(slabs * SLAB_BYTES, SLAB_BYTES)
        self.kv = NodeKv(slabs * SLAB_BYTES, SLAB_BYTES, [SHAPE])
        self.memory: dict[tuple[int, int], int] = {}
        scheduler = find_policy(policy).checked().scheduler(tuple(specs.values()), costs, limits, ())
        core = DriverCore(specs, scheduler, self.kv, dict.fromkeys(specs, (EOS,)), check=True)
        self.driver = PlayedDriver(core, self.clock.now_s, self._start)
        served = {
            name: ServedModel(spec, None, Words(), VOCABULARY, (EOS,))  # type: ignore[arg-type]
            for name, spec in specs.items()
        }
        self.frontend = PoolFrontend(served, self.clock)
        self.processes: list[Process] = []
        self._incarnations: dict[str, int] = {}
        self.peers: dict[str, Peer] = {}
        self.driver_rings: list[tuple[Ring, Callable[[Any], i.DriverInput]]] = []
        self.far = far
        self.peer = self.connect(self.frontend, "f")
        for index, role in enumerate(LAYOUTS[policy]):
            self._start(InstanceSpec(f"i{index}", role, slabs * SLAB_BYTES, 1 << 20))

    def connect(self, frontend: PoolFrontend, frontend_id: str) -> Peer:
        to_driver, from_driver = Ring(), Ring()
        self.driver.add_frontend(frontend_id, from_driver.messages.append)
        self.driver_rings.append((to_driver, lambda message: i.FrontendSaid(frontend_id, message)))
        peer = Peer(frontend_id, End(from_driver, to_driver), self.far, frontend.receive)
        self.peers[frontend_id] = peer
        peer.send(m.AttachFrontend(frontend_id, "nowhere"))
        frontend.take_in(peer)
        return peer

    def _start(self, spec: InstanceSpec) -> None:
        incarnation = self._incarnations[spec.instance_id] = self._incarnations.get(spec.instance_id, -1) + 1
        process = Process(instance_key(spec.instance_id, incarnation))
        end = End(process.to_instance, process.to_driver, process.burn)
        process.sinks = Sinks(lambda frontend_id: self._token_ring(frontend_id, process.key), process.burn)
        models = {name: InstanceModel(name, SHAPE, (EOS,)) for name in MODELS}
        weights, kv = process.store, InPlaceKv(self.memory, dict.fromkeys(MODELS, SHAPE))  # type: ignore[arg-type]
        engine = ModelEngine(weights, kv, Greedy(), self.clock, NoPulse())  # type: ignore[arg-type]
        core = InstanceCore(spec.instance_id, models, weights, kv, engine, self.clock.now_s, chunk_tokens=16)
        process.instance = Instance(core, end, process.sinks, self.clock, NoPulse())  # type: ignore[arg-type]
        self.processes.append(process)
        self.driver_rings.append((process.to_driver, lambda message: i.InstanceSaid(process.key, message)))
        self.driver.add_instance(spec, incarnation, process.to_instance.messages.append)
        end.send(m.Started(spec.instance_id, 1))

    def _token_ring(self, frontend_id: str, instance_key: str) -> Ring | None:
        if frontend_id not in self.peers:
            return None
        ring = Ring()
        self.peers[frontend_id].inbox.add(instance_key, ring)
        return ring

    # --- what happens -----------------------------------------------------------------------------------------------

    @property
    def rings(self) -> list[Ring]:
        """Those of links, in both directions."""
        return [*(ring for ring, _ in self.driver_rings), *(process.to_instance for process in self.processes)]

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes if not process.dead]

    def driver_reads(self, number: int) -> None:
        """One of its rings, and what is due."""
        ring, said = self.driver_rings[number % len(self.driver_rings)]
        for message in ring.drain():
            self.driver.tell(said(message))
        self.driver.tell(i.TimeCame())

    def instance_goes_on(self, number: int) -> None:
        if self.alive:
            self.alive[number % len(self.alive)].go_on()

    def frontend_reads_driver(self, number: int) -> None:
        self.peer.inbox.take_from_driver()

    def frontend_reads_instance(self, number: int) -> None:
        keys = self.peer.inbox.instances
        if keys:
            self.peer.inbox.take_from(keys[number % len(keys)])

    def frontend_reads_gateway(self, number: int) -> None:
        self.peer.read_frames()

    def ring_is_full(self, number: int) -> None:
        if self.alive:
            self.alive[number % len(self.alive)].sinks.full = True

    def ring_has_room(self, number: int) -> None:
        for process in self.alive:
            process.sinks.full = False

    def writer_is_slow(self, number: int) -> None:
        rings = self.rings
        rings[number % len(rings)].slow = True

    def writers_are_fast(self, number: int) -> None:
        for ring in self.rings:
            ring.slow = False

    def light_fuse(self, number: int) -> None:
        """An instance dies before one of its next messages."""
        if self.alive:
            self.alive[number % len(self.alive)].fuse = number // 7 % 12

    def kill(self, number: int) -> None:
        if self.alive:
            self.alive[number % len(self.alive)].dead = True

    def death_is_noticed(self, number: int) -> None:
        """What it had said before is read to its end."""
        dead = [process for process in self.processes if process.dead]
        if dead:
            process = dead[number % len(dead)]
            unread = tuple(process.to_driver.messages)
            process.to_driver.messages.clear()
            self.driver.tell(i.InstanceEnded(process.key, "killed", unread))

    async def breathe(self) -> None:
        """Let clients and the frontend's own tasks go on."""
        for _ in range(4):
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Everything goes on, in turn, until nobody has anything to do; what waits for a time has it come."""
        for _ in range(500):
            self.clock.time_s += 0.01
            self.ring_has_room(0)
            self.writers_are_fast(0)
            for process in self.alive:
                process.fuse = None
                process.go_on()
            for number in range(len(self.processes)):
                self.death_is_noticed(number)
            for number in range(len(self.driver_rings)):
                self.driver_reads(number)
            self.peer.inbox.take_from_driver()
            self.peer.inbox.take_from_instances()
            self.peer.read_frames()
            await self.breathe()
            if self.driver.core.idle and not self.frontend.request_ids and self._idle():
                return

    def _idle(self) -> bool:
        return all(not process.instance.core.restless and not process.to_driver.messages for process in self.alive)

    def check_books(self) -> None:
        """Everybody has let go of everything: blocks, tables of requests, leases of those who have died."""
        assert self.driver.core.idle
        self.driver.core.check_idle()
        assert self.kv.counts.used_bytes == 0
        assert all(not process.instance.core.request_ids for process in self.alive)
        assert not self.frontend.request_ids
        held = {(process.key, lease_id) for process in self.alive for lease_id in process.store.leases}
        assert {(key, lease_id) for lease_id, (key, _) in self.driver.host.leases.items()} == held

    def close(self) -> None:
        self.kv.close()


def request(request_id: str, model: str, prompt: Sequence[int], **sampling: Any) -> GenerationRequest:
    """A greedy request."""
    return GenerationRequest(request_id, model, TokenPrompt(tuple(prompt)), SamplingParams(temperature=0, **sampling))


async def collect(
    frontend: PoolFrontend,
    asked: GenerationRequest,
    first: Generation | None = None,
    opened: Callable[[Generation], None] = lambda generation: None,
) -> tuple[tuple[int, ...], str, FinishReason | None]:
    """What a client gets, which ends once. ``first``: a choice of the same prompt; ``opened``: told of this one."""
    ids: list[int] = []
    text, reason = "", None
    generation = await frontend.generate(asked, first)
    opened(generation)
    async for delta in generation:
        assert reason is None, "something came after the end"
        ids += delta.token_ids
        text += delta.text
        reason = delta.finish_reason
    return tuple(ids), text, reason
