"""The simulator's own errors."""

from __future__ import annotations


class SimulationError(Exception):
    """A command that cannot be carried out: a bug in a scheduler or a layout, never a matter of load."""


class InputError(ValueError):
    """An option, a file or a value that nothing can be simulated from; the message says what to do."""
