"""What a person asked for that cannot be drawn."""

from __future__ import annotations


class PlotUsageError(Exception):
    """The message says what is wrong, and what to do."""
