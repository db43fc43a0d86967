"""A node's slab cache that takes prompts for processed: what lies in the KV does not change what a step costs."""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.core.kv_shape import KvShape
from aegaeon.runtime.node.node_kv import NodeKv

PRETENDED = "decoding-"
"""What the ids of such requests begin with."""


class PretendedKv(NodeKv):
    """Finds the KV of all tokens but the last, which is fed for the next to be sampled."""

    def adopt(self, key: str, shape: KvShape, model: str, token_ids: Sequence[int]) -> int:
        kv_tokens = super().adopt(key, shape, model, token_ids)
        if not key.startswith(PRETENDED):
            return kv_tokens
        self.extend(key, len(token_ids))
        return len(token_ids) - 1
