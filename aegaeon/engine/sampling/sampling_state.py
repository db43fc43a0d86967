"""What choosing a request's next token needs to know of it. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from hashlib import blake2b

from aegaeon.core.sampling import SamplingParams


class Way(Enum):
    """How a request's next token is chosen."""

    PLAIN = auto()  # the most likely one
    GREEDY = auto()  # the most likely one, after penalties
    FREE = auto()  # any token, by chance
    TRUNCATED = auto()  # one of the likelier tokens, by chance


class SamplingState:
    """What sampling a request needs to know of its past, rebuilt at will from plain data.

    ``prompt_token_ids`` count for the repetition penalty only; ``generated`` are the tokens made so far. ``eos_ids``
    are forbidden, like the request's ``stop_token_ids``, while fewer than ``min_new_tokens`` were made. A request that
    is not greedy must come with a seed. Raises ``ValueError`` if it does not.
    """

    __slots__ = ("_draws_made", "_slot", "counts", "forbidden_at_first", "known_ids", "params")

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Iterable[int] = (),
        generated: Iterable[int] = (),
        eos_ids: Iterable[int] = (),
    ) -> None:
        if params.seed is None and not params.greedy:
            raise ValueError("a request that samples needs a seed; draw one when it is submitted")
        self.params = params
        self.forbidden_at_first = sorted({*eos_ids, *params.stop_token_ids})
        self._draws_made = 0
        # Every distinct token of prompt and output, with its count in the output; appended to, never rebuilt.
        self._slot: dict[int, int] = {}
        self.known_ids = array("q")
        self.counts = array("f")
        if params.repetition_penalty != 1.0:
            for token in prompt_token_ids:
                self._slot_of(token)
        for token in generated:
            self.append(token)

    def append(self, token: int) -> None:
        """Take note of the token that was made."""
        self._draws_made += 1
        if self.penalised:
            self.counts[self._slot_of(token)] += 1.0

    def _slot_of(self, token: int) -> int:
        slot = self._slot.setdefault(token, len(self.known_ids))
        if slot == len(self.known_ids):
            self.known_ids.append(token)
            self.counts.append(0.0)
        return slot

    @property
    def draws_made(self) -> int:
        """Tokens made so far; the index of the next draw."""
        return self._draws_made

    @property
    def penalised(self) -> bool:
        """Whether earlier tokens change the logits."""
        params = self.params
        return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0

    @property
    def forbidden(self) -> Sequence[int]:
        """Token ids that may not be made next."""
        return self.forbidden_at_first if self._draws_made < self.params.min_new_tokens else ()

    @property
    def way(self) -> Way:
        """How the next token is chosen."""
        params = self.params
        if params.greedy:
            return Way.GREEDY if self.penalised or self.forbidden else Way.PLAIN
        return Way.TRUNCATED if params.top_k or params.top_p < 1.0 or params.min_p > 0.0 else Way.FREE

    @property
    def draw_key(self) -> int:
        """64 bits that name the next draw: a hash of the seed and the draw's index."""
        words = (self.params.seed or 0).to_bytes(8, "little", signed=True) + self._draws_made.to_bytes(8, "little")
        return int.from_bytes(blake2b(words, digest_size=8).digest(), "little", signed=True)
