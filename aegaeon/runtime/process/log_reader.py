"""Reads what a service's processes log into a folder, as it comes, and shows the operator what matters."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aegaeon.core.service import ServiceError
from aegaeon.runtime.process.process_log import CONTINUED

_POLL_S = 0.2
_READ_BYTES = 1 << 20  # of one file at a time
_HEAD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
# Ray's processes write such marks into their output, for its own log.
_RAY_MARK = re.compile(r":(job_id|actor_name|task_name):")


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line, without its end. ``level``: of the record it belongs to; None: the log did not write it."""

    process: str
    text: str
    level: int | None


@dataclass(slots=True)
class _Tail:
    """How far a file was read; ``rest``: a line whose end is not there yet; ``level``: of the record before."""

    offset_bytes: int = 0
    rest: bytes = b""
    level: int | None = None


class LogReader:
    """The lines of every ``*.log`` in a folder, each once, in the order of each file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tails: dict[Path, _Tail] = {}

    def read(self) -> Iterator[LogLine]:
        """What is new."""
        for file in sorted(self._folder.glob("*.log")):
            tail = self._tails.setdefault(file, _Tail())
            while chunk := _read(file, tail.offset_bytes):
                tail.offset_bytes += len(chunk)
                *lines, tail.rest = (tail.rest + chunk).split(b"\n")
                yield from self._lines(file.stem, tail, lines)

    def finish(self) -> Iterator[LogLine]:
        """What is new, and lines that never got an end."""
        yield from self.read()
        for file, tail in self._tails.items():
            if tail.rest:
                yield from self._lines(file.stem, tail, [tail.rest])
                tail.rest = b""

    def _lines(self, process: str, tail: _Tail, lines: list[bytes]) -> Iterator[LogLine]:
        for line in lines:
            text = line.decode(errors="replace")
            if not text.strip() or _RAY_MARK.match(text):
                continue
            head = _HEAD.match(text)
            if head:
                tail.level = logging.getLevelNamesMapping()[head[1]]
            elif not text.startswith(CONTINUED):
                tail.level = None
            yield LogLine(process, text, tail.level)


def _read(file: Path, offset_bytes: int) -> bytes:
    try:
        with file.open("rb") as opened:
            opened.seek(offset_bytes)
            return opened.read(_READ_BYTES)
    except OSError:  # the folder goes away at the end
        return b""


class LogWatch:
    """Shows warnings, errors and what was not written by the log as they come; a context manager.

    ``show`` gets lines for the operator, on a thread of the watch's own. ``trouble`` is whether there were any but
    warnings, or the block raised anything but a plain ``ServiceError``, which says itself what there is to know.
    """

    def __init__(self, folder: Path, show: Callable[[str], None]) -> None:
        self._reader = LogReader(folder)
        self._show = show
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="log-watch", daemon=True)
        self.trouble = False

    def __enter__(self) -> LogWatch:
        self._thread.start()
        return self

    def __exit__(self, raised: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._take(self._reader.finish())
        self.trouble |= raised is not None and issubclass(raised, Exception) and raised is not ServiceError

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            self._take(self._reader.read())

    def _take(self, lines: Iterator[LogLine]) -> None:
        for line in lines:
            if line.level is None or line.level >= logging.WARNING:
                self._show(line.text if line.level is not None else f"{line.process}: {line.text}")
            self.trouble |= line.level is None or line.level >= logging.ERROR
