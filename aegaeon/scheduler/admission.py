"""Which requests are turned away at the door."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegaeon.core.command import RejectReason, RejectRequest
from aegaeon.core.instance import InstanceSpec
from aegaeon.core.request import Request
from aegaeon.scheduler.facts import PolicyFacts
from aegaeon.scheduler.job import Job


def unknown_model(request: Request) -> RejectRequest:
    """No such model is served."""
    return RejectRequest(request.request_id, RejectReason.UNKNOWN_MODEL, f"no model is called {request.model!r}")


def misfit(job: Job, slab_blocks: int, specs: Sequence[InstanceSpec]) -> RejectRequest | None:
    """Why ``job`` can never run, if so: its longest context exceeds the slab cache, or every instance is too small, for
    its context or for its rows.

    ``slab_blocks``: blocks of its shape that the slab cache holds. A role that no instance has says nothing: one may
    join. A prefill instance must hold the longest context too, for that is what a recompute processes.
    """
    if job.max_blocks > slab_blocks:
        cache_bytes = slab_blocks * job.facts.block_bytes
        return _too_large(job, f"the KV slab cache holds {cache_bytes} bytes of this model's blocks")
    prefilling = [spec for spec in specs if spec.role.prefills]
    decoding = [spec for spec in specs if spec.role.decodes]
    return _no_room(job, prefilling) or _no_room(job, decoding) or _too_wide(job, decoding)


def most_kv_bytes(facts: PolicyFacts, specs: Sequence[InstanceSpec]) -> float:
    """The longest context of a model, in KV bytes, that ``misfit`` lets pass; 0 where its weights fit nowhere."""
    roles = ([spec for spec in specs if spec.role.prefills], [spec for spec in specs if spec.role.decodes])
    most = [
        max((spec.kv_bytes for spec in role if spec.weight_bytes >= facts.weight_bytes), default=0)
        for role in roles
        if role
    ]
    return min(most, default=math.inf)


def overload(job: Job, queued: int, max_queued: int, retry_after_s: float) -> RejectRequest | None:
    """Why ``job`` may not be queued, if so."""
    if queued < max_queued:
        return None
    detail = f"{queued} requests wait already; at most {max_queued} may"
    return RejectRequest(job.request_id, RejectReason.OVERLOADED, detail, retry_after_s)


def _no_room(job: Job, specs: Sequence[InstanceSpec]) -> RejectRequest | None:
    if not specs:
        return None
    hosts = [spec for spec in specs if spec.weight_bytes >= job.facts.weight_bytes]
    if not hosts:
        most_bytes = max(spec.weight_bytes for spec in specs)
        detail = f"its weights take {job.facts.weight_bytes} bytes, an instance has room for {most_bytes}"
        return RejectRequest(job.request_id, RejectReason.MODEL_FAILED, detail)
    most_bytes = max(spec.kv_bytes for spec in hosts)
    if job.max_kv_bytes > most_bytes:
        return _too_large(job, f"an instance has room for {most_bytes}")
    return None


def _too_wide(job: Job, specs: Sequence[InstanceSpec]) -> RejectRequest | None:
    most = max((spec.max_batch_requests for spec in specs), default=job.width)
    if job.width <= most:
        return None
    detail = f"a search by {job.width} beams takes as many rows of a step; an instance has {most}"
    return RejectRequest(job.request_id, RejectReason.TOO_WIDE, detail)


def _too_large(job: Job, limit: str) -> RejectRequest:
    request = job.request
    detail = (
        f"{request.prompt_tokens} prompt tokens and up to {request.max_new_tokens} new ones take "
        f"{job.max_kv_bytes} bytes of KV; {limit}"
    )
    return RejectRequest(request.request_id, RejectReason.TOO_LARGE, detail)
