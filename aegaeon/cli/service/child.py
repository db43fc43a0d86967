"""A child process of a service as its supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from aegaeon.cli.service.channel import BEAT_S, Beat, ChildFailed, encode, read

# Longer than anything that keeps a loop busy. Between its first sign of life and the next one a process imports all
# that it needs, on a crowded machine beside others that do the same.
STUCK_S, IMPORTING_S = 30.0, 300.0
_CODE = "import sys; sys.path[:] = {path!r}; from aegaeon.cli.service.child_main import main; main({arguments})"


class Child:
    """The process ``aegaeon-NAME``, which runs ``module.run(channel, begin, *inherited)``. ``failure``: what it said of
    its end, if anything."""

    def __init__(self, name: str, module: str, inherited: Sequence[int] = ()) -> None:
        """Start it in a session of its own: Ctrl-C at the terminal is its supervisor's matter. Raises ``OSError``."""
        self._socket, theirs = socket.socketpair()
        arguments = ", ".join(map(repr, (module, theirs.fileno(), os.getpid(), *inherited)))
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(self._socket.close)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE.format(path=sys.path, arguments=arguments), f"aegaeon-{name}"],
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output is for the line that programs wait for
                pass_fds=(theirs.fileno(), *inherited),
                start_new_session=True,
            )
            undo.pop_all()
        self._writer: asyncio.StreamWriter | None = None
        self._unsent: list[object] = []
        self._heard_s = time.monotonic()
        self._beats = 0
        self._stuck = False
        self._ended = asyncio.Event()
        self.failure: ChildFailed | None = None
        self.up_s: float | None = None  # since when it does what it is there for

    @property
    def pid(self) -> int:
        return self._process.pid

    def note_up(self) -> None:
        """It has come up; being told again changes nothing."""
        self.up_s = self.up_s or time.monotonic()

    def send(self, message: object) -> None:
        """A message to a child that has ended is dropped."""
        if self._writer is None:
            self._unsent.append(message)
        else:
            self._writer.write(encode(message))

    async def follow(self, take: Callable[[object], None]) -> str:
        """Hand on what it says until it has ended; in words, how that was. One that is stuck is killed."""
        reader, self._writer = await asyncio.open_connection(sock=self._socket)
        for message in self._unsent:
            self.send(message)
        watching = asyncio.create_task(self._kill_if_stuck())
        try:
            while (message := await read(reader)) is not None:
                match message:
                    case Beat():
                        self._heard_s = time.monotonic()
                        self._beats += 1
                    case ChildFailed():
                        self.failure = message
                    case _:
                        take(message)
            code = await asyncio.to_thread(self._process.wait)
        finally:
            watching.cancel()
            self._writer.close()
            self._ended.set()
        if self._stuck:
            return f"it did not answer for {self._patience_s:.0f} s and was killed"
        return self.failure.message if self.failure else _describe(code)

    async def ended(self) -> None:
        """Returns when the process has ended."""
        await self._ended.wait()

    def kill(self) -> None:
        """Now; it is gone when this returns."""
        self._process.kill()
        self._process.wait()

    @property
    def _patience_s(self) -> float:
        return STUCK_S if self._beats > 1 else IMPORTING_S

    async def _kill_if_stuck(self) -> None:
        while time.monotonic() - self._heard_s < self._patience_s:
            asleep_s = time.monotonic()
            await asyncio.sleep(BEAT_S)
            if time.monotonic() - asleep_s > 2 * BEAT_S:
                self._heard_s = max(self._heard_s, time.monotonic())  # it was us who stood still: its beats wait unread
        self._stuck = True
        self._process.kill()


def _describe(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}"
    return f"it was killed by {signal.Signals(-code).name}"
