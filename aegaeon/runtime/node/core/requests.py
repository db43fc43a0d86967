"""The requests of a node, from their submission to their end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from aegaeon.core.event import KvDropped, RequestArrived, RequestCancelled
from aegaeon.runtime.node.core.blocks import Blocks
from aegaeon.runtime.node.core.desk import Desk
from aegaeon.runtime.node.core.disk_kv import DiskKv
from aegaeon.runtime.node.core.driver_request import DriverRequest
from aegaeon.runtime.node.core.followers import Followers
from aegaeon.runtime.node.core.instances import Instances
from aegaeon.runtime.node.core.request_state import DriverRequestState, RequestHappening
from aegaeon.runtime.wire import messages as m


class Requests:
    """The node's requests by their ids, in the order of their submission. What an end frees is freed here."""

    def __init__(self, desk: Desk, instances: Instances, blocks: Blocks, disk: DiskKv) -> None:
        self._desk = desk
        self._instances = instances
        self._blocks = blocks
        self._disk = disk
        self._by_id: dict[str, DriverRequest] = {}
        self._followers = Followers()

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._by_id

    def __getitem__(self, request_id: str) -> DriverRequest:
        return self._by_id[request_id]

    def __iter__(self) -> Iterator[DriverRequest]:
        """The requests that there are now, whatever is deleted meanwhile."""
        return iter(tuple(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, request_id: str | None) -> DriverRequest | None:
        return None if request_id is None else self._by_id.get(request_id)

    def present(self, request_ids: Iterable[str]) -> list[DriverRequest]:
        """The requests among some names that are not over."""
        return [self._by_id[request_id] for request_id in request_ids if request_id in self._by_id]

    def add(self, request: DriverRequest) -> None:
        """A request comes. Its scheduler hears of it as soon as the one is prefilled that it shares a prompt with."""
        self._by_id[request.request_id] = request
        leader = self.get(request.submit.after)
        request.first = leader if self._blocks.shares else None
        if leader is None or leader.prefilled or not self._blocks.shares:
            self._admit(request)
        else:
            self._followers.add(request, leader.request_id)

    def _admit(self, request: DriverRequest) -> None:
        self._disk.fetch(request, partial(self._arrive, request))

    def _arrive(self, request: DriverRequest) -> None:
        self._blocks.find(request)
        self._desk.dispatch(RequestArrived(request.arrival, request.kv_tokens))

    def admit_followers(self, request: DriverRequest) -> None:
        """A prompt has been processed, or will not be: whoever waits for that goes on."""
        for follower in self._followers.take(request.request_id):
            self._admit(follower)

    def cancel(self, request: DriverRequest) -> None:
        """A request's client wants no more of it."""
        if request.request_id in self._followers or request.request_id in self._disk:
            self.give_up(request, release=True)
        else:
            self._desk.dispatch(RequestCancelled(request.request_id))

    def counts(self, *, running: bool) -> tuple[tuple[str, int], ...]:
        """How many are in a turn, or are not, by model."""
        return tuple(Counter(one.model for one in self if (one.running_on is not None) is running).items())

    def advance(self, progress: Iterable[m.Progress]) -> None:
        """Take what an instance says of how far requests have come."""
        for one in progress:
            request = self.get(one.request_id)
            if request is not None:
                request.advance(one)
                self._blocks.note(request)

    def resume(self, request: DriverRequest, generated_ids: Sequence[int]) -> None:
        """A frontend has said what the client has of a request whose instance died."""
        request.go_on_from(generated_ids)
        request.note(RequestHappening.RESUMED)
        self._blocks.note(request)

    def give_up(self, request: DriverRequest, *, release: bool) -> None:
        """Release a request, or drop its KV: now, or when its instance has let go of it."""
        incarnation = self._instances.running(request)
        request.note(RequestHappening.RELEASE if release else RequestHappening.DROP)
        if incarnation is not None:
            self._instances.tell(incarnation, m.Forget((request.request_id,)))
        elif request.state is DriverRequestState.OVER:
            self.delete(request)
        elif request.state is DriverRequestState.DROPPING and request.running_on is None:
            request.note(RequestHappening.LET_GO)
            self._drop(request)
        # Else its instance has died just now: its loss takes it along.

    def let_go(self, request: DriverRequest) -> None:
        """No instance touches a request's blocks any more: carry out what waited for that."""
        incarnation = self._instances.running(request)
        if incarnation is not None:
            incarnation.members.discard(request.request_id)
        request.home = None
        request.note(RequestHappening.LET_GO)
        if request.state is DriverRequestState.OVER:
            self.delete(request)
        else:
            self._drop(request)

    def end(self, request: DriverRequest) -> None:
        """It is finished, or has failed."""
        request.note(RequestHappening.ENDED)
        self.delete(request)

    def delete(self, request: DriverRequest) -> None:
        """It is over: own nothing of it any more."""
        self.discard_at_home(request)
        del self._by_id[request.request_id]
        self._followers.remove(request.request_id)
        self._disk.forget(request.request_id)
        self._disk.leave(request)
        self._blocks.free(request)
        self.admit_followers(request)

    def _drop(self, request: DriverRequest) -> None:
        self.discard_at_home(request)
        self._disk.leave(request)
        self._blocks.free(request)
        request.lose_kv()
        self._desk.dispatch(KvDropped(request.request_id, request.context_tokens))
        self._blocks.report_starved()

    def discard_at_home(self, request: DriverRequest) -> None:
        """The instance that knows it has no use for what it knows."""
        home = self._instances.get(request.home)
        if home is not None:
            self._instances.tell(home, m.Discard((request.request_id,)))
