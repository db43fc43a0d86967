"""The ``Device`` protocol and its vocabulary.

A device has fixed physical pages. A caller reserves address ranges once, maps pages into them, and views the bytes as
tensors; a view's address stays what it is while pages come and go. Copies run on streams of their own, ordered by
events. The rules below hold on every backend, and breaking one raises ``DeviceError``:

- Offsets and sizes of ``map`` and ``unmap`` are multiples of ``page_bytes`` inside the range.
- A page is mapped at one place at a time; a place holds one page at a time.
- Only mapped bytes are viewed or copied. A view outlives an ``unmap`` (parameters stay bound while their model is
  away), but its bytes must not be touched until pages are mapped there again; their contents are undefined then.
- A copy is between contiguous tensors of one shape and dtype that do not overlap.
- Nothing is unmapped, released or unpinned while a copy that touches it is under way.

One thread calls a device; the copies themselves run beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch

CopyPair = tuple[torch.Tensor, torch.Tensor]
"""Destination and source of a copy."""


class Stream(StrEnum):
    """Work on one stream happens in the order of its calls; between streams only events order it.

    ``COMPUTE`` is what the calling thread does through torch (the current stream, on a GPU).
    """

    COMPUTE = "compute"
    COPY_IN = "copy_in"
    COPY_OUT = "copy_out"


@dataclass(frozen=True, slots=True)
class Event:
    """A point of a stream: it has happened once the stream's first ``ticket`` pieces of work are done."""

    stream: Stream
    ticket: int


@dataclass(frozen=True, slots=True)
class VirtualRange:
    """A reserved stretch of addresses, for life; ``size_bytes`` is a multiple of the page size."""

    address: int
    size_bytes: int

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.address + self.size_bytes


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """``total_bytes`` of physical pages, ``mapped_bytes`` of them mapped, ``reserved_bytes`` of addresses."""

    total_bytes: int
    mapped_bytes: int
    reserved_bytes: int

    @property
    def free_bytes(self) -> int:
        """Bytes of the pages that are mapped nowhere."""
        return self.total_bytes - self.mapped_bytes


class Device(Protocol):
    """One accelerator, or the CPU. See the module for the rules."""

    @property
    def name(self) -> str:
        """What it is, for logs and records."""
        ...

    @property
    def torch_device(self) -> torch.device:
        """Where its views are, for tensors that go with them."""
        ...

    @property
    def pages(self) -> int:
        """Physical pages; they are numbered from 0."""
        ...

    @property
    def page_bytes(self) -> int:
        """Size of a page."""
        ...

    def reserve(self, size_bytes: int) -> VirtualRange:
        """Reserve addresses, rounded up to whole pages, with nothing mapped."""
        ...

    def map(self, virtual_range: VirtualRange, offset_bytes: int, pages: Sequence[int]) -> None:
        """Put pages behind consecutive places of a range; all or none. What they hold is undefined."""
        ...

    def unmap(self, virtual_range: VirtualRange, offset_bytes: int, size_bytes: int) -> None:
        """Take away the pages behind a stretch that is mapped throughout."""
        ...

    def release(self, virtual_range: VirtualRange) -> None:
        """Give the addresses of a wholly unmapped range back. Its views are invalid from then on."""
        ...

    def view(
        self, virtual_range: VirtualRange, offset_bytes: int, shape: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """The bytes from ``offset_bytes`` on as a contiguous tensor, without a copy. It keeps nothing alive."""
        ...

    def pin(self, memory: torch.Tensor) -> None:
        """Register host memory, so that copies from and to it are asynchronous and fast. It must stay mapped."""
        ...

    def unpin(self, memory: torch.Tensor) -> None:
        """Undo ``pin``, before the memory is unmapped."""
        ...

    def copy(self, destination: torch.Tensor, source: torch.Tensor, stream: Stream) -> Event:
        """Begin a copy between device and host, or within one; it has landed when the event has happened.

        Both tensors are kept alive until then; their contents must not change meanwhile.
        """
        ...

    def copy_many(self, pairs: Sequence[CopyPair], stream: Stream) -> Event:
        """Begin copies that do not touch each other's bytes, in any order; all have landed when the event happened."""
        ...

    def record(self, stream: Stream) -> Event:
        """The point after all work given to the stream so far."""
        ...

    def wait(self, stream: Stream, event: Event) -> None:
        """Let later work of ``stream`` happen after ``event``; where the stream is another thread's this returns at
        once."""
        ...

    def synchronize(self, event: Event) -> None:
        """Block the calling thread until the event has happened."""
        ...

    def query(self, event: Event) -> bool:
        """Whether the event has happened, without blocking."""
        ...

    def memory_info(self) -> MemoryInfo:
        """What is mapped now."""
        ...

    def close(self) -> None:
        """Finish what is under way and give everything back; idempotent. Views are invalid from then on."""
        ...
