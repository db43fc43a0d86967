"""The simulated world: a virtual clock, nodes, and arrivals that are routed to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from aegaeon.core.request import Request
from aegaeon.scheduler.layout import Layout, PlacedInstance
from aegaeon.scheduler.router import Router
from aegaeon.scheduler.routing import route
from aegaeon.scheduler.scheduler import Scheduler
from sim.systems.errors import SimulationError
from sim.world.constants import Constants
from sim.world.event_queue import EventQueue, Priority
from sim.world.model_facts import SimModel
from sim.world.node import MakeKept, SimNode
from sim.world.observer import WorldObserver

MakeNodeScheduler = Callable[[tuple[PlacedInstance, ...]], Scheduler]


class World:
    """One run. ``arrivals``: (request, tokens that it will produce), by time of arrival.

    ``make_kept``: what a node keeps of KV, where any is reused.
    """

    def __init__(
        self,
        layout: Layout,
        models: Mapping[str, SimModel],
        constants: Constants,
        make_scheduler: MakeNodeScheduler,
        arrivals: Iterable[tuple[Request, int]],
        observer: WorldObserver,
        router: Router | None = None,
        make_kept: MakeKept | None = None,
    ) -> None:
        self.now_s = 0.0
        self.layout = layout
        self._queue = EventQueue()
        self._arrivals: Iterator[tuple[Request, int]] = iter(arrivals)
        self._router = router
        self.nodes = [
            SimNode(
                index,
                layout,
                models,
                constants,
                make_scheduler(layout.on_node(index)),
                self._queue,
                observer,
                router.at_home(place) if router is not None else _own_first(tuple(models), place, len(layout.nodes)),
                make_kept,
            )
            for place, index in enumerate(layout.nodes)
        ]
        self._placed: dict[str, list[SimNode]] = {}  # nodes that have a model for good
        for node, index in zip(self.nodes, layout.nodes, strict=True):
            for model in {model for placed in layout.on_node(index) for model in placed.preloaded}:
                self._placed.setdefault(model, []).append(node)

    @property
    def events(self) -> int:
        """Events that schedulers handled."""
        return sum(node.events for node in self.nodes)

    def run(self, look: Callable[[float], float] | None = None) -> None:
        """Until nothing is left to happen.

        ``look`` is called with a time before anything happens at it, and says until when there is no need to call it
        again (at first: until 0). Raises ``SimulationError`` where a request was forgotten.
        """
        for node in self.nodes:
            node.join_instances(0.0)
        self._await_arrival()
        looked_until_s = 0.0
        for now_s, action, argument in self._queue.drain():
            if look is not None and now_s > looked_until_s:
                looked_until_s = look(now_s)
            self.now_s = now_s
            action(argument, now_s)
        self._require_done()

    def _await_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self._queue.push(arrival[0].arrival_s, Priority.ARRIVAL, self._arrive, arrival)

    def _arrive(self, arrival: tuple[Request, int], now_s: float) -> None:
        self._await_arrival()
        request, target_tokens = arrival
        self._route(request.model).arrive(request, target_tokens, now_s)

    def _route(self, model: str) -> SimNode:
        """As the runtime's frontend does; where a model is placed for good, among its nodes."""
        if len(self.nodes) == 1:
            return self.nodes[0]
        nodes = self._placed.get(model, self.nodes) if self._router is None else self.nodes
        requests, of_model = [len(node.requests) for node in nodes], [node.of_model[model] for node in nodes]
        return nodes[
            route(self._router, model, requests, of_model, lambda place: nodes[place].is_warm(model), self.now_s)
        ]

    def _require_done(self) -> None:
        left = [name for node in self.nodes for name in node.requests]
        if left:
            raise SimulationError(f"{len(left)} requests were never finished, among them {left[:3]}")


def _own_first(models: Sequence[str], node: int, nodes: int) -> Sequence[str]:
    """What a node's host memory begins with: each starts elsewhere, so together they hold as much as they can."""
    first = node * len(models) // nodes
    return (*models[first:], *models[:first])
