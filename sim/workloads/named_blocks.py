"""What must hold of the names of blocks in a workload."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from aegaeon.workload import NamedBlocks


def require_names(contents: Iterable[NamedBlocks]) -> None:
    """Raise ``ValueError`` where an id stands for two things: it follows on one id here and on another there."""
    longest: defaultdict[str, dict[int, tuple[int, int]]] = defaultdict(dict)  # by scope, first id: (id before, count)
    for content in contents:
        runs, before = longest[content.scope], -1
        for first, count in content.runs:
            known_before, known = runs.get(first, (before, count))
            if known_before != before:
                raise _two_things(content.scope, first)
            runs[first] = before, max(count, known)
            before = first + count - 1
    for scope, runs in longest.items():
        end = 0  # of all runs that begin before
        for first, (before, count) in sorted(runs.items()):
            if first < end and before != first - 1:
                raise _two_things(scope, first)
            end = max(end, first + count)


def _two_things(scope: str, block: int) -> ValueError:
    where = f" of {scope}" if scope else ""
    return ValueError(f"block {block}{where} follows on one block here and on another there")
