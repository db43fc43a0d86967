"""Where the latency profiles are that come with the package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]


def shipped_profiles() -> Path:
    """The folder of the project's profiles: within the installed package, or beside it in the source tree."""
    installed = _PACKAGE / "data" / "profiles"
    return installed if installed.is_dir() else _PACKAGE.parent / "profiles"
