"""Clients that know what they must be told: every answer is compared with the one of an undisturbed pool."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import httpx

from benchmark.e2e.completion_stream import ReplyError, read_chunks, refusal

PAUSE_S = 0.2  # before a request is sent again after the service went away under it
PROMPT_TOKENS = 24
TRIALS = 3  # different requests of each kind and model


class QuestionKind(StrEnum):
    """What a client asks for."""

    STREAM = "stream"
    WHOLE = "whole answer"
    ONE_TOKEN = "one token"
    SHORT_STOP = "short stop"
    SEVERAL = "n = 3"
    LEAVER = "client leaves"


class Verdict(StrEnum):
    """What came of an answer. ``CUT``: the server that had it was killed, which a client sees; it asked again."""

    RIGHT = "right"
    CUT = "cut"
    LOST = "lost"
    HUNG = "hung"
    WRONG = "wrong"
    DOUBLED = "doubled"


BAD = (Verdict.LOST, Verdict.HUNG, Verdict.WRONG, Verdict.DOUBLED)


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and the texts of its choices and their tokens in all, as an undisturbed pool gave them."""

    kind: QuestionKind
    body: Mapping[str, Any]
    expected: tuple[str, ...] = ()
    tokens: int = 0


@dataclass(slots=True)
class HeardAnswer:
    """What a client has been told so far, choice by choice; ``ended`` when it has heard the end of it."""

    texts: list[str]
    tokens: int = 0
    ended: bool = False

    @classmethod
    def to(cls, question: Question) -> HeardAnswer:
        return cls([""] * int(question.body.get("n", 1)))

    def add(self, chunk: Mapping[str, Any]) -> None:
        if "error" in chunk:
            raise ReplyError(str(chunk["error"].get("message", chunk["error"])))
        for choice in chunk.get("choices", ()):
            self.texts[choice["index"]] += choice.get("text") or ""
        self.tokens = (chunk.get("usage") or {}).get("completion_tokens", self.tokens)

    def verdict(self, question: Question) -> Verdict:
        """Right as far as it goes; an answer that ended must be whole, also in tokens that have no text."""
        pairs = tuple(zip(self.texts, question.expected, strict=True))
        if not self.ended and all(expected.startswith(text) for text, expected in pairs):
            return Verdict.RIGHT
        if self.ended and tuple(self.texts) == question.expected and self.tokens == question.tokens:
            return Verdict.RIGHT
        longer = any(len(text) > len(expected) for text, expected in pairs) or self.tokens > question.tokens
        return Verdict.DOUBLED if longer else Verdict.WRONG


@dataclass(slots=True)
class Watch:
    """What the clients saw. ``heard_s``: when each open stream last got something, or was opened."""

    hang_s: float
    may_cut: Callable[[float], bool]
    verdicts: Counter[tuple[QuestionKind, Verdict]] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    heard_s: dict[int, float] = field(default_factory=dict)
    silences: list[tuple[float, float]] = field(default_factory=list)  # (from, to) of the longer ones

    def open(self, stream: int) -> None:
        self.heard_s.setdefault(stream, time.monotonic())

    def hear(self, stream: int) -> None:
        now_s = time.monotonic()
        last_s = self.heard_s.get(stream)
        if last_s is not None and now_s - last_s > 0.05:
            self.silences.append((last_s, now_s))
        self.heard_s[stream] = now_s

    def close(self, stream: int) -> None:
        self.heard_s.pop(stream, None)

    def count(self, question: Question, verdict: Verdict, why: str) -> None:
        self.verdicts[question.kind, verdict] += 1
        if verdict in BAD:
            self.complaints.append(f"{verdict}: {question.kind} of {question.body['model']}: {why}")

    @property
    def bad(self) -> int:
        return sum(count for (_, verdict), count in self.verdicts.items() if verdict in BAD)


def questions(models: Sequence[str], tokens: int, seed: int) -> list[Question]:
    """Several of each kind for each model; the shortest stops are set once the answers are known."""
    random_ = random.Random(seed)
    return [
        Question(kind, _body(kind, model, tokens, random_))
        for model in models
        for kind in QuestionKind
        for _ in range(TRIALS)
    ]


def _body(kind: QuestionKind, model: str, tokens: int, random_: random.Random) -> dict[str, Any]:
    prompt = [random_.randrange(10, 300) for _ in range(random_.randrange(4, PROMPT_TOKENS))]
    lengths = {QuestionKind.ONE_TOKEN: 1, QuestionKind.SHORT_STOP: 24, QuestionKind.SEVERAL: tokens // 4}
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": lengths.get(kind, random_.randrange(tokens // 2, tokens)),
        "temperature": random_.choice((0.0, 0.9)),
        "seed": random_.randrange(1 << 30),
        "ignore_eos": True,
        "stream": kind is not QuestionKind.WHOLE,
    }
    return body | ({"n": 3} if kind is QuestionKind.SEVERAL else {})


async def learn(client: httpx.AsyncClient, question: Question) -> Question:
    """The question with its answer; a short stop gets its stop string: what comes first in its own answer."""
    answer = await _answer(client, question)
    known = replace(question, expected=tuple(answer.texts), tokens=answer.tokens)
    (first, *_) = answer.texts
    if question.kind is not QuestionKind.SHORT_STOP or not first:
        return known
    stop = first[: 1 + int(question.body["seed"]) % 3]
    known = replace(known, body={**question.body, "stop": [stop]}, expected=(first[: first.index(stop)],))
    return replace(known, tokens=(await _answer(client, known)).tokens)


async def _answer(client: httpx.AsyncClient, question: Question) -> HeardAnswer:
    answer = HeardAnswer.to(question)
    await _ask(client, question, answer, lambda: None)
    return answer


async def _ask(client: httpx.AsyncClient, question: Question, answer: HeardAnswer, heard: Callable[[], None]) -> None:
    body = dict(question.body)
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != httpx.codes.OK:
            raise ReplyError(refusal(response.status_code, await response.aread()))
        if not body["stream"]:
            answer.add(httpx.Response(200, content=await response.aread()).json())
        else:
            async for chunk in read_chunks(response):
                heard()
                answer.add(chunk)
    answer.ended = True


class Client:
    """Asks one question after the other until ``until_s``; one that loses its server asks the same one again."""

    def __init__(self, number: int, http: httpx.AsyncClient, asked: Sequence[Question], seed: int) -> None:
        self._number = number
        self._http = http
        self._asked = asked
        self._random = random.Random(seed * 1000 + number)

    async def run(self, watch: Watch, until_s: float) -> None:
        while time.monotonic() < until_s:
            question = self._random.choice(self._asked)
            while await self._once(question, watch) is Verdict.CUT:
                await asyncio.sleep(PAUSE_S)

    async def _once(self, question: Question, watch: Watch) -> Verdict:
        answer, start_s = HeardAnswer.to(question), time.monotonic()
        watch.open(self._number)
        verdict, why = await self._outcome(question, answer, watch, start_s)
        if verdict is not Verdict.CUT:  # else it waits until the same question is answered
            watch.close(self._number)
        told, expected = f"{answer.tokens} tokens {answer.texts!r}", f"{question.tokens} tokens {question.expected!r}"
        watch.count(question, verdict, f"{why}; told {told}, expected {expected}")
        return verdict

    async def _outcome(
        self, question: Question, answer: HeardAnswer, watch: Watch, start_s: float
    ) -> tuple[Verdict, str]:
        leaves = self._random.uniform(0.0, 1.0) if question.kind is QuestionKind.LEAVER else None
        try:
            async with asyncio.timeout(leaves):
                await _ask(self._http, question, answer, lambda: watch.hear(self._number))
        except TimeoutError:
            return answer.verdict(question), "left"
        except httpx.TimeoutException:
            return Verdict.HUNG, f"nothing came for {watch.hang_s:.0f} s"
        except (httpx.TransportError, ReplyError) as error:
            why = f"{type(error).__name__} {error} after {time.monotonic() - start_s:.1f} s"
            cut = answer.verdict(question) is Verdict.RIGHT and watch.may_cut(start_s)
            return (Verdict.CUT if cut else Verdict.LOST), why
        return answer.verdict(question), "ended"
