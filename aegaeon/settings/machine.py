"""What this machine has, and the sizes that fit it.

Shared memory here is memfd: it is limited by free memory and by the control group, not by the size of /dev/shm.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aegaeon.core.config import InstanceConfig, PoolConfig
from aegaeon.core.instance import Role
from aegaeon.memory.weight_chunks import SMALL_CHUNK_BYTES, capacity_for, whole_chunks
from aegaeon.settings.error import SettingsError
from aegaeon.settings.sizes import format_bytes

_MIB = 1 << 20
PROCESS_BYTES = 512 * _MIB  # of an instance: 25 when it begins, then packed weights, activations, workspaces
OTHER_PROCESSES = 2  # server, driver, Ray's and the one that instances are forked from take as much (measured: 1010)
STANDBY_PROCESSES = 1  # a driver, and the one that its instances would be forked from (measured: 480)
_STANDBY_CORES = 4
MAX_INSTANCES = 8
MIN_KV_SLABS = 4
CUDA_PAGE_BYTES = 64 * _MIB  # a page of a GPU, at least: tens of GB are mapped in hundreds of calls
_GPU_RESERVE_BYTES = 4096 * _MIB  # of an instance: CUDA's context, activations, graphs, the last page of each model
_NO_LIMIT_BYTES = 1 << 60  # version 1 writes a huge number where there is no limit


@dataclass(frozen=True, slots=True)
class Machine:
    """``available_bytes``: memory that could be used without swapping; ``group_bytes``: what the control group leaves.

    ``group_bytes`` is None without a limit. ``gpu_bytes``: free memory of each GPU; where there is none,
    ``gpu_problem`` may say why.
    """

    cores: int
    available_bytes: int
    group_bytes: int | None = None
    gpu_bytes: tuple[int, ...] = ()
    gpu_problem: str = ""

    @property
    def room_bytes(self) -> int:
        """Memory that may still be taken."""
        return self.available_bytes if self.group_bytes is None else min(self.available_bytes, self.group_bytes)

    @property
    def place(self) -> str:
        """Where that room ends, for messages."""
        return "on this machine" if self.room_bytes == self.available_bytes else "in this control group (container)"


def read_machine(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Machine:
    """This machine, as its kernel describes it. Memory of the group's page cache that nobody uses counts as free."""
    groups = _groups((proc / "self/cgroup").read_text(), cgroups)
    allowed = [len(os.sched_getaffinity(0)), *_filter(map(_cpu_quota, groups.get("cpu", ())))]
    rooms = [*_filter(map(_group_room_bytes, groups.get("memory", ())))]
    return Machine(
        cores=max(1, min(allowed)),
        available_bytes=_fields((proc / "meminfo").read_text().replace(":", ""))["MemAvailable"] * 1024,
        group_bytes=max(0, min(rooms)) if rooms else None,
    )


def fit(config: PoolConfig, machine: Machine, weight_bytes: Mapping[str, int]) -> PoolConfig:
    """Fill in every size that the configuration leaves open (None; no instances) for this machine.

    ``weight_bytes``: bytes of each model's weight files. Weights get what they need, up to three quarters of the memory
    that processes and a reserve of a tenth leave; KV gets half of the rest, so that the other half stays free. Device
    pages, where there are any, get half before. Raises ``SettingsError`` where the memory does not suffice.
    """
    config = _settle_device(config, machine)
    weights = {name: whole_chunks(size, SMALL_CHUNK_BYTES) for name, size in weight_bytes.items()}
    least_bytes = capacity_for((max(weights.values()),)) + MIN_KV_SLABS * config.slab_bytes
    if config.instances:
        return _fit_instances(config, machine, weights, least_bytes)
    for count in range(default_instances(machine, least_bytes), 1, -1):
        with contextlib.suppress(SettingsError):  # fewer need less
            instances = (InstanceConfig(Role.MIXED, count),)
            return _fit_instances(replace(config, instances=instances), machine, weights, least_bytes)
    return _fit_instances(replace(config, instances=(InstanceConfig(Role.MIXED, 1),)), machine, weights, least_bytes)


def _fit_instances(config: PoolConfig, machine: Machine, weights: Mapping[str, int], least_bytes: int) -> PoolConfig:
    """All that is open but the instances. ``least_bytes``: of the caches."""
    count = sum(instance.count for instance in config.instances)
    threads = config.threads_per_instance or max(1, machine.cores // count)
    standby = _default_standby(machine, count, least_bytes) if config.standby_driver is None else config.standby_driver
    config = replace(config, threads_per_instance=threads, standby_driver=standby)
    budget = _Budget(machine, count + STANDBY_PROCESSES * standby)
    if config.device == "cuda":
        config = _fit_gpus(config, machine.gpu_bytes, count)
    elif config.copy_to_device:
        config = _fit_devices(config, budget, count, least_bytes)
    return _fit_caches(config, budget, weights)


def _settle_device(config: PoolConfig, machine: Machine) -> PoolConfig:
    """CPU or GPUs; on GPUs one instance on each, unless told otherwise."""
    if config.device == "cuda" and not machine.gpu_bytes:
        raise SettingsError(f"--device cuda: {machine.gpu_problem or 'no GPU was found'}; use --device cpu")
    if config.device == "cpu" or not machine.gpu_bytes:
        return replace(config, device="cpu")
    instances = config.instances or (InstanceConfig(Role.MIXED, len(machine.gpu_bytes)),)
    page_bytes = max(config.page_bytes, CUDA_PAGE_BYTES)
    return replace(config, device="cuda", instances=instances, copy_to_device=True, page_bytes=page_bytes)


def _fit_gpus(config: PoolConfig, gpu_bytes: tuple[int, ...], count: int) -> PoolConfig:
    """Pages of every instance: an even share of the GPU that has the least, after a tenth and a reserve."""
    pages = max(1, gpu_room_bytes(min(gpu_bytes), -(-count // len(gpu_bytes))) // config.page_bytes)
    return replace(config, device_bytes=config.device_bytes or pages * config.page_bytes)


def gpu_room_bytes(free_bytes: int, sharers: int = 1) -> int:
    """What each of ``sharers`` instances may take of a GPU's free memory for pages."""
    return free_bytes * 9 // 10 // sharers - _GPU_RESERVE_BYTES


def default_instances(machine: Machine, cache_bytes: int = 0) -> int:
    """One instance for two cores, at most eight, and no more than half of the memory or its caches leave room for."""
    most = _process_room_bytes(machine, cache_bytes) // PROCESS_BYTES - OTHER_PROCESSES
    return max(1, min(MAX_INSTANCES, machine.cores // 2, most))


def _process_room_bytes(machine: Machine, cache_bytes: int) -> int:
    """What processes may take: half of the memory, and no more than their caches leave."""
    return min(machine.room_bytes // 2, machine.room_bytes * 9 // 10 - cache_bytes)


def _default_standby(machine: Machine, instances: int, cache_bytes: int) -> bool:
    """Where there is room for it beside all other processes, and importing disturbs nobody much."""
    needed_bytes = (instances + OTHER_PROCESSES + STANDBY_PROCESSES) * PROCESS_BYTES
    return machine.cores >= _STANDBY_CORES and needed_bytes <= _process_room_bytes(machine, cache_bytes)


class _Budget:
    """Memory of a node on its way into caches, with what was taken so far for the error that says it is too little."""

    def __init__(self, machine: Machine, instances: int) -> None:
        self._machine = machine
        self._processes = instances + OTHER_PROCESSES
        self._taken: dict[str, int] = {}

    @property
    def _needed_bytes(self) -> int:
        return PROCESS_BYTES * self._processes + sum(self._taken.values())

    @property
    def free_bytes(self) -> int:
        """What is left, less a reserve of a tenth of all."""
        return max(0, self._machine.room_bytes * 9 // 10 - self._needed_bytes)

    def take(self, flag: str, size_bytes: int) -> None:
        """Book ``size_bytes`` for what the flag sets."""
        self._taken[flag] = size_bytes

    def check(self) -> None:
        """Raise where more is booked than there is; the reserve may be used up by explicit sizes."""
        if self._needed_bytes > self._machine.room_bytes:
            parts = [f"{format_bytes(size)} for {flag}" for flag, size in self._taken.items()]
            raise SettingsError(
                f"too little shared memory: {format_bytes(self._needed_bytes)} are needed ({', '.join(parts)}, "
                f"{format_bytes(PROCESS_BYTES * self._processes)} for {self._processes} processes), "
                f"{format_bytes(self._machine.room_bytes)} are free {self._machine.place}; lower these flags or "
                "--instances, serve smaller models, or free memory"
            )


def _fit_devices(config: PoolConfig, budget: _Budget, count: int, least_bytes: int) -> PoolConfig:
    """Device pages of every instance; at least one."""
    share_bytes = max(0, budget.free_bytes - least_bytes) // 2 // count
    pages = max(1, share_bytes // config.page_bytes)
    config = replace(config, device_bytes=config.device_bytes or pages * config.page_bytes)
    budget.take("--device-memory", (config.device_bytes or 0) * count)
    return config


def _fit_caches(config: PoolConfig, budget: _Budget, weights: Mapping[str, int]) -> PoolConfig:
    """The weight cache must hold the largest model, the KV cache a few slabs; explicit sizes come first."""
    largest = max(weights, key=lambda name: weights[name])
    least_kv_bytes = MIN_KV_SLABS * config.slab_bytes
    weight_cache_bytes, kv_bytes = config.weight_cache_bytes, config.kv_cache_bytes
    if kv_bytes is not None:
        budget.take("--kv-cache", kv_bytes)
    if weight_cache_bytes is None:
        share_bytes = budget.free_bytes if kv_bytes is not None else budget.free_bytes * 3 // 4
        weight_cache_bytes = max(
            capacity_for((weights[largest],)),
            min(capacity_for(weights.values()), whole_chunks(share_bytes, SMALL_CHUNK_BYTES)),
        )
    budget.take("--weight-cache", weight_cache_bytes)
    if kv_bytes is None:
        kv_bytes = max(least_kv_bytes, budget.free_bytes // 2 // config.slab_bytes * config.slab_bytes)
        budget.take("--kv-cache", kv_bytes)
    if config.copy_to_device or weight_cache_bytes >= capacity_for(weights.values()):
        _require("--weight-cache", weight_cache_bytes, weights[largest], f"model '{largest}'")
    else:
        holders = sum(instance.count for instance in config.instances)
        what = f"model '{largest}' for each of {holders} instances, nor all models once"
        least_bytes = min(weights[largest] * holders, capacity_for(weights.values()))
        _require("--weight-cache", weight_cache_bytes, least_bytes, what)
    _require("--kv-cache", kv_bytes, least_kv_bytes, f"{MIN_KV_SLABS} slabs of --slab-size")
    budget.check()
    return replace(config, weight_cache_bytes=weight_cache_bytes, kv_cache_bytes=kv_bytes)


def _require(flag: str, size_bytes: int, least_bytes: int, what: str) -> None:
    if size_bytes < least_bytes:
        raise SettingsError(
            f"{flag}: {format_bytes(size_bytes)} cannot hold {what}; "
            f"set it to at least {least_bytes} ({format_bytes(least_bytes)})"
        )


def _groups(memberships: str, root: Path) -> dict[str, list[Path]]:
    """Folders of the process's control groups and of all above them, by controller (version 1, and 2 as both)."""
    folders: dict[str, list[Path]] = {}
    for membership in memberships.splitlines():
        _, controllers, path = membership.split(":", 2)
        for controller in controllers.split(",") if controllers else ("cpu", "memory"):
            base = root / controller if controllers else root
            inner = base / path.lstrip("/")
            folders.setdefault(controller, []).extend(
                folder for folder in (inner, *inner.parents) if folder.is_relative_to(base)
            )
    return folders


def _group_room_bytes(folder: Path) -> int | None:
    """Limit less use; caches of files that are not in use can be dropped and count as free."""
    limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
    used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
    if limit is None or used is None or limit >= _NO_LIMIT_BYTES:
        return None
    statistics = _fields(_text(folder / "memory.stat"))
    droppable = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
    return limit - used + droppable


def _cpu_quota(folder: Path) -> int | None:
    """Whole cores that the group may use, rounded up."""
    words = _text(folder / "cpu.max").split() or [
        _text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    quota, period = (int(word) if word.isdigit() else 0 for word in words[:2])
    return -(-quota // period) if quota and period else None


def _number(*files: Path) -> int | None:
    """The number in the first of these files that holds one."""
    return next((int(text) for text in map(_text, files) if text.strip().isdigit()), None)


def _fields(text: str) -> dict[str, int]:
    """``name number`` lines."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _text(file: Path) -> str:
    """The file's text; empty where the kernel has no such file (root groups have none)."""
    try:
        return file.read_text()
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return ""


def _filter(values: Iterable[int | None]) -> Iterator[int]:
    return (value for value in values if value is not None)
