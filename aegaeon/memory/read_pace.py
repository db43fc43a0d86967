"""How long reading from a disk takes, by what the last reads took."""

from __future__ import annotations

_FIRST_S_PER_BYTE = 1 / (1 << 30)  # until something was read
_NEWEST = 0.3  # what the last read counts
_HOPE = 0.95


class ReadPace:
    """A mean in which what is long ago counts less and less."""

    def __init__(self) -> None:
        self._s_per_byte: float = _FIRST_S_PER_BYTE
        self._measured = False

    def seconds(self, size_bytes: int) -> float:
        """What so many bytes will take."""
        return size_bytes * self._s_per_byte

    def note(self, size_bytes: int, took_s: float) -> None:
        """A read has taken so long."""
        newest = _NEWEST if self._measured else 1.0
        self._s_per_byte += newest * (took_s / size_bytes - self._s_per_byte)
        self._measured = True

    def hope(self) -> None:
        """Nothing was read since that takes too long: it may not for ever, and only another read would show."""
        self._s_per_byte *= _HOPE
