"""What a service's supervisor and its two child processes say to each other, over a socket pair.

A frame is ``| length: u32 | pickle |``. What only the other child can read, since reading it takes torch, travels as
bytes within. Importing this imports nothing heavy.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
import threading
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from aegaeon.core.config import PoolConfig
from aegaeon.core.service import ServiceReport
from aegaeon.runtime.process.process_log import LogPlace

BEAT_S = 1.0
_LENGTH = struct.Struct("<I")


# --- supervisor -> child --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BeginPool:
    """Start Ray, drivers and instances; ``folder`` is the service's own, ``logs`` says where its processes log to.

    ``models``: what the pool before this one had found, and servers go by; None for the first.
    """

    config: PoolConfig
    folder: Path
    logs: LogPlace
    models: bytes | None = None


@dataclass(frozen=True, slots=True)
class BeginServer:
    """Serve HTTP at the descriptor that came with the process, which is ``url`` for clients."""

    config: PoolConfig
    url: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End in an orderly way: a server lets running requests finish first, as long as the configuration allows."""


# --- pool -> supervisor -> server -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelsReady:
    """What the pool serves: pickled ``PreparedModel``s."""

    models: bytes


@dataclass(frozen=True, slots=True)
class NodeUp:
    """A node has a driver, a first or a new one; ``address``: a pickled ``NodeAddress``."""

    node_id: str
    address: bytes


# --- child -> supervisor --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """A line for whoever started the service."""

    report: ServiceReport


@dataclass(frozen=True, slots=True)
class Beat:
    """The child's loop turns."""


class EndKind(Enum):
    """``MISTAKE``: the operator can mend it. ``DEATHS``: others died under it too often. ``BUG``: it was shown, and
    its traceback is in a file."""

    MISTAKE = "mistake"
    DEATHS = "deaths"
    BUG = "bug"


@dataclass(frozen=True, slots=True)
class ChildFailed:
    """The child ends, and knows why."""

    message: str
    kind: EndKind


def encode(message: object) -> bytes:
    """A message as a frame."""
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(payload)) + payload


async def read(reader: asyncio.StreamReader) -> Any:
    """The next message, or None where the other side has ended."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return pickle.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class BlockingChannel:
    """A child's end for threads: any of them may send, one of them receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._file = sock.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: object) -> None:
        """Raises ``OSError`` where the supervisor has ended."""
        with self._lock:
            self._socket.sendall(encode(message))

    def receive(self) -> Any:
        """The next message, or None where the supervisor has ended."""
        head = self._file.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        payload = self._file.read(_LENGTH.unpack(head)[0])
        return pickle.loads(payload)
