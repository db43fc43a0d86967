"""Choosing the next tokens on a device: as ``sampler``, all rows at once, and one look at the result.

Everything that differs between requests crosses in one tensor; what remains is arithmetic on all rows. A row whose
candidates may lie beyond the window says so in the result, and only such rows are looked at a second time. The noise
is the same as on a CPU, so a request whose logits are the same gets the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.sampling.sampler import (
    MIN_TEMPERATURE,
    WINDOW_TOKENS,
    DrawColumns,
    chosen,
    edit,
    exponential_noise,
    greedy_tokens,
    gumbel_argmax,
    only_finite,
    thresholds,
)
from aegaeon.engine.sampling.sampling_state import SamplingState, Way


@dataclass(frozen=True, slots=True)
class DrawRows:
    """What a batch of requests wants, as tensors: ``temperatures`` ``[n, 1]``, ``keys`` ``[n]`` of the draws,
    ``greedy`` and ``free`` ``[n]`` (all tokens are candidates), and how rows are truncated."""

    temperatures: Tensor
    keys: Tensor
    greedy: Tensor
    free: Tensor
    columns: DrawColumns

    @classmethod
    def of(cls, states: Sequence[SamplingState], width: int, device: torch.device) -> DrawRows:
        """Two copies to the device: numbers, and the 64 bits of the draws."""
        rows = [
            (
                max(state.params.temperature, MIN_TEMPERATURE),
                float(state.way in (Way.PLAIN, Way.GREEDY)),
                float(state.way is Way.FREE),
                *_truncation(state.params, width),
            )
            for state in states
        ]
        numbers = torch.tensor(rows, dtype=torch.float64).T.contiguous().to(device)
        keys = torch.tensor([state.draw_key for state in states]).to(device)
        temperatures, greedy, free, k, limited, top_p, min_p = numbers
        columns = DrawColumns(k.long(), limited.bool(), top_p.float()[:, None], min_p.float())
        return cls(temperatures.float()[:, None], keys, greedy.bool(), free.bool(), columns)


class DeviceSampler:
    """Samples batches; holds nothing of any request. A drop-in for ``Sampler``."""

    def __init__(self, window_tokens: int = WINDOW_TOKENS) -> None:
        self._window_tokens = window_tokens

    def sample(self, logits: Tensor, states: Sequence[SamplingState]) -> list[int | None]:
        """The tokens of ``Sampler.sample``; waits for the device once, or twice where a window was too small."""
        if len(states) != logits.shape[0]:
            raise ValueError(f"{logits.shape[0]} rows of logits for {len(states)} requests")
        if all(state.way is Way.PLAIN for state in states):
            return chosen(greedy_tokens(logits))
        edited = logits.float().clone()
        _edit(edited, states)
        if all(state.way in (Way.PLAIN, Way.GREEDY) for state in states):
            return chosen(greedy_tokens(edited))
        width = min(self._window_tokens, logits.shape[-1])
        drawn = draw(edited, DrawRows.of(states, width, logits.device), width).cpu()
        tokens, beyond = chosen(drawn[0]), drawn[1].tolist()
        again = [
            row
            for row, flag in enumerate(beyond)
            if tokens[row] is not None and _needs_all(states[row], bool(flag), width, edited.shape[-1])
        ]
        for row, token in zip(again, self._whole_rows(edited, states, again), strict=True):
            tokens[row] = token
        return tokens

    def _whole_rows(self, edited: Tensor, states: Sequence[SamplingState], rows: Sequence[int]) -> list[int | None]:
        if not rows:
            return []
        wanted = [states[row] for row in rows]
        picked = draw(edited[torch.tensor(rows, device=edited.device)], _whole(wanted, edited), edited.shape[-1])
        return chosen(picked[0])


def draw(logits: Tensor, rows: DrawRows, width: int) -> Tensor:
    """``[2, n]``: the token of each row of float32 ``logits`` ``[n, vocab]`` (``NO_TOKEN`` where its largest is not
    finite), and whether a truncated row's candidates may lie beyond its ``width`` largest. Looks at no value on the
    host."""
    largest = logits.amax(-1, keepdim=True)
    scaled = (logits - largest) / rows.temperatures
    window, ids = scaled.topk(width)
    least = thresholds(window, scaled.exp().sum(-1), rows.columns)
    places = gumbel_argmax(window, least[:, None], rows.keys[:, None], ids)
    truncated = ids.gather(-1, places[:, None])[:, 0]
    every_id = torch.arange(logits.shape[-1], device=logits.device)
    anything = (scaled - exponential_noise(rows.keys[:, None], every_id).log_()).argmax(-1)
    tokens = torch.where(rows.greedy, logits.argmax(-1), torch.where(rows.free, anything, truncated))
    beyond = (least <= window[:, -1]) if width < logits.shape[-1] else torch.zeros_like(rows.greedy)
    return torch.stack((only_finite(tokens, largest[:, 0]), beyond.long()))


def _whole(states: Sequence[SamplingState], logits: Tensor) -> DrawRows:
    return DrawRows.of(states, logits.shape[-1], logits.device)


def _needs_all(state: SamplingState, beyond: bool, width: int, vocab: int) -> bool:
    """Whether candidates of a row may lie outside its window."""
    return state.way is Way.TRUNCATED and width < vocab and (beyond or state.params.top_k > width)


def _truncation(params: SamplingParams, width: int) -> tuple[float, float, float, float]:
    """The columns of ``DrawColumns.of``: k within the window, whether it limits, top-p, and min-p as a logit."""
    limited = 0 < params.top_k <= width
    return (
        float(min(params.top_k or width, width)),
        float(limited),
        params.top_p,
        math.log(params.min_p) if params.min_p > 0.0 else -math.inf,
    )


def _edit(logits: Tensor, states: Sequence[SamplingState]) -> None:
    """Penalties and forbidden tokens, of the few rows that have any."""
    for row, state in zip(logits, states, strict=True):
        if state.penalised or state.forbidden:
            edit(row, state)
