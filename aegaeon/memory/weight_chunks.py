"""The unit in which the host weight cache gives memory to models: each takes whole chunks."""

from __future__ import annotations

from collections.abc import Iterable

SMALL_CHUNK_BYTES = 2 << 20  # a huge page: small models waste little
LARGE_CHUNK_BYTES = 16 << 20  # in a large arena chunks are counted in thousands
_SMALL_ARENA_BYTES = 16 << 30


def chunk_bytes(capacity_bytes: int) -> int:
    """The unit of a cache of this capacity."""
    return SMALL_CHUNK_BYTES if capacity_bytes <= _SMALL_ARENA_BYTES else LARGE_CHUNK_BYTES


def whole_chunks(size_bytes: int, chunk: int) -> int:
    """What so many bytes take."""
    return -(-size_bytes // chunk) * chunk


def capacity_for(sizes_bytes: Iterable[int]) -> int:
    """The smallest cache that holds models of all these sizes at once."""
    sizes = tuple(sizes_bytes)
    small = sum(whole_chunks(size, SMALL_CHUNK_BYTES) for size in sizes)
    if chunk_bytes(small) == SMALL_CHUNK_BYTES:
        return small
    return sum(whole_chunks(size, LARGE_CHUNK_BYTES) for size in sizes)
