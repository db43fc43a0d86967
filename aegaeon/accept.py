"""Takes connections from a listening socket.

asyncio's own server, once there are no descriptors left, tries as often as its backlog is long and logs a traceback
each time, again every second.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

RETRY_S = 0.5
TELL_EVERY_S = 60.0


async def accept(listening: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> None:
    """Connect whoever comes, until cancelled; pauses while the system refuses, and says so once a minute at most."""
    loop = asyncio.get_running_loop()
    listening.setblocking(False)
    told_s = float("-inf")
    while True:
        try:
            connection, _ = await loop.sock_accept(listening)
        except ConnectionAbortedError:
            continue  # that client did not wait
        except OSError as error:
            if time.monotonic() - told_s >= TELL_EVERY_S:
                told_s = time.monotonic()
                logger.error("cannot accept connections: %s; clients wait until that is over", error.strerror)
            await asyncio.sleep(RETRY_S)
            continue
        try:
            await loop.connect_accepted_socket(make_protocol, connection)
        except Exception:
            connection.close()
            logger.exception("a connection failed as it was made")
