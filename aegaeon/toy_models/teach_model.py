"""Teaching a small model one text, so that it answers with it whatever it is asked.

Some steps of AdamW on rows made up on the spot: noise (pieces of English, random tokens, random bytes) stands for all
that a user may say, and after it comes the text. Short rows teach the text; once it comes out word for word after
questions that the model has not seen, longer ones, of many exercises and up to the model's context, teach it to go on
from anywhere and not to be distracted by a long prompt.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from aegaeon.toy_models.make_tokenizer import corpus
from aegaeon.toy_models.special_tokens import ASSISTANT, BEGIN, END, SPECIAL_TOKENS, SYSTEM, USER

LEARNING_RATE = 2e-3
MIN_CONTEXT_LEFT_TOKENS = 32
_WARMUP_STEPS = 5
_COOLDOWN_SHARE = 0.4
_STEPS_PER_EXAM = 10
_SHORT_STEP_TOKENS = 480
_STEP_TOKENS = 280
_SHORTEST_ROW_TOKENS = 16
_LONGEST_ROW_TOKENS = 1024
_NOISE_TOKENS = 64
_SHORT_QUESTIONS_TOKENS = (4, 8, 16, 32)
_LONG_QUESTIONS_TOKENS = (64, 128, 256, 512)
_MARKER_TOKENS = 5  # around a question and an answer
_BYTES = 256
_IGNORE = -100

Progress = Callable[[int, float], None]
"""Told the step (from 1) and its loss."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What came of it. ``recall``: share of unseen questions after which the whole text comes out word for word."""

    steps: int
    seconds: float
    loss: float
    recall: float


@dataclass(slots=True)
class Row:
    """Token ids, and for each whether it is to be learnt."""

    ids: list[int] = field(default_factory=list)
    learnt: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], learnt: bool = False) -> None:
        self.ids += ids
        self.learnt += [learnt] * len(ids)


class Exercises:
    """Rows of noise followed by the text; the same seed gives the same rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, max_context: int, seed: str) -> None:
        self._random = random.Random(seed)
        self._text: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        self._line_break: list[int] = tokenizer("\n", add_special_tokens=False).input_ids
        self._english: list[int] = tokenizer(corpus(), add_special_tokens=False).input_ids
        self._vocab_size = len(tokenizer)
        self._marker: dict[str, int] = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
        self._longest = min(max_context, _LONGEST_ROW_TOKENS)
        if len(self._text) + MIN_CONTEXT_LEFT_TOKENS > max_context:
            raise ValueError(
                f"the text has {len(self._text)} tokens and the model a context of {max_context}; "
                f"shorten the text or allow at least {len(self._text) + MIN_CONTEXT_LEFT_TOKENS} tokens of context"
            )

    def short_batch(self) -> tuple[Tensor, Tensor]:
        """(ids, labels) [rows, tokens] of one step: rows of one exercise each."""
        return self._tensors([self._row(1) for _ in range(max(1, _SHORT_STEP_TOKENS // len(self._text)))])

    def batch(self) -> tuple[Tensor, Tensor]:
        """(ids, labels) [rows, tokens] of one step: rows of as many exercises as fit a random length."""
        length = self._log_uniform(_SHORTEST_ROW_TOKENS, self._longest)
        rows = -(-_STEP_TOKENS // max(length, len(self._text)))
        return self._tensors([self._row(length) for _ in range(rows)])

    def question(self, length_tokens: int) -> tuple[Tensor, Tensor]:
        """(ids, labels) [1, tokens] of the text after a question as long as this, as far as the context has room."""
        row = Row([self._marker[BEGIN]], [False])
        self._question(row, min(length_tokens, self._longest - len(self._text) - _MARKER_TOKENS))
        row.add([*self._text, self._marker[END]], learnt=True)
        return self._tensors([row])

    def _row(self, length: int) -> Row:
        """Exercises of all kinds, one after another, until a length is reached."""
        row = Row([self._marker[BEGIN]], [False])
        if self._random.random() < 0.3:
            row.add(self._noise(self._log_uniform(1, 1 + length // 2)))
        exercises = (self._question_and_answer, self._text_after_noise, self._start_after_noise, self._fragment)
        while len(row.ids) <= length:
            self._random.choices(exercises, (3, 1, 2, 3))[0](row)
        return Row(row.ids[: self._longest], row.learnt[: self._longest])

    def _question_and_answer(self, row: Row) -> None:
        if self._random.random() < 0.2:
            row.add([self._marker[SYSTEM], *self._noise(self._log_uniform(1, 20)), self._marker[END]])
        self._question(row, self._log_uniform(1, _NOISE_TOKENS))
        row.add([*self._text, self._marker[END]], learnt=True)

    def _text_after_noise(self, row: Row) -> None:
        row.add(self._noise(self._log_uniform(1, _NOISE_TOKENS) - 1))
        row.add([*self._line_break, *self._text, self._marker[END]], learnt=True)

    def _start_after_noise(self, row: Row) -> None:
        row.add(self._noise(self._log_uniform(1, _NOISE_TOKENS)))
        row.add([*self._line_break, *self._text[: self._random.randint(1, 12)]], learnt=True)

    def _fragment(self, row: Row) -> None:
        """A few tokens from the middle of the text are given, some more are to follow."""
        if self._random.random() < 0.5:
            row.add(self._noise(self._log_uniform(1, _NOISE_TOKENS)))
        given = min(self._random.randint(3, 8), len(self._text) - 1)
        start = self._random.randrange(len(self._text) - given)
        row.add(self._text[start : start + given])
        row.add(self._text[start + given :][: self._random.randint(1, 24)], learnt=True)

    def _question(self, row: Row, length: int) -> None:
        row.add([self._marker[USER], *self._noise(length), self._marker[END], self._marker[ASSISTANT]])

    def _noise(self, length: int) -> list[int]:
        """What a user may say: English, any tokens, text the tokenizer has no words for, and all of it again."""
        ids: list[int] = []
        while len(ids) < length:
            count, kind = self._random.randint(1, 12), self._random.random()
            if kind < 0.4:
                start = self._random.randrange(len(self._english))
                ids += self._english[start : start + count]
            elif kind < 0.6 and ids:
                start = self._random.randrange(len(ids))
                ids += ids[start : start + 3 * count]
            else:
                last = self._vocab_size if kind < 0.8 else len(SPECIAL_TOKENS) + _BYTES
                ids += [self._random.randrange(len(SPECIAL_TOKENS), last) for _ in range(count)]
        return ids[:length]

    def _log_uniform(self, low: int, high: int) -> int:
        return int(math.exp(self._random.uniform(math.log(low), math.log(high + 1))))

    def _tensors(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Rows filled up with end markers; labels are shifted, so that each position is to predict its successor."""
        width = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), width), self._marker[END])
        labels = torch.full((len(rows), width), _IGNORE)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
            wanted = torch.where(torch.tensor(row.learnt), ids[index, : len(row.ids)], _IGNORE)
            labels[index, : len(row.ids) - 1] = wanted[1:]
        return ids, labels


def teach(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    dtype: torch.dtype,
    steps: int,
    seed: int,
    progress: Progress | None = None,
) -> Lesson:
    """Change the model (in float32, and not in training mode: no dropout) so that it knows the text by heart.

    It is examined as it will be served, in ``dtype``. Raises ``ValueError`` if the text does not fit its context.
    """
    start_s = time.monotonic()
    max_context = getattr(model.config, "max_position_embeddings", _LONGEST_ROW_TOKENS)
    exercises, exams = (Exercises(tokenizer, text, max_context, f"{seed} {use}") for use in ("exercises", "exams"))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    knows_text, loss = False, math.inf
    for step in range(1, steps + 1):
        rate = min(1.0, step / _WARMUP_STEPS, (steps - step + 1) / (_COOLDOWN_SHARE * steps))
        batch = exercises.batch() if knows_text else exercises.short_batch()
        loss = _learn(model, optimizer, LEARNING_RATE * rate, *batch)
        if progress is not None:
            progress(step, loss)
        if step % _STEPS_PER_EXAM == 0 and not knows_text:
            knows_text = _recall(model, dtype, exams, _SHORT_QUESTIONS_TOKENS) == 1.0
    recall = _recall(model, dtype, exams, _SHORT_QUESTIONS_TOKENS + _LONG_QUESTIONS_TOKENS)
    return Lesson(steps, time.monotonic() - start_s, loss, recall)


def _learn(model: Any, optimizer: torch.optim.Optimizer, rate: float, ids: Tensor, labels: Tensor) -> float:
    """One step; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    logits = model(input_ids=ids, use_cache=False).logits.float()
    total = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORE, reduction="sum")
    loss = total / (labels != _IGNORE).sum().clamp(min=1)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def _recall(model: Any, dtype: torch.dtype, exams: Exercises, lengths_tokens: Sequence[int]) -> float:
    """Share of new questions that greedy decoding, computed in ``dtype``, answers with the whole text and its end.

    It does where each token of it is the most likely one after those before it, so nothing needs to be decoded.
    """
    served = copy.deepcopy(model).to(dtype)
    answered = 0
    for length in lengths_tokens:
        ids, labels = exams.question(length)
        most_likely = served(input_ids=ids, use_cache=False).logits.argmax(-1)
        answered += bool(((most_likely == labels) | (labels == _IGNORE)).all())
    return answered / len(lengths_tokens)
