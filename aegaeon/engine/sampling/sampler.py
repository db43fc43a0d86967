"""Choosing the next token of many requests at once, each with its own parameters.

Order of operations, as in Hugging Face's processors: penalties and forbidden tokens on the logits, then temperature,
top-k, top-p, min-p, and a draw. Two observations make it cheap and exact:

- Top-k, top-p and min-p all keep the tokens above *some* logit, so truncation is one threshold per row. It is found in
  the 256 largest logits; a row whose threshold may lie below them is sorted in full.
- The draw is Gumbel-max (Gumbel, 1954; Maddison et al., "A* sampling", 2014): the largest of logit + noise, where the
  noise of a token is a pure function of (seed, index of the draw, token id). It needs no normalisation, gives the same
  token whether a window or the whole row was looked at, and depends on nothing else: not on the batch, the instance,
  or how often the request moved or was recomputed. There is no generator state to carry.

Tokens whose logits tie at the threshold stay together, so that no sort's arbitrary order shows.

A row is only chosen from where its largest logit, after penalties and forbidden tokens, is a finite number: NaN counts
as larger than everything, so one look at the maximum finds NaN, infinity, and rows of which nothing is left.

Token ids that a row has no logit for (a request or a checkpoint may name any) are never made, so they change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.sampling.sampling_state import SamplingState, Way

WINDOW_TOKENS = 256
"""Largest logits looked at before a row is sorted in full."""

CHUNK_LOGITS = 1 << 18
"""Logits worked on at a time; larger temporaries cost more in page faults than batching them saves."""

MIN_TEMPERATURE = 1e-5

NO_TOKEN = -1
"""In tensors of tokens: there is none to choose."""

_WORD = (1 << 64) - 1
_SPLITMIX_GAMMA = 0x9E3779B97F4A7C15
_SPLITMIX_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


class TokenSampler(Protocol):
    """Chooses the next tokens of a batch."""

    def sample(self, logits: Tensor, states: Sequence[SamplingState]) -> list[int | None]:
        """The next token of each request, from ``logits`` ``[n, vocab]``, left unchanged.

        None where there is none to choose: a logit is NaN or infinite, or no token is left.
        """
        ...


class Sampler:
    """Samples batches; holds nothing of any request."""

    def __init__(self, window_tokens: int = WINDOW_TOKENS, chunk_logits: int = CHUNK_LOGITS) -> None:
        if window_tokens < 1 or chunk_logits < 1:
            raise ValueError(f"window and chunk must be positive, got {window_tokens} and {chunk_logits}")
        self._window_tokens = window_tokens
        self._chunk_logits = chunk_logits

    def sample(self, logits: Tensor, states: Sequence[SamplingState]) -> list[int | None]:
        """The next token of each request, None where the row has no finite largest logit.

        ``logits`` [n, vocab] of any float type, left unchanged; ``states``: one for each row. The caller appends the
        tokens to the states. Raises ``ValueError`` if their numbers differ.
        """
        if len(states) != logits.shape[0]:
            raise ValueError(f"{logits.shape[0]} rows of logits for {len(states)} requests")
        if all(state.way is Way.PLAIN for state in states):
            return chosen(greedy_tokens(logits))
        tokens: list[int | None] = [None] * len(states)
        for way, rows in self._chunks(states, logits.shape[-1]):
            picked = self._choose(way, logits[rows].float(), [states[row] for row in rows])
            for row, token in zip(rows, chosen(picked), strict=True):
                tokens[row] = token
        return tokens

    def _chunks(self, states: Sequence[SamplingState], vocab: int) -> Iterator[tuple[Way, list[int]]]:
        """Rows to be treated alike, few enough at a time for temporaries to stay in the processor's cache."""
        size = max(1, self._chunk_logits // vocab)
        for way in Way:
            rows = [row for row, state in enumerate(states) if state.way is way]
            yield from ((way, rows[start : start + size]) for start in range(0, len(rows), size))

    def _choose(self, way: Way, logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
        """Tokens [n] for rows [n, vocab] that may be overwritten; ``NO_TOKEN`` where there is none."""
        for row, state in zip(logits, states, strict=True):
            edit(row, state)
        if way is Way.PLAIN or way is Way.GREEDY:
            return greedy_tokens(logits)
        params = [state.params for state in states]
        keys = torch.tensor([state.draw_key for state in states], device=logits.device)
        largest = logits.amax(-1, keepdim=True)
        logits.sub_(largest)
        logits.div_(_column([max(p.temperature, MIN_TEMPERATURE) for p in params], logits))
        drawn = self._draw_truncated(logits, params, keys) if way is Way.TRUNCATED else _draw_any(logits, keys)
        return only_finite(drawn, largest.squeeze(-1))

    def _draw_truncated(self, logits: Tensor, params: Sequence[SamplingParams], keys: Tensor) -> Tensor:
        """Tokens [n]: from the window, or from the whole row where candidates may lie beyond the window."""
        vocab = logits.shape[-1]
        window, ids = logits.topk(min(self._window_tokens, vocab))
        least = thresholds(window, logits.exp().sum(-1), DrawColumns.of(params, window))
        picks = gumbel_argmax(window, least.unsqueeze(-1), keys.unsqueeze(-1), ids)
        tokens = ids.gather(-1, picks.unsqueeze(-1)).squeeze(-1)
        inside = (least > window[:, -1]).tolist()
        for row, p in enumerate(params):
            if self._window_tokens < vocab and (not inside[row] or p.top_k > self._window_tokens):
                tokens[row] = _draw_sorted(logits[row], p, keys[row])
        return tokens


def edit(logits: Tensor, state: SamplingState) -> None:
    """Apply a request's penalties and forbidden tokens to its row of logits [vocab], in place."""
    if state.penalised and state.known_ids:
        _penalise(logits, state)
    forbidden = [token for token in state.forbidden if 0 <= token < len(logits)]
    if forbidden:
        logits[torch.tensor(forbidden, device=logits.device)] = -math.inf


def _penalise(logits: Tensor, state: SamplingState) -> None:
    known = np.array(state.known_ids)
    inside = (known >= 0) & (known < len(logits))
    ids = torch.from_numpy(known[inside]).to(logits.device)
    counts = torch.from_numpy(np.array(state.counts)[inside]).to(logits.device)
    params, seen = state.params, logits[ids]
    seen = torch.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
    seen -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    logits[ids] = seen


def _draw_any(logits: Tensor, keys: Tensor) -> Tensor:
    """Tokens [n] from rows [n, vocab], all of them candidates."""
    return (logits - exponential_noise(keys.unsqueeze(-1), _token_ids(logits)).log_()).argmax(-1)


def _draw_sorted(logits: Tensor, params: SamplingParams, key: Tensor) -> Tensor:
    """A token [] from one row [vocab], whose threshold is found by sorting all of it."""
    ordered = _descending(logits).unsqueeze(0)
    threshold = thresholds(ordered, ordered.exp().sum(-1), DrawColumns.of([params], ordered)).squeeze(0)
    return gumbel_argmax(logits, threshold, key, _token_ids(logits))


def _descending(logits: Tensor) -> Tensor:
    """The row sorted, largest first; NumPy's vectorised sort takes a thirtieth of the time of torch's on a CPU."""
    return torch.from_numpy(np.sort(logits.cpu().numpy())).flip(0).to(logits.device)


@dataclass(frozen=True, slots=True)
class DrawColumns:
    """How rows are truncated. ``k`` ``[n]``: candidates by top-k, at most the window's width; ``limited`` ``[n]``:
    whether it limits; ``top_p`` ``[n, 1]``; ``min_p`` ``[n]``: the least logit that it leaves."""

    k: Tensor
    limited: Tensor
    top_p: Tensor
    min_p: Tensor

    @classmethod
    def of(cls, params: Sequence[SamplingParams], like: Tensor) -> DrawColumns:
        """The columns for windows ``like`` ``[n, width]``."""
        width = like.shape[-1]
        return cls(
            torch.tensor([min(p.top_k or width, width) for p in params], device=like.device),
            torch.tensor([0 < p.top_k <= width for p in params], device=like.device),
            _column([p.top_p for p in params], like),
            _column([_log(p.min_p) for p in params], like).squeeze(-1),
        )


def thresholds(ordered: Tensor, total: Tensor, columns: DrawColumns) -> Tensor:
    """The least logit [n] that top-k, top-p and min-p leave a candidate.

    ``ordered`` [n, w]: a row's largest logits, descending, the largest being 0. ``total`` [n]: the sum of exp over the
    *whole* row. Top-p counts mass after top-k, and keeps the token that crosses the limit.
    """
    least = ordered.gather(-1, (columns.k - 1).unsqueeze(-1)).squeeze(-1).masked_fill(~columns.limited, -math.inf)
    kept = ordered.masked_fill(ordered < least.unsqueeze(-1), -math.inf)
    mass = kept.exp()
    mass /= torch.where(columns.limited, mass.sum(-1), total).unsqueeze(-1)
    in_nucleus = (mass.cumsum(-1, dtype=torch.float64) - mass < columns.top_p).sum(-1, keepdim=True).clamp_(min=1)
    edge = kept.gather(-1, in_nucleus - 1).masked_fill_(columns.top_p >= 1.0, -math.inf).squeeze(-1)
    return torch.stack((least, edge, columns.min_p)).amax(0)


def gumbel_argmax(logits: Tensor, threshold: Tensor, key: Tensor, ids: Tensor) -> Tensor:
    """The columns of the largest logit + noise among logits that reach the threshold; noise is named by (key, id)."""
    return logits.masked_fill(logits < threshold, -math.inf).sub_(exponential_noise(key, ids).log_()).argmax(-1)


def exponential_noise(key: Tensor, ids: Tensor) -> Tensor:
    """Standard exponential noise for each token id: output ``id`` of SplitMix64 seeded with the draw's key.

    (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.) The negated log of it is Gumbel noise.
    """
    words = (ids + 1) * _signed(_SPLITMIX_GAMMA) + key
    for shift, factor in _SPLITMIX_MIX:
        words ^= _shifted(words, shift)
        words *= _signed(factor)
    words ^= _shifted(words, 31)
    # 63 bits keep their relative precision near 0 as floats; near 1 they must not round to it.
    uniform = _shifted(words, 1).float().add_(0.5).mul_(2.0**-63).clamp_(max=1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_()


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Logical shift right of 64-bit words (torch's own keeps the sign)."""
    return (words >> bits).bitwise_and_(_WORD >> bits)


def _signed(word: int) -> int:
    """The signed integer with the same 64 bits."""
    return word - (1 << 64) if word >> 63 else word


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)


def _log(share: float) -> float:
    return math.log(share) if share > 0.0 else -math.inf


def _token_ids(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[-1], device=logits.device)


def greedy_tokens(logits: Tensor) -> Tensor:
    """The ids at which the rows of ``[n, vocab]`` are largest; ``NO_TOKEN`` where that is not finite."""
    tokens = logits.argmax(-1)
    return only_finite(tokens, logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))


def only_finite(tokens: Tensor, largest: Tensor) -> Tensor:
    """``tokens`` ``[n]`` with ``NO_TOKEN`` where the row's ``largest`` logit is not finite. No look at a value."""
    return tokens.masked_fill(~largest.isfinite(), NO_TOKEN)


def chosen(tokens: Tensor) -> list[int | None]:
    """The tokens ``[n]`` on the host, None for ``NO_TOKEN``."""
    return [None if token == NO_TOKEN else int(token) for token in tokens.tolist()]
