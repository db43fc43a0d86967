"""JSON files that somebody else wrote: what is wrong with one is told in a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plots.curves.usage import PlotUsageError


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turns what a wrong shape raises into ``PlotUsageError``."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PlotUsageError(f"{path} has no usable {what} ({error!r}); make it again, or move it away") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a record file. Raises ``PlotUsageError``."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PlotUsageError(f"{path} cannot be read: {error}; make it again, or move it away") from None
    if not isinstance(content, dict):
        raise PlotUsageError(f"{path} is not a record file: an object is expected at the top; move it away")
    return content
