"""From logits to what is wanted of them: tokens, their log probabilities, the likeliest tokens of beams."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aegaeon.engine.sampling.choice import Candidates, Choice, LikeliestTokens, ScoredToken, Wish
from aegaeon.engine.sampling.sampler import TokenSampler
from aegaeon.engine.sampling.sampling_state import SamplingState


class Chooser:
    """Has a sampler draw tokens, and looks up what a sampler does not say."""

    def __init__(self, sampler: TokenSampler) -> None:
        self._sampler = sampler

    def choose(self, logits: Tensor, wishes: Sequence[Wish]) -> list[Choice | None]:
        """What each row of ``logits`` ``[n, vocab]`` gives; None where it gives nothing: a logit is NaN or infinite, or
        no token is left."""
        states = {row: wish for row, wish in enumerate(wishes) if isinstance(wish, SamplingState)}
        if len(states) == len(wishes):
            chosen: list[Choice | None] = list(self._sampler.sample(logits, tuple(states.values())))
        else:
            chosen = [None] * len(wishes)
            for row, token in zip(states, self._drawn(logits, states), strict=True):
                chosen[row] = token
            beams = {row: wish for row, wish in enumerate(wishes) if isinstance(wish, LikeliestTokens)}
            for row, candidates in zip(beams, likeliest(logits[list(beams)], tuple(beams.values())), strict=True):
                chosen[row] = candidates
        tokens = {row: token for row, token in enumerate(chosen) if isinstance(token, int)}
        scored = {row: token for row, token in tokens.items() if row in states and states[row].params.scored}
        return _scored(logits, chosen, scored) if scored else chosen

    def _drawn(self, logits: Tensor, states: dict[int, SamplingState]) -> Sequence[int | None]:
        return self._sampler.sample(logits[list(states)], tuple(states.values())) if states else ()


def _scored(logits: Tensor, chosen: list[Choice | None], tokens: dict[int, int]) -> list[Choice | None]:
    rows, ids = list(tokens), torch.tensor(list(tokens.values()), device=logits.device)
    logprobs = logits[rows].float().log_softmax(-1).gather(-1, ids[:, None])[:, 0].tolist()
    for (row, token), logprob in zip(tokens.items(), logprobs, strict=True):
        chosen[row] = ScoredToken(token, logprob)
    return chosen


def likeliest(logits: Tensor, wishes: Sequence[LikeliestTokens]) -> list[Candidates | None]:
    """Of each row of ``logits`` ``[n, vocab]`` the tokens that are wanted, by log probability; None where the largest
    is not finite. What is forbidden keeps its share of the probability."""
    logprobs = logits.float().log_softmax(-1)
    for row, wish in zip(logprobs, wishes, strict=True):
        forbidden = [token for token in wish.forbidden if token < len(row)]
        if forbidden:
            row[torch.tensor(forbidden, device=row.device)] = -math.inf
    top, ids = logprobs.topk(min(max(wish.count for wish in wishes), logits.shape[-1]))
    rows = zip(wishes, top.tolist(), ids.tolist(), strict=True)
    return [_candidates(own, tokens, wish.count) for wish, own, tokens in rows]


def _candidates(logprobs: Sequence[float], token_ids: Sequence[int], count: int) -> Candidates | None:
    if not math.isfinite(logprobs[0]):
        return None
    pairs = zip(token_ids[:count], logprobs, strict=False)
    return tuple(ScoredToken(token, logprob) for token, logprob in pairs if logprob > -math.inf)
