"""Work for clients that may go away at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from aegaeon.server.http.errors import ShuttingDownError


class RunningRequests:
    """The requests under way; all can be cut off when the server must stop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    async def run(self, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` while the client is there.

        When it goes away the work is cancelled at once, and ``ClientDisconnect`` raised when it has cleaned up.
        After ``abort``: ``ShuttingDownError``. The request's body must have been read to its end.
        """
        task = asyncio.create_task(work)
        gone = asyncio.create_task(_disconnect(receive))
        self._tasks.add(task)
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
        finally:
            self._tasks.discard(task)
            gone.cancel()
            if not task.done():
                task.cancel()
                # Whatever it raises now concerns nobody: its client has gone.
                await asyncio.gather(task, return_exceptions=True)
        if task.cancelled():
            raise ShuttingDownError("The server is shutting down.")
        task.result()

    def abort(self) -> None:
        """Cut off everything under way."""
        for task in self._tasks:
            task.cancel()


async def _disconnect(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
