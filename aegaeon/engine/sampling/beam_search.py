"""Beam search: which continuations of several outputs are kept, which outputs have ended, and when no better one can
come. Pure.

It is the search of Transformers' ``generate(num_beams=width)``, in whose words:

- Of all beams' continuations the ``width`` best ones that do not end an output go on as beams. One that ends is an
  output where it is among the ``width`` best of all; of these the ``width`` best ones are kept.
- The worth of an output is the sum of its tokens' log probabilities, divided by its length to the power of
  ``length_penalty``. Of beams it is the sum.
- It is over when all outputs are as long as they may be; or when there are ``width`` outputs, and ``early_stopping`` or
  the best beam, were it to end now, would be worth no more than the worst of them. With ``early_stopping`` "never" it
  is taken to end as late as it may, where a longer one is worth more.

Sums and quotients are rounded to float32, as they are there, so that equal ones are equal.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ctypes import c_float

from aegaeon.core.beams import Beam, BeamState, Hypothesis
from aegaeon.core.sampling import BeamParams, SamplingParams
from aegaeon.engine.sampling.choice import Candidates, LikeliestTokens

Continuation = tuple[float, int, int]
"""Its score, the number of the beam that it continues, and the token."""


class BeamSearch:
    """The beams of one request, from its prompt on or from where they were. ``eos_ids`` end an output."""

    def __init__(self, params: SamplingParams, asked: BeamParams, eos_ids: Collection[int], state: BeamState) -> None:
        self._params = params
        self._asked = asked
        self._enders = frozenset((*params.stop_token_ids, *(() if params.ignore_eos else eos_ids)))
        self._forbidden = frozenset((*params.stop_token_ids, *eos_ids))
        self.beams: tuple[Beam, ...] = state.beams
        self.finished: tuple[Hypothesis, ...] = state.finished
        self.over = False

    @property
    def tokens(self) -> int:
        """Tokens of each beam."""
        return len(self.beams[0].token_ids)

    @property
    def wish(self) -> LikeliestTokens:
        """What is wanted of every beam's logits: enough that ``width`` do not end it."""
        forbidden = tuple(self._forbidden) if self.tokens < self._params.min_new_tokens else ()
        return LikeliestTokens(self._asked.width + len(self._enders), forbidden)

    @property
    def outputs(self) -> tuple[Hypothesis, ...]:
        """The best outputs, as many as are wanted; all of them are there when it is over."""
        return self.finished[: self._asked.returned]

    def step(self, likeliest: Sequence[Candidates]) -> list[int]:
        """Take what may follow on each beam; returns which beam each of the new ones continues."""
        width, made = self._asked.width, self.tokens + 1
        ranked = self._ranked(likeliest)
        last = made >= self._params.max_new_tokens
        ended = [one for one in ranked[:width] if last or one[2] in self._enders]
        outputs = [Hypothesis(self._continued(one), self._worth(one[0], made)) for one in ended]
        self.finished = tuple(sorted((*self.finished, *outputs), key=lambda one: -one.score)[:width])
        kept = [one for one in ranked if one[2] not in self._enders][:width]
        self.over = last or not kept or not self._may_improve(kept[0][0], made)
        if not self.over:
            self.beams = tuple(Beam(self._continued(one), one[0]) for one in kept)
        return [beam for _, beam, _ in kept]

    def _ranked(self, likeliest: Sequence[Candidates]) -> list[Continuation]:
        every = (
            (c_float(beam.score + token.logprob).value, number, token.token_id)
            for number, (beam, tokens) in enumerate(zip(self.beams, likeliest, strict=True))
            for token in tokens
        )
        return sorted(every, key=lambda one: -one[0])

    def _continued(self, one: Continuation) -> tuple[int, ...]:
        return (*self.beams[one[1]].token_ids, one[2])

    def _worth(self, score: float, tokens: int) -> float:
        return c_float(score / c_float(tokens**self._asked.length_penalty).value).value

    def _may_improve(self, best_score: float, made: int) -> bool:
        """Whether an output to come may be better than the worst that is kept."""
        asked = self._asked
        if len(self.finished) < asked.width:
            return True
        if asked.early_stopping is True:
            return False
        latest = asked.early_stopping == "never" and asked.length_penalty > 0
        return self._worth(best_score, self._params.max_new_tokens if latest else made) > self.finished[-1].score
