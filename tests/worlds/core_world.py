"""A driver's core with two models, one mixed instance per incarnation and a frontend, all of which the test plays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aegaeon.core.command import Command
from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.event import Event, RequestArrived, TurnEndReason
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.request import Request
from aegaeon.core.sampling import SamplingParams
from aegaeon.runtime.node.core import driver_inputs as i
from aegaeon.runtime.node.core.driver_core import DriverCore
from aegaeon.runtime.node.node_kv import NodeKv
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.pulse_reading import PulseReading
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.registry import make_scheduler
from aegaeon.scheduler.scheduler import Scheduler
from tests.worlds.played_driver import Peer, PlayedDriver

SHAPE = KvShape((LayerKv(2, 8, 8),) * 2, element_bytes=4)
SLAB_BYTES = 16 * SHAPE.block_bytes
MODELS = ("one", "two")
PROMPT = tuple(range(1, 21))
NAMES = m.KvNames(b"root")
EOS, STOP = 9, 8

Wrap = Callable[[Scheduler], Scheduler]


def make_core(kv: NodeKv, policy: str = "aegaeon", wrap: Wrap = lambda inner: inner, **options: Any) -> DriverCore:
    """The core of a node with the two models, whose books are checked whenever it is idle."""
    specs = {name: ModelSpec(name, 8192, SHAPE, 4096) for name in MODELS}
    profile = LatencyProfile(0.01, 1e-5, 0.0, 0.01, 0.0, 0.0)
    costs = ProfiledCosts(specs, dict.fromkeys(specs, profile), 1e9, 1e9)
    scheduler = make_scheduler(policy, tuple(specs.values()), costs, PoolLimits(kv.total_bytes, SLAB_BYTES))
    return DriverCore(specs, wrap(scheduler), kv, dict.fromkeys(specs, (EOS,)), check=True, **options)


def make_kv(slabs: int) -> NodeKv:
    return NodeKv(slabs * SLAB_BYTES, SLAB_BYTES, [SHAPE])


def submission(
    request_id: str,
    model: str = "one",
    max_new_tokens: int = 50,
    generated_ids: tuple[int, ...] = (),
    frontend_id: str = "f",
    arrival_s: float = 0.0,
) -> m.Submit:
    request = Request(request_id, model, arrival_s, len(PROMPT), max_new_tokens)
    sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, seed=0, stop_token_ids=(STOP,))
    return m.Submit(request, frontend_id, PROMPT, sampling, NAMES, generated_ids)


class FailsOver:
    """A policy with a bug: it cannot take request "bad"."""

    def __init__(self, inner: Scheduler) -> None:
        self._inner = inner

    def handle(self, event: Event, now_s: float) -> list[Command]:
        if isinstance(event, RequestArrived) and event.request.request_id == "bad":
            raise ValueError("math domain error")
        return self._inner.handle(event, now_s)


class CoreWorld:
    """Time stands still until the test moves it."""

    def __init__(
        self, slabs: int = 8, wrap: Wrap = lambda inner: inner, *, policy: str = "aegaeon", **options: Any
    ) -> None:
        self.time_s = 1000.0
        self.kv = make_kv(slabs)
        self.spec = InstanceSpec("i0", Role.MIXED, slabs * SLAB_BYTES, 1 << 20)
        self.restarted: list[InstanceSpec] = []
        self.driver = PlayedDriver(
            make_core(self.kv, policy, wrap, **options), lambda: self.time_s, self.restarted.append
        )
        self.incarnation = -1
        self.frontend = self.attach("f")

    @property
    def key(self) -> str:
        """Of the present incarnation."""
        return f"i0:{self.incarnation}"

    def attach(self, frontend_id: str) -> Peer:
        peer = Peer(lambda message: self.driver.tell(i.FrontendSaid(frontend_id, message)))
        self.driver.add_frontend(frontend_id, peer.inbox.append)
        return peer

    def join(self, pid: int = 1, *, pulse: PulseReading | None = None, starts: bool = True) -> Peer:
        """The next incarnation of the instance, which is up unless told otherwise."""
        self.incarnation += 1
        key = self.key
        if pulse is not None:
            self.driver.pulses[key] = pulse
        peer = Peer(lambda message: self.driver.tell(i.InstanceSaid(key, message)))
        self.driver.add_instance(self.spec, self.incarnation, peer.inbox.append)
        if starts:
            peer.send(m.Started("i0", pid))
        return peer

    def submit(
        self, request_id: str, model: str = "one", *, frontend: Peer | None = None, **of_submission: Any
    ) -> None:
        submit = submission(request_id, model, arrival_s=self.time_s, **of_submission)
        (frontend or self.frontend).send(submit)

    def die(self, *unread: m.FromInstance) -> None:
        """The instance's process ends; what it had said last was not read yet."""
        self.driver.tell(i.InstanceEnded(self.key, "killed", unread))

    def resume(self, generated_ids: dict[str, tuple[int, ...]]) -> None:
        """The frontend says what the clients have of all that was interrupted; a new process is asked for, at once or
        after a pause."""
        before = len(self.restarted)
        for _ in generated_ids:
            request_id = self.frontend.expect(m.Interrupted).request_id
            self.frontend.send(m.Resume(request_id, generated_ids[request_id]))
        self.await_restart(before)

    def await_restart(self, before: int = 0) -> None:
        """Let time pass until one more process has been asked for."""
        for _ in range(200):
            if len(self.restarted) > before:
                return
            self.pass_time(0.5)
        raise AssertionError("no new process was asked for")

    def pass_time(self, seconds: float, step_s: float = 0.5) -> None:
        """The loop comes round after every step."""
        for _ in range(round(seconds / step_s)):
            self.time_s += step_s
            self.driver.tell(i.TimeCame())

    def node_state(self) -> m.NodeState:
        """As reported last."""
        self.pass_time(0.5)
        report = self.frontend.expect(m.NodeState)
        while self.frontend.has(m.NodeState):
            report = self.frontend.expect(m.NodeState)
        return report

    def instance_state(self) -> m.InstanceState:
        """As reported last."""
        (state,) = self.node_state().instances
        return state

    def close(self) -> None:
        """The books must balance."""
        self.kv.check_integrity()
        self.kv.close()


def prefill(instance: Peer, token_id: int = 100) -> tuple[m.RunTurn, m.Member]:
    """Play a prefill turn of one request to its end."""
    turn = instance.expect(m.RunTurn)
    (member,) = turn.prefill
    progress = m.Progress(member.request_id, (token_id,), len(PROMPT))
    instance.send(m.Prefilled(turn.turn_id, progress))
    instance.send(m.TurnOver(turn.turn_id, TurnEndReason.DRAINED, (), (), switched=True))
    return turn, member


def members(turn: m.RunTurn) -> dict[str, m.Member]:
    """By their ids."""
    return {member.request_id: member for member in (*turn.prefill, *turn.decode)}
