"""Names for blocks of KV by what they are computed from: equal names, equal KV.

The KV of a token depends on all tokens before it, so the name of a block is a hash of its tokens and of the name of the
block before it, as in vLLM's prefix cache (Kwon et al., SOSP 2023); the first one's follows on a name of the model.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

NAME_BYTES = 16


def root_name(*parts: str) -> bytes:
    """What the first block of a model's sequences follows on. ``parts``: all that such KV depends on but for tokens
    (which weights), and what it is not to be shared over (a salt)."""
    return blake2b(repr(parts).encode(), digest_size=NAME_BYTES).digest()


def packed(token_ids: Sequence[int]) -> bytes:
    """Token ids as bytes, four each."""
    return array("I", token_ids).tobytes()


def next_name(before: bytes, block: bytes) -> bytes:
    """The name of the block of these (packed) tokens that follows on the one called ``before``."""
    return blake2b(before + block, digest_size=NAME_BYTES).digest()


def block_names(before: bytes, token_ids: Sequence[int], block_tokens: int) -> Iterator[bytes]:
    """The names of the whole blocks of a sequence that follow on the one called ``before``, in order."""
    tokens, size = packed(token_ids), 4 * block_tokens
    for start in range(0, len(tokens) - size + 1, size):
        before = next_name(before, tokens[start : start + size])
        yield before
