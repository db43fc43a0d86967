"""What the models of an instance share on a device: attention, graphs, and the memory for those."""

from __future__ import annotations

from pathlib import Path

import torch

from aegaeon.core.kv_shape import KvShape
from aegaeon.device.common.graphs import GraphCapture
from aegaeon.engine.attention.attend_flashinfer import FlashInferAttention
from aegaeon.engine.attention.attend_gather import GatherAttention
from aegaeon.engine.attention.attend_triton import TritonAttention
from aegaeon.engine.attention.attend_varlen import VarlenAttention
from aegaeon.engine.attention.device_attention import AttentionBackend, DeviceAttention
from aegaeon.engine.step.device_runner import DeviceRunner
from aegaeon.engine.step.graph_shelf import GraphShelf
from aegaeon.engine.step.model import Model

GRAPH_BYTES = 2 << 30


class DeviceEngine:
    """Makes runners for models on ``device``; without ``capture`` they use no graphs."""

    def __init__(
        self, device: torch.device, capture: GraphCapture | None = None, graph_bytes: int = GRAPH_BYTES
    ) -> None:
        self.device = device
        self.attention = DeviceAttention(device_backends(device))
        self.shelf = GraphShelf(graph_bytes)
        self._capture = capture

    def runner(self, path: Path, kv_shape: KvShape, dtype: str, max_context_tokens: int) -> DeviceRunner:
        """A model without weights, ready to be bound. Raises ``ModelError`` where it does not build."""
        model = Model(path, dtype=dtype, max_context_tokens=max_context_tokens, device=self.device)
        return DeviceRunner(model, kv_shape, self.attention, max_context_tokens, self._capture, self.shelf)


def device_backends(device: torch.device) -> list[AttentionBackend]:
    """The backends in the order in which they are tried; gathering takes everything."""
    if device.type != "cuda":
        return [GatherAttention()]
    return [VarlenAttention(device), FlashInferAttention(device), TritonAttention(), GatherAttention()]
