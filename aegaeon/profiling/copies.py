"""What copies between host and device reach: in one piece, and as KV blocks, in and out.

A device of its own beside the instance's, with memory of the same kind: what is measured is the way, from an idle
device until the copy's event has happened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch

from aegaeon.device.common.protocol import CopyPair, Device, Stream
from aegaeon.device.common.shared_memory import create_memfd
from aegaeon.device.common.shared_tensor import map_fd
from aegaeon.device.factory import make_device
from aegaeon.profiling.point import Copied
from aegaeon.runtime.instance.device_kv import copy_in_batches

_BYTES = 128 << 20
_FLAG = "--kv-cache"


def copied_bytes(piece_bytes: int) -> int:
    """What one measurement moves: as many whole pieces as there is memory for."""
    return max(1, _BYTES // piece_bytes) * piece_bytes


class CopyBench:
    """A context manager. ``kind`` and ``page_bytes``: of the device; ``piece_bytes``: the largest piece to come."""

    def __init__(self, kind: str, page_bytes: int, piece_bytes: int) -> None:
        size_bytes = max(_BYTES, piece_bytes)
        pages = -(-size_bytes // page_bytes)
        self._host = _host_memory(size_bytes)
        self._device: Device = make_device(
            kind, pages=pages, page_bytes=page_bytes, huge_pages=False, memory_flag="--device-memory"
        )
        place = self._device.reserve(pages * page_bytes)
        self._device.map(place, 0, range(pages))
        self._memory = self._device.view(place, 0, (size_bytes,), torch.uint8)
        self._device.pin(self._host)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._device.close()

    def seconds(self, what: Copied, piece_bytes: int) -> float:
        """Of ``copied_bytes``; the memory has been touched before."""
        size_bytes = copied_bytes(piece_bytes)
        piece = size_bytes if what is Copied.WEIGHTS_IN else piece_bytes
        starts = range(0, size_bytes, piece)
        inside = [self._memory[start : start + piece] for start in starts]
        outside = [self._host[start : start + piece] for start in starts]
        if what is Copied.KV_OUT:
            pairs, stream = list(zip(outside, inside, strict=True)), Stream.COPY_OUT
        else:
            pairs, stream = list(zip(inside, outside, strict=True)), Stream.COPY_IN
        self._copy_s(pairs, stream)
        return self._copy_s(pairs, stream)

    def _copy_s(self, pairs: Sequence[CopyPair], stream: Stream) -> float:
        start_s = time.perf_counter()
        self._device.synchronize(copy_in_batches(self._device, pairs, stream))
        return time.perf_counter() - start_s


def _host_memory(size_bytes: int) -> torch.Tensor:
    fd = create_memfd("aegaeon-copies", size_bytes, flag=_FLAG, prefault=True)
    try:
        return map_fd(fd, size_bytes, writable=True)
    finally:
        os.close(fd)
