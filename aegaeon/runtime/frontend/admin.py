"""What runs where, as plain data for whoever looks at the pool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from aegaeon.runtime.wire.messages import NodeState


def pool_state(now_s: float, nodes: Sequence[tuple[str, NodeState]], models: Iterable[str]) -> dict[str, Any]:
    """The pool's state: instances, models, KV slab cache and weight cache of every node; JSON-ready."""
    counts = {name: {"waiting": 0, "running": 0} for name in models}
    for _, state in nodes:
        for name, count in state.waiting:
            counts[name]["waiting"] += count
        for name, count in state.running:
            counts[name]["running"] += count
    return {
        "now_s": now_s,
        "instances": [_instance(node_id, instance) for node_id, state in nodes for instance in state.instances],
        "models": counts,
        "nodes": [
            {
                "id": node_id,
                "reported_s": state.now_s,
                **{f"kv_{name}": count for name, count in asdict(state.kv).items()},
                "kv_disk": None if state.disk is None else asdict(state.disk),
                "prompt_tokens": state.prompt_tokens,
                "cached_tokens": state.cached_tokens,
                "weights_cached": list(state.weights_cached),
                "weights_bytes": state.weights_bytes,
            }
            for node_id, state in nodes
        ],
    }


def _word(instance: Any) -> str:
    if not instance.alive:
        return "down" if instance.trouble else "starting"
    if instance.trouble:
        return "stuck"
    return "running" if instance.model is not None else "idle"


def _instance(node_id: str, instance: Any) -> dict[str, Any]:
    fields = asdict(instance)
    fields["id"] = fields.pop("instance_id")
    del fields["alive"]
    fields["state"] = _word(instance)
    fields["pid"] = instance.pid or None  # it has no process yet
    fields["node"] = node_id
    return fields
