"""The frontend's core alone: whatever nodes, instances and clients do, every request ends once, with its tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon.core.command import RejectReason
from aegaeon.core.generation import EngineError, FinishReason, GenerationError, PoolUnavailableError
from aegaeon.core.request import Request
from aegaeon.core.sampling import SamplingParams
from aegaeon.core.slo import Slo
from aegaeon.core.timeline import PhaseSpan
from aegaeon.engine.sampling.stop import finish_reason
from aegaeon.runtime.frontend.core.frontend_core import FrontendCore, NodeSend
from aegaeon.runtime.frontend.node_inbox import NodeInbox
from aegaeon.runtime.wire import messages as m

EOS = 1
NODES = ("n0", "n1")
SLO = Slo(ttft_s=2.0, tpot_s=0.5)


def token(first_id: str, index: int) -> int:
    """What the model makes: the same at whatever node, and now and then the end."""
    return EOS + (sum(map(ord, first_id)) * 7 + index * 5) % 11


@dataclass
class Client:
    """A stream that has what it was given, and stops by itself after ``enough`` tokens."""

    request_id: str
    stop: Callable[[str], None]
    enough: int | None
    sampling: SamplingParams
    model: str = "m"
    token_ids: list[int] = field(default_factory=list)
    spans: list[PhaseSpan] = field(default_factory=list)
    done: bool = False
    ends: list[FinishReason | GenerationError | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first_id = self.request_id
        self._early: dict[int, int] = {}
        self._ending: tuple[FinishReason, int] | None = None

    def accept(self) -> None:
        return

    def take_token(self, index: int, token_id: int, time_s: float, logprob: float = 0.0) -> None:
        if index >= len(self.token_ids):
            self._early[index] = token_id
        while not self.done and len(self.token_ids) in self._early:
            self.token_ids.append(self._early.pop(len(self.token_ids)))
            if len(self.token_ids) == self.enough:
                self.stop(self.request_id)
                self._end(FinishReason.STOP)
        self._end_if_complete()

    def finish(self, reason: FinishReason, generated_tokens: int) -> None:
        self._ending = reason, generated_tokens
        self._end_if_complete()

    def finish_search(self, outputs: Sequence[m.BeamOutput]) -> None:
        self._end(outputs[0].reason)

    def rewind(self) -> tuple[int, ...]:
        self._early.clear()
        self._ending = None
        return tuple(self.token_ids)

    def fail(self, error: GenerationError) -> None:
        if not self.done:
            self._end(error)

    def leave(self) -> None:
        if not self.done:
            self._end(None)
            self.stop(self.request_id)

    def _end_if_complete(self) -> None:
        if not self.done and self._ending is not None and len(self.token_ids) >= self._ending[1]:
            self._end(self._ending[0])

    def _end(self, why: FinishReason | GenerationError | None) -> None:
        self.done = True
        self.ends.append(why)


@dataclass
class Job:
    """A request at a node: ``instance`` makes its next token; None while the frontend is asked how far it came."""

    submit: m.Submit
    made: list[int]
    instance: int | None = 0

    @property
    def request_id(self) -> str:
        return self.submit.request.request_id

    @property
    def end(self) -> FinishReason | None:
        return finish_reason(self.submit.sampling, (EOS,), self.made)


class Ring:
    """What was said, until it is read."""

    def __init__(self) -> None:
        self.messages: deque[Any] = deque()

    def drain(self) -> Iterator[Any]:
        while self.messages:
            yield self.messages.popleft()


class Node:
    """A driver with two instances, each of which has a ring; ``receive`` is the frontend's."""

    def __init__(self, receive: Callable[[m.ToFrontend], None]) -> None:
        self.jobs: dict[str, Job] = {}
        self.driver = Ring()
        self.rings = [Ring(), Ring()]
        self.inbox: NodeInbox[Ring] = NodeInbox(self.driver, receive)
        for number, ring in enumerate(self.rings):
            self.inbox.add(str(number), ring)

    def take(self, message: m.FromFrontend) -> None:
        match message:
            case m.Submit():
                request_id = message.request.request_id
                assert request_id not in self.jobs
                self.jobs[request_id] = Job(message, list(message.generated_ids))
                assert self.jobs[request_id].end is None
                self.driver.messages += [m.Accepted(request_id), m.Begun(request_id)]
            case m.Cancel():
                self.jobs.pop(message.request_id, None)
            case m.Resume():
                job = self.jobs[message.request_id]
                assert job.instance is None
                job.made, job.instance = list(message.generated_ids), len(message.generated_ids) % 2
                assert job.end is None
            case m.AttachFrontend() | m.DetachFrontend():
                raise AssertionError(message)
            case _:
                assert_never(message)

    def job(self, number: int) -> Job | None:
        able = [job for job in self.jobs.values() if job.instance is not None]
        return able[number % len(able)] if able else None

    def work(self, number: int) -> None:
        """A token, or the word that it was the last; the next one may come from the other instance."""
        job = self.job(number)
        if job is None or job.instance is None:
            return
        said = self.rings[job.instance].messages
        if job.end is not None:
            said.append(m.Finished(job.request_id, job.end, len(job.made)))
            del self.jobs[job.request_id]
            return
        index = len(job.made)
        job.made.append(token(job.request_id.partition("~")[0], index))
        said.append(m.Tokens(0.0, ((job.request_id, index, job.made[-1]),)))
        if number % 3 == 0:
            job.instance = 1 - job.instance

    def lose_instance(self, number: int) -> None:
        """The jobs of an instance are interrupted; its last word may be a token that nobody counts on any more."""
        for job in self.jobs.values():
            if job.instance == number % 2:
                self.driver.messages.append(m.Interrupted(job.request_id, str(job.instance)))
                job.instance = None
        self.driver.messages.append(m.InstanceGone(str(number % 2)))

    def refuse(self, number: int) -> None:
        job = self.job(number)
        if job is not None:
            del self.jobs[job.request_id]
            reasons = tuple(RejectReason)
            rejected = m.Rejected(job.request_id, reasons[number % len(reasons)], "no", None)
            self.driver.messages.append(rejected if number % 2 else m.Failed(job.request_id, "boom"))

    def read(self, number: int) -> None:
        reads: list[Callable[[], None]] = [
            self.inbox.take_from_driver,
            lambda: self.inbox.take_from("0"),
            lambda: self.inbox.take_from("1"),
        ]
        reads[number % 3]()


class Play:
    """A frontend's core with nodes and clients. Numbers say who does something."""

    def __init__(self) -> None:
        self.core = FrontendCore(lambda nodes: None)
        self.nodes: dict[str, Node] = {}
        self.clients: list[Client] = []
        self.now_s = 0.0

    def send(self, sends: list[NodeSend]) -> None:
        for send in sends:
            self.nodes[send.node_id].take(send.message)

    def come(self, number: int) -> None:
        node_id = NODES[number % 2]
        if node_id not in self.nodes:
            self.nodes[node_id] = Node(lambda message: self.send(self.core.receive(node_id, message)))
            self.send(self.core.take_in(node_id, f"{node_id}'s", self.now_s))

    def lose(self, number: int) -> None:
        """What it had said is read to its end."""
        node_id = NODES[number % 2]
        if node_id in self.nodes:
            self.nodes[node_id].inbox.take_from_instances()
            self.nodes[node_id].inbox.take_from_driver()
            del self.nodes[node_id]
            self.send(self.core.lose(node_id, self.now_s))

    def ask(self, number: int) -> None:
        name = f"r{len(self.clients)}"
        enough = 2 if number % 5 == 0 else None
        sampling = SamplingParams(max_new_tokens=1 + number % 7, temperature=0.0, ignore_eos=number % 3 == 0)
        client = Client(name, lambda request_id: self.send(self.core.stop(request_id)), enough, sampling)
        submit = m.Submit(
            Request(name, "m", self.now_s, 3, sampling.max_new_tokens, SLO), "", (7, 8, 9), sampling, m.KvNames(b"root")
        )
        try:
            self.send(self.core.open(client, submit, (EOS,), self.now_s))
        except PoolUnavailableError:
            assert not self.nodes
        else:
            self.clients.append(client)

    def leave(self, number: int) -> None:
        if self.clients:
            self.clients[number % len(self.clients)].leave()

    def give_up(self, number: int) -> None:
        if self.core.deserted:
            self.send(self.core.give_up())

    def at_node(self, what: str, number: int) -> None:
        if self.nodes:
            getattr(list(self.nodes.values())[number % len(self.nodes)], what)(number // 2)

    def settle(self) -> None:
        for number in range(2):
            self.come(number)
        for number in range(60 * (1 + len(self.clients))):
            for node in self.nodes.values():
                node.work(number)
                node.read(number)

    def check_nodes(self) -> None:
        """Nobody works for a client that is gone."""
        for node in self.nodes.values():
            for request_id, job in node.jobs.items():
                assert request_id in self.core.request_ids or job.instance is None

    def check(self) -> None:
        assert self.core.request_ids == ()
        for client in self.clients:
            whole = [token(client.first_id, index) for index in range(len(client.token_ids))]
            assert client.token_ids == whole, client
            (end,) = client.ends
            if isinstance(end, FinishReason) and len(client.token_ids) != client.enough:
                assert end is finish_reason(client.sampling, (EOS,), client.token_ids), client
        for node in self.nodes.values():
            assert not node.jobs


AT_NODES = ("work", "read", "lose_instance", "refuse")
CLIENTS = ("ask", "ask", "ask", "leave", "come", "come", "lose", "give_up")
ACTIONS = st.lists(
    st.tuples(st.sampled_from([*CLIENTS, *AT_NODES, *["work"] * 9, *["read"] * 5]), st.integers(0, 999)),
    min_size=20,
    max_size=120,
)


def played(actions: list[tuple[str, int]]) -> Play:
    play = Play()
    play.come(0)
    for what, number in actions:
        play.now_s += 0.1
        play.at_node(what, number) if what in AT_NODES else getattr(play, what)(number)
        play.check_nodes()
    play.settle()
    return play


@settings(max_examples=150, derandomize=True)
@given(actions=ACTIONS)
def test_every_request_ends_once_with_its_tokens_and_nothing_is_left(actions: list[tuple[str, int]]) -> None:
    played(actions).check()


def test_what_is_whole_ends_with_its_node_and_what_is_not_goes_on_at_another() -> None:
    play = Play()
    play.come(0)
    for _ in range(2):
        play.ask(6)  # seven tokens, whatever they are
    for _ in range(7):
        play.nodes["n0"].work(0)  # the word that it is finished is never said
    play.nodes["n0"].work(1)
    play.come(1)
    play.lose(0)
    first, second = play.clients
    assert first.ends == [FinishReason.LENGTH]
    (job,) = play.nodes["n1"].jobs.values()
    assert job.request_id == "r1~2"
    assert job.made == second.token_ids == [token("r1", 0)]
    play.settle()
    play.check()


def test_a_request_that_nodes_die_of_fails_and_one_that_only_waited_does_not() -> None:
    play = Play()
    for number in range(4):
        play.come(0)
        if number == 0:
            for _ in range(2):
                play.ask(6)
        play.nodes["n0"].driver.messages = deque(
            message
            for message in play.nodes["n0"].driver.messages
            if not (isinstance(message, m.Begun) and message.request_id.startswith("r1"))
        )
        if number < 3:
            play.lose(0)
    running, waiting = play.clients
    (end,) = running.ends
    assert isinstance(end, EngineError)
    assert "may be the cause" in str(end)
    assert waiting.ends == []
    play.settle()
    play.check()
    assert waiting.ends == [FinishReason.LENGTH]


def test_while_there_is_no_node_requests_wait_until_they_are_given_up() -> None:
    play = Play()
    assert not play.core.deserted
    play.ask(6)
    assert play.core.deserted
    play.give_up(0)
    assert isinstance(play.clients[0].ends[0], PoolUnavailableError)
    with pytest.raises(PoolUnavailableError):
        play.core.open(play.clients[0], m.Submit(None, "", (), SamplingParams(), m.KvNames(b"root")), (), 0.0)  # type: ignore[arg-type]
    play.come(0)
    assert not play.core.deserted
    play.ask(6)
    play.settle()
    play.check()
