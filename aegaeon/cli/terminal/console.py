"""Rich consoles that do not fold tables where nobody reads them."""

from __future__ import annotations

from rich.console import Console

_PIPE_WIDTH = 160  # a pipe has no width


def make_console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPE_WIDTH)
