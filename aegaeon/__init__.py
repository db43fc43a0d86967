"""Aegaeon: many models share few devices by switching between tokens."""

__version__ = "0.1.0"
