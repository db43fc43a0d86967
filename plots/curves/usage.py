"""What a person asked for that cannot be drawn.

Does not know: how it is shown.
"""

from __future__ import annotations


class PlotUsageError(Exception):
    """The message says what is wrong, and what to do."""
