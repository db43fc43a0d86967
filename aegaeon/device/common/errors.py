"""What can be wrong with a device, or with what is asked of it."""

from __future__ import annotations


class DeviceError(Exception):
    """A rule of the protocol was broken, or the machine refused; the message says what to do about it."""
