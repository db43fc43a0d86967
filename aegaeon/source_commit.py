"""Which commit this code is of, for the provenance of what it measures."""

from __future__ import annotations

import subprocess
from pathlib import Path

_TIMEOUT_S = 10.0


def source_commit(folder: Path = Path(__file__).parent) -> str:
    """The short name of the commit, with ``+`` where files differ from it; empty where this is no checkout."""
    # An environment often lies within somebody else's checkout, which does not track what is installed there.
    tracked = _git(folder, "ls-files", ".")
    commit = tracked and _git(folder, "rev-parse", "--short=10", "HEAD")
    changed = commit and _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):  # there is no git here, or its folder hangs
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
