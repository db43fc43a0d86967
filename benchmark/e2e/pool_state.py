"""What runs where, as ``GET /admin/state`` tells it, for people to watch."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from benchmark.e2e.live_view import ReplayProgress, beside

POLL_S = 0.25


class PoolState:
    """The latest known state of a pool; empty until ``watched`` has seen one."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._instances: list[dict[str, Any]] = []
        self._models: list[str] = []

    def watched(self) -> AbstractAsyncContextManager[None]:
        """Keep looking while the body runs."""
        return beside(self._watch())

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError):  # what was last known is shown on
                response = await self._client.get("/admin/state")
                if response.status_code == httpx.codes.OK:
                    state = response.json()
                    self._instances, self._models = state["instances"], list(state["models"])
            await asyncio.sleep(POLL_S)

    def view(self, progress: ReplayProgress) -> Group:
        """The instances, and the requests below."""
        return Group(self.table(), progress.table())

    def table(self) -> Table:
        """One row per instance."""
        table = Table(title="instances", box=SIMPLE_HEAD, pad_edge=False)
        longest = max(map(len, self._models), default=0)  # fixed widths, so that nothing jumps about
        table.add_column("instance")
        table.add_column("state", min_width=len("starting"))
        table.add_column("runs", min_width=longest)
        table.add_column("on the device", min_width=2 * longest + 2)
        table.add_column("requests", justify="right")
        for instance in self._instances:
            resident = ", ".join(instance["resident"])
            cells = (instance["id"], instance["state"], instance["model"] or "-", resident, str(instance["requests"]))
            table.add_row(*cells)
        return table

    def line(self, progress: ReplayProgress) -> str:
        """ReplayProgress and what runs where, in one line."""
        running = ", ".join(f"{instance['id']} {instance['model'] or 'idle'}" for instance in self._instances)
        return f"{progress.line()} | {running}"
