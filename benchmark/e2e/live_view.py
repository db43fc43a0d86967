"""How a replay goes on, while it does: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from benchmark.e2e.job import ReplayJob
from benchmark.e2e.replay import Replayed

REFRESH_S = 0.25
LINE_EVERY_S = 10.0


@dataclass(slots=True)
class ModelProgress:
    """Requests of one model so far. A request waits until its first token, then runs until its last."""

    planned: int = 0
    sent: int = 0
    started: int = 0
    done: int = 0
    failed: int = 0
    attainment_sum: float = 0.0

    @property
    def waiting(self) -> int:
        return self.sent - self.started

    @property
    def running(self) -> int:
        return self.started - self.done

    @property
    def attainment(self) -> str:
        """Mean attainment of the requests that ended."""
        return f"{self.attainment_sum / self.done:.1%}" if self.done else "-"


class ReplayProgress:
    """Counts of a replay, per model; an observer of it."""

    def __init__(self, jobs: Iterable[ReplayJob]) -> None:
        self._models: dict[str, ModelProgress] = {}
        self._started: set[str] = set()
        for job in jobs:
            self._models.setdefault(job.model, ModelProgress()).planned += 1

    def sent(self, job: ReplayJob) -> None:
        self._models[job.model].sent += 1

    def first_token(self, job: ReplayJob) -> None:
        self._started.add(job.request_id)
        self._models[job.model].started += 1

    def done(self, job: ReplayJob, reply: Replayed) -> None:
        model = self._models[job.model]
        model.started += job.request_id not in self._started
        model.done += 1
        model.failed += reply.record.error is not None
        model.attainment_sum += reply.record.slo_attainment

    @property
    def total(self) -> ModelProgress:
        """All models together."""
        total = ModelProgress()
        for model in self._models.values():
            for name in ModelProgress.__slots__:
                setattr(total, name, getattr(total, name) + getattr(model, name))
        return total

    def table(self) -> Table:
        """One row per model and one for all."""
        table = Table(title="requests", show_footer=True, box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("model", "all")
        rows = [self._cells(model) for model in self._models.values()]
        for index, heading in enumerate(("requests", "waiting", "running", "done", "failed", "on time")):
            table.add_column(heading, self._cells(self.total)[index], justify="right")
        for name, cells in sorted(zip(self._models, rows, strict=True)):
            table.add_row(name, *cells)
        return table

    @staticmethod
    def _cells(model: ModelProgress) -> tuple[str, ...]:
        counts = (model.planned, model.waiting, model.running, model.done, model.failed)
        return (*map(str, counts), model.attainment)

    def line(self) -> str:
        """All models in one line."""
        total = self.total
        return (
            f"{total.done} of {total.planned} requests done, {total.waiting} waiting, {total.running} running, "
            f"{total.failed} failed, attainment {total.attainment}"
        )


@contextlib.asynccontextmanager
async def showing(
    console: Console, table: Callable[[], RenderableType], line: Callable[[], str], live: bool
) -> AsyncIterator[None]:
    """Show how it goes while the body runs: ``table`` where ``live``, else ``line`` every ten seconds."""
    async with beside(_show_live(console, table) if live else _print_lines(console, line)):
        yield


@contextlib.asynccontextmanager
async def beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Have ``work`` done while the body runs, and no longer."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _show_live(console: Console, table: Callable[[], RenderableType]) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(table(), refresh=True)
            await asyncio.sleep(REFRESH_S)


async def _print_lines(console: Console, line: Callable[[], str]) -> None:
    while True:
        await asyncio.sleep(LINE_EVERY_S)
        console.print(line(), soft_wrap=True)
