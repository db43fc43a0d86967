"""What a person asked for that cannot be done.

Does not know: how it is shown.
"""

from __future__ import annotations


class BenchmarkUsageError(Exception):
    """The message says what is wrong, and what to do."""
