"""How far a long measurement is: a bar on a terminal, a line for every tenth where nobody watches (a log, a pipe)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Tell = Callable[[int, int, str], None]
"""(done, of how many, what is under way)."""

_LINES = 10


@contextmanager
def progress_on(console: Console, beginning: str) -> Iterator[Tell]:
    """What is told within is shown; ``beginning`` says what is under way until then."""
    if not console.is_terminal:
        console.print(f"{beginning} ...")
        yield _Lines(console).tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(beginning, total=None)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)


class _Lines:
    """Prints the first that it is told, and whenever another tenth is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenths = -1

    def tell(self, done: int, total: int, text: str) -> None:
        tenths = done * _LINES // max(1, total)
        if tenths > self._tenths:
            self._tenths = tenths
            self._console.print(f"{done} of {total}: {text}")
