"""What has been measured so far, in a file beside the profile: a line is added after each point, so a rerun goes on.

The first line says what is measured (``{"format": .., "subject": {..}}``); each other one is
``{"point": "decode 8x256", "round": 0, "seconds": 0.0123}``. A last line that was cut off by a crash is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from aegaeon.profiling.errors import ProfilingError
from aegaeon.profiling.point import Point

_FORMAT = "aegaeon-measurements-1"


class Journal:
    """Seconds by point and round."""

    def __init__(self, path: Path, seconds: dict[tuple[str, int], float]) -> None:
        self._path = path
        self._seconds = seconds

    @classmethod
    def open(cls, path: Path, subject: Mapping[str, Any], *, fresh: bool = False) -> Self:
        """Go on with the file where it is about the same subject; else (or ``fresh``) begin it anew.

        Raises ``ProfilingError`` where the file cannot be written.
        """
        header = {"format": _FORMAT, "subject": dict(subject)}
        seconds = {} if fresh else _read(path, header)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f"{path.name}.part")
            lines = [json.dumps(header), *(_line(*key, value) for key, value in seconds.items())]
            draft.write_text("".join(f"{line}\n" for line in lines), "utf-8")
            draft.replace(path)
        except OSError as error:
            raise ProfilingError(f"cannot write the measurements to {path}: {error.strerror}") from error
        return cls(path, seconds)

    def __contains__(self, key: tuple[Point, int]) -> bool:
        point, turn = key
        return (point.name, turn) in self._seconds

    def add(self, point: Point, turn: int, seconds: float) -> None:
        """Note what was measured of a point in one round."""
        self._seconds[point.name, turn] = seconds
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(point.name, turn, seconds) + "\n")

    def seconds(self, point: Point) -> float | None:
        """Lower quartile over the rounds (what disturbs a machine only ever adds time); None if it was not measured."""
        values = sorted(value for (name, _), value in self._seconds.items() if name == point.name)
        return values[(len(values) - 1) // 4] if values else None


def _line(point: str, turn: int, seconds: float) -> str:
    return json.dumps({"point": point, "round": turn, "seconds": seconds})


def _read(path: Path, header: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """What a file about the same subject holds; nothing where there is none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    entries = list(map(_parse, lines))
    if not entries or entries[0] != json.loads(json.dumps(header)):
        return {}
    return {
        (str(entry["point"]), int(entry["round"])): float(entry["seconds"])
        for entry in entries[1:]
        if entry is not None and {"point", "round", "seconds"} <= entry.keys()
    }


def _parse(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
