"""A stretch of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from aegaeon.device.common.errors import DeviceError


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes ``[address, address + size_bytes)`` of the process."""

    address: int
    size_bytes: int

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.address + self.size_bytes

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        """The bytes of a tensor; ``DeviceError`` where they are not in one piece."""
        if not tensor.is_contiguous():
            raise DeviceError(f"a tensor of strides {tensor.stride()} is not contiguous: move it piece by piece")
        return cls(tensor.data_ptr(), tensor.nbytes)

    def overlaps(self, other: Span) -> bool:
        """Whether a byte is in both."""
        return max(self.address, other.address) < min(self.end, other.end)


def copy_spans(destination: torch.Tensor, source: torch.Tensor) -> tuple[Span, Span]:
    """The bytes that a copy writes and reads, after checking that it is one the protocol allows."""
    if destination.shape != source.shape or destination.dtype != source.dtype:
        raise DeviceError(
            f"cannot copy {source.dtype}{list(source.shape)} into {destination.dtype}{list(destination.shape)}: "
            f"view both with one shape and dtype"
        )
    written, read = Span.of(destination), Span.of(source)
    if written.overlaps(read):
        raise DeviceError("source and destination of a copy overlap: copy through other memory")
    return written, read
