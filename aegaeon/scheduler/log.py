"""The log of a run: what happened, when, and what the scheduler said, one JSON object a line.

A line is ``{"now_s": ..., "event": {"type": "TurnEnded", ...}, "commands": [{"type": "StartTurn", ...}, ...]}``; what
is written is read back equal. A run's log fed to a fresh scheduler of the same policy, models, costs and limits must
give the same commands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from aegaeon.core.command import Command
from aegaeon.core.event import Event
from aegaeon.scheduler.scheduler import Scheduler

_EVENTS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(Event)}
_COMMANDS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(Command)}


class LogError(ValueError):
    """A line is not one of a scheduler log."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One call of ``Scheduler.handle`` and its result."""

    now_s: float
    event: Event
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a replay gave other commands than the log; ``index`` counts entries from 0."""

    index: int
    entry: LogEntry
    commands: tuple[Command, ...]


class LoggingScheduler:
    """A ``Scheduler`` that passes each call, as a line of the log without its line end, to ``sink``."""

    def __init__(self, scheduler: Scheduler, sink: Callable[[str], object]) -> None:
        self._scheduler = scheduler
        self._sink = sink

    def handle(self, event: Event, now_s: float) -> list[Command]:
        commands = self._scheduler.handle(event, now_s)
        self._sink(encode(LogEntry(now_s, event, tuple(commands))))
        return commands


def encode(entry: LogEntry) -> str:
    """The entry as a line, without its line end."""
    commands = [_tagged(command) for command in entry.commands]
    line = {"now_s": entry.now_s, "event": _tagged(entry.event), "commands": commands}
    return json.dumps(line, separators=(",", ":"))


def decode(line: str) -> LogEntry:
    """The entry of a line. Raises ``LogError``."""
    try:
        plain = json.loads(line)
        commands = tuple(_untagged(command, _COMMANDS) for command in plain["commands"])
        return LogEntry(plain["now_s"], _untagged(plain["event"], _EVENTS), commands)
    except (KeyError, TypeError, ValueError) as error:
        raise LogError(f"not a line of a scheduler log ({error!r}): {line[:200]}") from error


def replay(log: Iterable[LogEntry], scheduler: Scheduler) -> Divergence | None:
    """Feed a log to a fresh scheduler; returns the first entry that it answers otherwise, None if there is none."""
    for index, entry in enumerate(log):
        commands = tuple(scheduler.handle(entry.event, entry.now_s))
        if commands != entry.commands:
            return Divergence(index, entry, commands)
    return None


def _tagged(value: Any) -> dict[str, Any]:
    return {"type": type(value).__name__, **_plain(value)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _untagged(plain: dict[str, Any], kinds: Mapping[str, type]) -> Any:
    members = dict(plain)
    return _typed(kinds[members.pop("type")], members)


def _typed(hint: Any, plain: Any) -> Any:
    if get_origin(hint) is tuple:
        return _typed_tuple(get_args(hint), plain)
    if NoneType in get_args(hint):
        (hint,) = (option for option in get_args(hint) if option is not NoneType)
        return None if plain is None else _typed(hint, plain)
    if is_dataclass(hint):
        return _built(hint, plain)
    return hint(plain) if issubclass(hint, Enum) else plain


def _built(kind: Any, plain: dict[str, Any]) -> Any:
    hints = _hints(kind)
    return kind(**{name: _typed(hints[name], value) for name, value in plain.items()})


def _typed_tuple(hints: tuple[Any, ...], plain: list[Any]) -> tuple[Any, ...]:
    if hints[-1] is Ellipsis:
        return tuple(_typed(hints[0], item) for item in plain)
    return tuple(_typed(hint, item) for hint, item in zip(hints, plain, strict=True))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
