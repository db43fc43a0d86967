"""A node's slab cache that takes prompts for processed: what lies in the KV does not change what a step costs."""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.core.kv_shape import KvShape
from aegaeon.runtime.node.node_kv import NodeKv
from aegaeon.runtime.wire.messages import KvNames

PRETENDED = "decoding-"
"""What the ids of such requests begin with."""


class PretendedKv(NodeKv):
    """Finds the KV of all tokens but the last, which is fed for the next to be sampled."""

    def open(self, key: str, model: str, shape: KvShape, names: KvNames, token_ids: Sequence[int]) -> int:
        kv_tokens = super().open(key, model, shape, names, token_ids)
        if not key.startswith(PRETENDED):
            return kv_tokens
        self.extend(key, len(token_ids))
        return len(token_ids) - 1
