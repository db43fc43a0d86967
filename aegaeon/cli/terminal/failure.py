"""What a person sees when a command fails."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path

DEBUG_VARIABLE = "AEGAEON_DEBUG"


class ReportedBugError(Exception):
    """A bug in another process of the command, which has told the operator."""


def report_mistake(error: Exception) -> None:
    """One line per problem, no traceback; the traceback too where debugging."""
    _traceback_if_debugging(error)
    sys.stderr.write(f"aegaeon: {error}\n")


def report_bug(error: Exception) -> None:
    """A short message and where the traceback is: in the log file, else in a file of its own."""
    _traceback_if_debugging(error)
    file = _log_file() or _crash_file()
    if file.name.startswith("aegaeon-crash-"):
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    else:
        logging.getLogger("aegaeon").critical("unexpected error", exc_info=error)
    sys.stderr.write(
        f"aegaeon: unexpected {type(error).__name__}: {error}\n"
        f"This is a bug. The traceback is in {file}; {DEBUG_VARIABLE}=1 shows it here.\n"
    )


def _traceback_if_debugging(error: Exception) -> None:
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error)


def _log_file() -> Path | None:
    """The file that the log goes to, if it goes to one."""
    handlers = (handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler))
    return next((Path(handler.baseFilename) for handler in handlers), None)


def _crash_file() -> Path:
    descriptor, name = tempfile.mkstemp(prefix="aegaeon-crash-", suffix=".log")
    os.close(descriptor)
    return Path(name)
