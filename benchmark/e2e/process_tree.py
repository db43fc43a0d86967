"""What descends from this process, also where parents died in between (Linux; elsewhere nothing is found)."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_ENDED = "Z"


def title(pid: int) -> str:
    """The name of a process and its command line, with spaces; empty where it has ended."""
    with contextlib.suppress(OSError):
        place = Path(f"/proc/{pid}")
        said = (place / "comm").read_bytes() + (place / "cmdline").read_bytes()
        return said.replace(b"\0", b" ").decode(errors="replace")
    return ""


@dataclass(frozen=True, slots=True)
class ProcessTree:
    """A snapshot of all processes: parent of each one that runs, and of each that ended and was not waited for."""

    running: dict[int, int]
    ended: dict[int, int]

    @classmethod
    def now(cls) -> Self:
        tree = cls({}, {})
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                state, parent = file.read_text(errors="replace").rpartition(")")[2].split()[:2]
                (tree.ended if state == _ENDED else tree.running)[int(file.parent.name)] = int(parent)
        return tree

    @property
    def children(self) -> set[int]:
        """Running children of this process."""
        return {pid for pid, parent in self.running.items() if parent == os.getpid()}

    def descendants(self, roots: set[int]) -> set[int]:
        """Those of ``roots`` that run, and all that descend from them."""
        found = roots & self.running.keys()
        while more := {pid for pid, parent in self.running.items() if parent in found} - found:
            found |= more
        return found

    def reap_adopted(self, awaited: set[int]) -> None:
        """Collect the exit codes of children that have ended, but for those that somebody else waits for."""
        for pid, parent in self.ended.items():
            if parent == os.getpid() and pid not in awaited:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
