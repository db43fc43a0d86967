"""A whole block of KV as it is kept in a file of its own.

::

    | magic, version | bytes of tokens, of KV | name | name of the block before | tokens | KV | CRC-32 of all before |

All but the KV is known to whoever looks for a block: a file with another beginning is of something else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

FORMAT = 1
"""Another one for another order of what is in a file, or in a block."""

_MAGIC = b"aegaeon KV\n" + bytes([FORMAT])
_SIZES = struct.Struct("<II")
CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """What a block holds (``name``, after what is called ``before``: its packed ``tokens``), and where its bytes are in
    the slab cache, or are to be."""

    name: bytes
    before: bytes
    tokens: bytes
    offset: int
    size_bytes: int

    @property
    def header(self) -> bytes:
        """The beginning of its file, before the KV."""
        return _MAGIC + _SIZES.pack(len(self.tokens), self.size_bytes) + self.name + self.before + self.tokens

    @property
    def file_bytes(self) -> int:
        """The size of its file."""
        return len(self.header) + self.size_bytes + CHECKSUM.size
