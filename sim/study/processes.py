"""Calls on all cores. Ctrl-C, and whatever else ends the caller, ends them at once."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_in_processes(
    run: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Every item with what ``run`` makes of it, as they come; they are begun in their order. ``run`` is pickled."""
    if workers <= 1 or len(items) <= 1:
        yield from ((item, run(item)) for item in items)
        return
    context = multiprocessing.get_context("fork")  # whatever was read before is shared
    with ProcessPoolExecutor(min(workers, len(items)), context, initializer=_leave_interrupts) as pool:
        futures = {pool.submit(run, item): item for item in items}
        try:
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _leave_interrupts() -> None:
    """Ctrl-C is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
