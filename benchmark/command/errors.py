"""What keeps a benchmark from being run."""

from __future__ import annotations


class BenchmarkError(Exception):
    """The message says what is wrong, and what to do."""


class BenchmarkUsageError(BenchmarkError):
    """A person asked for what cannot be done."""
