"""Where what is made once and kept for later runs goes, unless the operator says otherwise."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path


def default_cache_dir(environment: Mapping[str, str]) -> Path | None:
    """``aegaeon`` in ``$XDG_CACHE_HOME``, else in ``.cache`` of the home folder; None where there is no such place: a
    home folder that does not exist is not made."""
    given = environment.get("XDG_CACHE_HOME", "")
    if given.startswith("/"):  # its specification: relative ones are to be ignored
        return Path(given) / "aegaeon"
    home = home_folder(environment)
    return home / ".cache" / "aegaeon" if home is not None and home.is_dir() else None


def home_folder(environment: Mapping[str, str]) -> Path | None:
    """The user's home folder as programs find it: ``$HOME``, else as the system knows it; None where there is none."""
    home = environment.get("HOME")
    if home is None:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return Path(home) if home.startswith("/") else None
