"""What goes wrong while profiling."""

from __future__ import annotations


class ProfilingError(Exception):
    """Something cannot be measured, or does not make a profile; the message says why and what to do."""
