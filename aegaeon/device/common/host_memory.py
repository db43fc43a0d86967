"""How much more memory this process could use: the machine's, and what its control group leaves of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, order=True)
class HostMemory:
    """Bytes to be had, and the file that says so."""

    available_bytes: int
    source: str


def host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> HostMemory:
    """The tightest of the machine's limit and those of the process's control groups (versions 1 and 2).

    Memory that the kernel can reclaim from files does not count as used. A memory file is not reclaimable.
    """
    return min([_machine(proc / "meminfo"), *_groups(proc / "self" / "cgroup", cgroups)])


def _machine(meminfo: Path) -> HostMemory:
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return HostMemory(int(fields["MemAvailable"].split()[0]) * 1024, str(meminfo))


def _groups(membership: Path, cgroups: Path) -> Iterator[HostMemory]:
    """What each group from the process's own up to the root leaves; a group without a limit says nothing."""
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _leaves(cgroups, path, ("memory.max", "memory.current", "inactive_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _leaves(cgroups / "memory", path, names)


def _leaves(root: Path, path: str, names: tuple[str, str, str]) -> Iterator[HostMemory]:
    limit_name, usage_name, reclaimable_name = names
    group = root / path.lstrip("/")
    for directory in (group, *group.parents):
        limit_file = directory / limit_name
        if limit_file.is_file() and (limit := limit_file.read_text().strip()) != "max":
            used_bytes = int((directory / usage_name).read_text()) - _reclaimable(directory, reclaimable_name)
            yield HostMemory(max(0, int(limit) - used_bytes), str(limit_file))
        if directory == root:
            return


def _reclaimable(directory: Path, name: str) -> int:
    fields = dict(line.split(" ", 1) for line in (directory / "memory.stat").read_text().splitlines())
    return int(fields.get(name, "0"))
