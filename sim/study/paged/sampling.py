"""How a request is answered: by one sequence, by several samples, or by a beam search."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sim.systems.errors import InputError
from sim.systems.kv.group import Forks

FORK_SHARE = 0.1  # of the tokens: beams then share as much as in Figure 15 of the paper
NAMES = ("n1", "n2", "n3", "n4", "n6", "n2-beam", "n4-beam", "n6-beam", "n8-beam")


@dataclass(frozen=True, slots=True)
class Sampling:
    """``name`` as the artifact has it: ``n4``, ``n4-beam``."""

    sequences: int
    beam: bool = False

    @classmethod
    def parse(cls, name: str) -> Sampling:
        found = re.fullmatch(r"n([1-9])(-beam)?", name)
        if found is None:
            raise InputError(f"--sampling {name!r} is none of {', '.join(NAMES)}")
        return cls(int(found[1]), bool(found[2]))

    @property
    def name(self) -> str:
        return f"n{self.sequences}{'-beam' * self.beam}"

    def forks(self, seed: str) -> Iterator[tuple[int, Forks]] | None:
        """A made-up search tree, without an end; None where nothing is searched.

        At ``FORK_SHARE`` of the tokens the worse half of the sequences, whichever those are, takes over the pasts of
        the better half.
        """
        return self._forks(random.Random(seed)) if self.beam else None

    def _forks(self, chance: random.Random) -> Iterator[tuple[int, Forks]]:
        number, better = 0, -(-self.sequences // 2)
        while True:
            number += 1
            if chance.random() < FORK_SHARE:
                ranks = chance.sample(range(self.sequences), self.sequences)
                yield number, [*zip(ranks[better:], ranks[:better], strict=False)]


ONE = Sampling(1)
