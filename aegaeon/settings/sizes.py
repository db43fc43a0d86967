"""Byte sizes and counts as people write them."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}ib": 1 << 10 * power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", re.ASCII)


def parse_bytes(value: object) -> int:
    """Bytes of ``4GiB``, ``1.5 GB``, ``4096``; raises ``ValueError`` for anything else.

    KiB, MiB, GiB, TiB are powers of 1024; KB, MB, GB, TB powers of 1000. A bare ``4G`` is refused: it means both.
    """
    match = None if isinstance(value, bool) else _SIZE.fullmatch(str(value).strip())
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError("must be a size such as 512MiB, 4GiB, 4GB or a number of bytes")
    return (
        int(float(match[1]) * _UNITS[match[2].lower()]) if "." in match[1] else int(match[1]) * _UNITS[match[2].lower()]
    )


def format_bytes(count: int) -> str:
    """``count`` bytes in the largest binary unit that leaves at least one: ``1.5 GiB``."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(size) >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if size == int(size) else f"{size:.1f} {units[0]}"


def format_count(count: int) -> str:
    """``count`` as models are named: ``7.62B``, ``135M``."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
