"""How many files each process of a pool has open at most, and how many it may have.

Shared memory, links, sockets and clients' connections are all descriptors. A process that has none left fails in places
that nobody can foresee, so they are counted before the start.
"""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass

from aegaeon.core.config import PoolConfig
from aegaeon.core.service import ServiceError

logger = logging.getLogger(__name__)

# Ray, torch, Python, a log; measured below 110 on CPU, and CUDA opens as many again.
_BASE = 256
_LINK = 7  # two rings: the memory of each, two doorbells; the end that closes when the other side dies
_PROCESS = 3  # its pulse, its end, what it has not fetched yet
_RING = 3
_ENTRY = 2  # a model in the host cache, attached: a connection, and what it maps
_READING = 32  # files that the loader's threads read at once
_FRONTENDS = 1
_MOST = 1 << 20  # what kernels allow unless told otherwise; some programs look at each that they might have


@dataclass(frozen=True, slots=True)
class DescriptorNeed:
    """Open files at most, by process; ``server`` without clients, each of which takes one more."""

    server: int
    driver: int
    instance: int
    connections: int

    @property
    def least(self) -> int:
        """What the limit must allow, or the pool cannot run."""
        return max(self.server, self.driver, self.instance)

    @property
    def most(self) -> int:
        """What the limit should allow: with all the clients that may wait."""
        return max(self.least, self.server + self.connections)


def needed(config: PoolConfig) -> DescriptorNeed:
    """What a pool of this configuration opens, its models all resident everywhere."""
    instances = sum(group.count for group in config.instances)
    models, frontends = len(config.models), _FRONTENDS * config.nodes
    return DescriptorNeed(
        server=_BASE + config.nodes * (_LINK + instances * _RING),
        driver=_BASE
        + _READING
        + frontends * (_LINK + instances * _RING)
        + instances * (_LINK + _PROCESS + models)
        + models * _ENTRY,
        instance=_BASE + _LINK + frontends * _RING + models * _ENTRY,
        connections=config.max_queued_requests + instances * config.max_batch_requests,
    )


def raise_limit() -> int | None:
    """Let this process and those that it starts open as many files as makes sense; the limit, None without one.

    The usual soft limit of 1024 is a relic of ``select``, which nothing here uses.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return None if soft == resource.RLIM_INFINITY else soft


def shortage(need: DescriptorNeed, limit: int | None) -> str:
    """What a limit means for a pool, empty where it suffices; ``least`` is for the caller to refuse."""
    if limit is None or limit >= need.most:
        return ""
    raise_it = (
        f"raise the hard limit (ulimit -Hn; LimitNOFILE= of systemd, --ulimit nofile= of a container) to {need.most}"
    )
    allowed = f"a process may open {limit} files here"
    if limit < need.least:
        return f"{allowed}, and this pool needs {need.least}: {raise_it}, or serve fewer models with fewer instances"
    return f"{allowed}: enough for {limit - need.server} clients at once; for more, {raise_it}"


def raise_file_limit(config: PoolConfig) -> None:
    """Raise the limit as far as makes sense. Raises ``ServiceError`` where the pool could not run with that."""
    need, limit = needed(config), raise_limit()
    message = shortage(need, limit)
    if message and limit is not None and limit < need.least:
        raise ServiceError(message)
    if message:
        logger.warning("%s", message)
