"""The house as it stands: every package with its files, and which others it imports from.

    python -m tests.architecture.rooms

A room is a folder of modules; an arrow goes from a room to one that it imports from. A back arrow closes a circle of
rooms: then none of them can be read, or changed, without the others. Exit code: 1 where there is one.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import grimp
from rich.console import Console
from rich.table import Table

HOUSES = ("aegaeon", "sim", "benchmark", "plots")

Arrows = Mapping[tuple[str, str], int]


def arrows(graph: grimp.ImportGraph) -> Arrows:
    """(from, to) of rooms, with the number of imports between their modules."""
    counted: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        if module.endswith(".__main__"):
            continue  # a door: it imports from the room that it leads to
        for other in graph.find_modules_directly_imported_by(module):
            ends = _room(module, graph), _room(other, graph)
            if ends[0] != ends[1]:
                counted[ends] += 1
    return counted


def back_arrows(found: Arrows) -> list[tuple[str, str]]:
    """Those that close a circle."""
    nexts: dict[str, set[str]] = defaultdict(set)
    for start, end in found:
        nexts[start].add(end)
    return [(start, end) for start, end in found if start in _reachable(end, nexts)]


def _reachable(start: str, nexts: Mapping[str, Iterable[str]]) -> set[str]:
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        for room in nexts.get(ahead.pop(), ()):
            if room not in seen:
                seen.add(room)
                ahead.append(room)
    return seen


def _room(module: str, graph: grimp.ImportGraph) -> str:
    """The folder that a module lies in; a package's own ``__init__`` is in itself."""
    return module if graph.find_children(module) else module.rpartition(".")[0]


def rooms_table(graph: grimp.ImportGraph, found: Arrows) -> Table:
    sizes = Counter(_room(module, graph) for module in graph.modules if not graph.find_children(module))
    table = Table(box=None)
    table.add_column("room")
    table.add_column("files", justify="right")
    table.add_column("imports from (how many times)")
    for room in sorted(sizes):
        ends = sorted((end, count) for (start, end), count in found.items() if start == room)
        table.add_row(room, str(sizes[room]), ", ".join(f"{end} ({count})" for end, count in ends))
    return table


def main() -> int:
    graph = grimp.build_graph(*HOUSES)
    found = arrows(graph)
    back = back_arrows(found)
    console = Console(width=180, highlight=False)
    console.print(rooms_table(graph, found))
    for start, end in back:
        console.print(f"back arrow: {start} -> {end}", style="red")
    console.print(f"{len(found)} arrows, {len(back)} of them back")
    return int(bool(back))


if __name__ == "__main__":
    sys.exit(main())
