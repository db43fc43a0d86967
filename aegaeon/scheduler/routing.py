"""Which node takes a request, where any of them can: one rule for the real frontend and the simulator.

Requests of a model decode together where they are together, so one goes where others of its model are; else to where
the weights are in memory, which saves a load from disk. Both only while that node is not much busier than the idlest:
then waiting would cost more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aegaeon.scheduler.router import Router

BUSIER = 1.5
"""A node is preferred up to so many times the requests of the idlest one ..."""

MORE = 8
"""... and so many more."""


def route(
    router: Router | None,
    model: str,
    requests: Sequence[int],
    of_model: Sequence[int],
    is_warm: Callable[[int], bool],
    now_s: float,
) -> int:
    """The place of the node that takes a new request of a model: the policy's router says, else ``choose_node``.

    ``requests``: under way on each node; ``of_model``: those of the same model; ``is_warm``: whether a node has the
    model's weights in memory.
    """
    if router is not None:
        return router.route(model, requests, now_s)
    return choose_node(requests, of_model, is_warm)


def choose_node(requests: Sequence[int], of_model: Sequence[int], is_warm: Callable[[int], bool]) -> int:
    """The place of the node that takes a request; of equals the one with the fewest requests, then the first.

    ``requests``: under way on each node; ``of_model``: those of the request's own model; ``is_warm``: whether a node
    has the model's weights in memory. Raises ``ValueError`` where there is no node.
    """
    most = BUSIER * min(requests) + MORE
    near = [place for place, count in enumerate(requests) if count <= most]
    preferred = [place for place in near if of_model[place]] or [place for place in near if is_warm(place)] or near
    return min(preferred, key=requests.__getitem__)
