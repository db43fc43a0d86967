"""The node's host weight cache: checkpoints verbatim in shared memory, least recently used out first.

One memfd per model, filled from disk by ``quick_model_loader`` on a thread of its own and handed to instances as a
descriptor. An entry that an instance has leased stays; the others go when room is needed. A partial entry is never
visible.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import quick_model_loader as qml
from aegaeon.device.shared_memory import SharedMemoryError, create_memfd
from aegaeon.runtime.messages import HostTensor, HostWeights

Deliver = Callable[[HostWeights], None]
Fail = Callable[[str, str], None]


@dataclass(slots=True)
class _Entry:
    name: str
    fd: int
    total_bytes: int
    tensors: tuple[HostTensor, ...]
    leases: dict[int, str] = field(default_factory=dict)  # lease id -> instance key


@dataclass(slots=True)
class _Load:
    """A model on its way in, and who waits for it (by instance key)."""

    reserved_bytes: int
    waiting: dict[str, Deliver] = field(default_factory=dict)
    started: bool = False


class HostWeightCache:
    """All methods but ``descriptor`` belong to the driver's thread. Budget in bytes.

    ``fail(model, reason)`` is called when a checkpoint cannot be read.
    """

    def __init__(
        self,
        budget_bytes: int,
        paths: Mapping[str, Path],
        sizes_bytes: Mapping[str, int],
        post: Callable[[Callable[[], None]], None],
        fail: Fail,
    ) -> None:
        self._budget_bytes = budget_bytes
        self._paths = paths
        self._sizes_bytes = sizes_bytes
        self._post = post
        self._fail = fail
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._loads: dict[str, _Load] = {}
        self._queue: deque[str] = deque()
        self._generation = 0
        self._last_lease = 0
        self._threads = ThreadPoolExecutor(1, "weights")

    @property
    def cached(self) -> tuple[str, ...]:
        """Models that are there, least recently used first."""
        return tuple(self._entries)

    @property
    def used_bytes(self) -> int:
        """Bytes of entries that are there or being read."""
        reading = sum(load.reserved_bytes for load in self._loads.values() if load.started)
        return reading + sum(entry.total_bytes for entry in self._entries.values())

    def lease(self, model: str, instance_key: str, deliver: Deliver) -> None:
        """Have ``deliver`` called as soon as the model is there, at once where it is."""
        entry = self._entries.get(model)
        if entry is not None:
            self._entries.move_to_end(model)
            self._hand_over(model, entry, instance_key, deliver)
            return
        if model not in self._loads:
            self._loads[model] = _Load(self._sizes_bytes[model])
            self._queue.append(model)
        self._loads[model].waiting[instance_key] = deliver
        self._start_loads()

    def cancel(self, model: str, instance_key: str) -> None:
        """The instance does not wait for the model any more; a lease that was delivered is not touched."""
        if model in self._loads:
            self._loads[model].waiting.pop(instance_key, None)

    def give_back(self, model: str, lease_id: int) -> None:
        """A lease is over."""
        if model in self._entries:
            self._entries[model].leases.pop(lease_id, None)
        self._start_loads()

    def forget_instance(self, instance_key: str) -> None:
        """All leases of an instance that died are over."""
        for entry in self._entries.values():
            entry.leases = {lease: key for lease, key in entry.leases.items() if key != instance_key}
        for model in self._loads:
            self.cancel(model, instance_key)
        self._start_loads()

    def descriptor(self, name: str) -> int:
        """The memfd of an entry; any thread. ``KeyError`` once it is gone."""
        for entry in tuple(self._entries.values()):
            if entry.name == name:
                return entry.fd
        raise KeyError(name)

    def close(self) -> None:
        """Wait for the reader and drop everything."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for model in tuple(self._entries):
            self._drop(model)

    def _hand_over(self, model: str, entry: _Entry, instance_key: str, deliver: Deliver) -> None:
        self._last_lease += 1
        entry.leases[self._last_lease] = instance_key
        deliver(HostWeights(model, self._last_lease, entry.name, entry.total_bytes, entry.tensors))

    def _start_loads(self) -> None:
        """First come, first served: a large model is not overtaken for ever by small ones."""
        while self._queue and self._make_room(self._loads[self._queue[0]].reserved_bytes):
            model = self._queue.popleft()
            self._loads[model].started = True
            self._threads.submit(self._read, model)

    def _make_room(self, needed_bytes: int) -> bool:
        for model in tuple(self._entries):
            if self.used_bytes + needed_bytes <= self._budget_bytes:
                break
            if not self._entries[model].leases:
                self._drop(model)
        return self.used_bytes + needed_bytes <= self._budget_bytes

    def _drop(self, model: str) -> None:
        os.close(self._entries.pop(model).fd)

    def _read(self, model: str) -> None:
        """On the reader's thread."""
        try:
            fd, total_bytes, tensors = read_checkpoint(self._paths[model])
        except (qml.LoaderError, SharedMemoryError, OSError) as error:
            reason = f"cannot load model {model}: {error}"
            self._post(lambda: self._failed(model, reason))
            return
        self._post(lambda: self._loaded(model, fd, total_bytes, tensors))

    def _loaded(self, model: str, fd: int, total_bytes: int, tensors: tuple[HostTensor, ...]) -> None:
        self._generation += 1
        entry = _Entry(f"weights:{model}:{self._generation}", fd, total_bytes, tensors)
        self._entries[model] = entry
        for instance_key, deliver in self._loads.pop(model).waiting.items():
            self._hand_over(model, entry, instance_key, deliver)
        self._start_loads()

    def _failed(self, model: str, reason: str) -> None:
        del self._loads[model]
        self._fail(model, reason)
        self._start_loads()


def read_checkpoint(path: Path) -> tuple[int, int, tuple[HostTensor, ...]]:
    """Read a checkpoint into a new memfd: the descriptor, its bytes, and where each tensor lies.

    Raises ``quick_model_loader.LoaderError`` for bad files and ``SharedMemoryError`` when there is no memory.
    """
    checkpoint = qml.inspect(path)
    fd = create_memfd(f"weights of {path.name[:64]}", checkpoint.buffer_bytes, flag="--weight-cache")
    try:
        with mmap.mmap(fd, checkpoint.buffer_bytes) as memory:
            checkpoint.read_into_buffer(memory)
    except BaseException:
        os.close(fd)
        raise
    offsets = checkpoint.file_offsets
    tensors = tuple(
        HostTensor(info.name, info.dtype, tuple(info.shape), offsets[info.file] + info.begin)
        for info in checkpoint.tensors.values()
    )
    return fd, checkpoint.buffer_bytes, tensors
