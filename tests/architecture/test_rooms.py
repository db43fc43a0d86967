"""No folder imports from one that imports from it, and none is a hall."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import grimp

from tests.architecture.rooms import HOUSES, arrows, back_arrows

ROOT = Path(__file__).parents[2]
MOST_FILES = 20


def test_there_is_no_back_arrow_between_rooms() -> None:
    assert back_arrows(arrows(grimp.build_graph(*HOUSES))) == []


def test_a_circle_is_found() -> None:
    assert back_arrows({("a", "b"): 1, ("b", "c"): 2, ("c", "a"): 1, ("c", "d"): 1}) == [
        ("a", "b"),
        ("b", "c"),
        ("c", "a"),
    ]


def test_no_room_is_a_hall() -> None:
    files = (file.relative_to(ROOT) for house in HOUSES for file in (ROOT / house).rglob("*.py"))
    sizes = Counter(str(file.parent) for file in files if file.name != "__init__.py")
    assert {room: size for room, size in sizes.items() if size > MOST_FILES} == {}
