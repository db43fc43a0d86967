"""Whether a pool can serve, and what of it is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aegaeon.core.generation import Health
from aegaeon.runtime.frontend.core.known_nodes import KnownNode, KnownNodes


def pool_health(nodes: KnownNodes, not_served: Mapping[str, str], now_s: float) -> Health:
    """The pool's health by the last reports of its nodes. ``not_served``: models that cannot be used, and why."""
    problems = (*_missing_nodes(nodes, now_s), *_problems_of_nodes(nodes, now_s), *_problems_of_models(not_served))
    able = [
        instance
        for node in nodes
        if node.state is not None
        for instance in node.state.instances
        if instance.alive and not instance.trouble
    ]
    prefills = any(instance.role.prefills for instance in able)
    decodes = any(instance.role.decodes for instance in able)
    if prefills and decodes:
        return Health(ready=True, live=True, problems=problems)
    if not nodes:
        return Health(ready=False, live=True, detail="no driver is there; requests wait for one", problems=problems)
    missing = "prefill" if not prefills else "decode"
    detail = f"no instance that can {missing} is up"
    return Health(ready=False, live=True, detail="; ".join((detail, *problems)), problems=problems)


def _missing_nodes(nodes: KnownNodes, now_s: float) -> Iterator[str]:
    for node_id, since_s in nodes.away_since_s.items():
        yield f"node {node_id} has no driver (since {now_s - since_s:.0f} s)"


def _problems_of_nodes(nodes: KnownNodes, now_s: float) -> Iterator[str]:
    for node in nodes:
        if node.state is None:
            yield f"node {node.node_id} has not reported yet"
        else:
            yield from _problems_of_instances(node, max(0.0, now_s - node.state.now_s))


def _problems_of_instances(node: KnownNode, age_s: float) -> Iterator[str]:
    for instance in node.state.instances if node.state is not None else ():
        if instance.trouble or not instance.alive:
            for_s = instance.for_s + age_s
            yield f"instance {instance.instance_id} {instance.trouble or 'is starting'} (since {for_s:.0f} s)"


def _problems_of_models(not_served: Mapping[str, str]) -> Iterator[str]:
    for model, why in not_served.items():
        yield f"model {model} is not served: {why}"
