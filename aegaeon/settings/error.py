"""A configuration that cannot work."""

from __future__ import annotations


class SettingsError(ValueError):
    """The configuration cannot work. The message names the value, where it came from, and what to do instead."""
