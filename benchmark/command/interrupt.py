"""Ctrl-C and its relatives: one way out, and none out of what must not be left half done."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

Handlers = dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None]


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C meanwhile: what follows is bounded in time, and must not be left half done."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_to_end(body: Callable[[], int]) -> int:
    """Run a command; its exit code, 130 where it was interrupted: then the process is about to end, and stays deaf.

    Meanwhile SIGTERM and SIGHUP (but for ``nohup``) end it as Ctrl-C does: through its ``finally`` blocks. Shells start
    background jobs deaf to Ctrl-C; a command always hears it.
    """
    handlers: Handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _interrupt}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handlers[signal.SIGHUP] = _interrupt
    after = _set(handlers)
    try:
        return body()
    except KeyboardInterrupt:
        after = dict.fromkeys(handlers, signal.SIG_IGN)  # who asks once more need not be told by a traceback
        _set(after)
        sys.stderr.write("interrupted\n")
        return 130
    finally:
        _set(after)


def _set(handlers: Handlers) -> Handlers:
    """Set handlers; those that were there before."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)
