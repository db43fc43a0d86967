"""Memory that a step uses again and again.

Fresh large tensors cost more in page faults than the work done in them.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Named flat buffers that grow; the one taken last under a name is overwritten by the next."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, elements: int, dtype: torch.dtype) -> Tensor:
        """A buffer of at least ``elements`` elements, with undefined contents."""
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < elements:
            buffer = torch.empty(1 << max(0, elements - 1).bit_length(), dtype=dtype)
            self._buffers[name, dtype] = buffer
        return buffer

    def release(self) -> None:
        """Give all memory back."""
        self._buffers.clear()
