"""Names for blocks of KV by what they are computed from: equal names, equal KV.

The KV of a token depends on all tokens before it, so the name of a block is a hash of its tokens and of the name of the
block before it, as in vLLM's prefix cache (Kwon et al., SOSP 2023); the first one's follows on a name of the model.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

NAME_BYTES = 16


def root_name(model: str) -> bytes:
    """What the first block of a model's sequences follows on."""
    return blake2b(model.encode(), digest_size=NAME_BYTES).digest()


def next_name(before: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of the block of these tokens that follows on the one called ``before``."""
    return blake2b(before + array("Q", token_ids).tobytes(), digest_size=NAME_BYTES).digest()


def block_names(before: bytes, token_ids: Sequence[int], block_tokens: int) -> Iterator[bytes]:
    """The names of the whole blocks of a sequence that follow on the one called ``before``, in order."""
    for start in range(0, len(token_ids) - block_tokens + 1, block_tokens):
        before = next_name(before, token_ids[start : start + block_tokens])
        yield before
