"""The limit on open files: raised as far as it goes, and told in time where that is not enough."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from aegaeon.core.config import PoolConfig
from aegaeon.core.service import ServiceError

# Ray's processes and the libraries have the first, an instance the second in the driver: its rings, its memory.
_BASE_FILES = 160
_INSTANCE_FILES = 16
_MOST_FILES = 1 << 20  # what kernels allow unless told otherwise; some programs look at each that they might have


@dataclass(frozen=True, slots=True)
class FileLimits:
    """How many files a process may open: now, and as far as it may raise that itself."""

    soft: int
    hard: int

    @classmethod
    def read(cls) -> FileLimits:
        """Of this process; its children inherit them."""
        return cls(*resource.getrlimit(resource.RLIMIT_NOFILE))


def needed_files(config: PoolConfig) -> int:
    """What the busiest process of a service opens, clients apart."""
    return _BASE_FILES + _INSTANCE_FILES * sum(group.count for group in config.instances)


def raise_file_limit(config: PoolConfig) -> None:
    """Raise the limit as far as makes sense. Raises ``ServiceError`` where no service could start with that."""
    limits, needed = FileLimits.read(), needed_files(config)
    if limits.hard != resource.RLIM_INFINITY and limits.hard < needed:
        raise ServiceError(
            f"a process may open {limits.hard} files here, the service needs {needed} and one for each client: raise "
            "the hard limit (ulimit -Hn; LimitNOFILE= of systemd, --ulimit nofile= of a container)"
        )
    unlimited = limits.hard == resource.RLIM_INFINITY
    wanted = _MOST_FILES if unlimited else min(limits.hard, _MOST_FILES)
    if limits.soft != resource.RLIM_INFINITY and limits.soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, limits.hard))
