"""What people get wrong about latency profiles, told so that they can mend it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher


class LatencyError(ValueError):
    """A profile, a measurement file or a model description that cannot be used; the message says what to do."""


class UnknownNameError(LatencyError):
    """No model or device of that name; the message lists those there are, the likest first."""

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "") -> None:
        listed = ", ".join(nearest_first(name, known)) or "none"
        super().__init__(f"no {kind} is called {name!r}{where}; there are: {listed}")


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """The known names, those most like ``name`` first."""
    wanted = plain(name)
    return sorted(known, key=lambda other: (-SequenceMatcher(None, wanted, plain(other)).ratio(), other))


def plain(name: str) -> str:
    """Letters and digits of a name: ``Qwen/Qwen2.5-7B``, ``qwen2_5_7b`` and ``qwen2.5-7b`` are the same model."""
    return re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].lower())
