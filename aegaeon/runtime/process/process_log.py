"""The log of a process of a pool: everything it says, down to the last words of a crash, in one file.

Its records, its uncaught exceptions and what native code writes to standard error go to the same place: the operator's
log file, or a file of the process's own that the service reads (``log_reader``), or, in somebody else's Ray, standard
error, which Ray brings to the service.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from aegaeon.core.config import PoolConfig
from aegaeon.core.service import ServiceError
from aegaeon.runtime.process.run_folder import RunFolder

CONTINUED = "    "
"""What the further lines of a record begin with; other lines without a head were not written by the log."""


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where processes log to. ``file``: all to it; else ``folder``: each to its own file in it; else standard error."""

    file: Path | None = None
    folder: Path | None = None
    level: int = logging.INFO

    def of(self, process: str) -> Path | None:
        """The file of a process."""
        if self.file is not None:
            return self.file
        return None if self.folder is None else self.folder / f"{process}.log"


def place_logs(config: PoolConfig, folder: RunFolder, level: int) -> LogPlace:
    """Where the processes of a service log to. ``level``: the least of our own messages that is logged.

    A Ray that is not ours may be on other machines, and brings us what its processes write to standard error: warnings.
    """
    if config.ray_address is None or config.log_file is not None:
        return LogPlace(config.log_file, folder.logs, level)
    return LogPlace(level=logging.WARNING)


class ProcessFormatter(logging.Formatter):
    """Says which process speaks, and indents the further lines of a record."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process}[%(process)d] %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record's text; tracebacks too are indented."""
        return super().format(record).replace("\n", "\n" + CONTINUED)


def begin_process_log(process: str, place: LogPlace) -> None:
    """Send everything that this process says to its place, from now on.

    Raises ``ServiceError`` where the file cannot be written.
    """
    file = place.of(process)
    if file is not None:
        _redirect(file)
    else:
        os.dup2(2, 1)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ProcessFormatter(process))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("aegaeon").setLevel(place.level)
    logging.captureWarnings(True)  # such as the loader's, where there are no huge pages
    faulthandler.enable()


def _redirect(file: Path) -> None:
    """Standard output and error become ``file``: native code knows no other way to say why it ends the process."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ServiceError(f"cannot write the log {file}: {error.strerror}; choose another --log-file") from error
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
