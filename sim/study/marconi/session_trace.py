"""Traces of sessions whose requests bring their whole history: a check that is given by rules, and made-up sessions of
the three kinds that Marconi was measured with (chats like LMSys's and ShareGPT's, agents on SWE-bench)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from sim.study.marconi.radix_tree import TokenRun, Tokens, count_tokens
from sim.systems.errors import InputError

MAX_CONTEXT_TOKENS = 32768
RESPONSE_S = 7.5
_PIECE_BITS = 20  # a session's own tokens are numbered from its index times two to the power of twice this
_WORDS_PER_TOKEN = 0.75
_TYPED_WORDS_PER_S = 1.5


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """``prompt``: the whole history and what this turn adds."""

    time_s: float
    session: int
    turn: int
    prompt: Tokens
    prompt_tokens: int
    answer: Tokens


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """Sessions begin ``sessions_per_s`` a second. ``response_s``: of agents, mean seconds between two turns."""

    dataset: str
    sessions_per_s: float = 1.0
    response_s: float = RESPONSE_S
    sessions: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise InputError(f"no data set is called {self.dataset!r}; there are {', '.join(DATASETS)}")
        for name, value in (("sessions/s", self.sessions_per_s), ("seconds between turns", self.response_s)):
            if not 0 < value < float("inf"):
                raise InputError(f"{name} must be more than 0, not {value:g}")
        if self.sessions < 1 or self.seed < 0:
            raise InputError("at least 1 session, and a seed of at least 0")

    @property
    def name(self) -> str:
        """As the artifact calls the file of such a trace."""
        art = f"_art={self.response_s}" if self.dataset == "swebench" else ""
        return f"{self.dataset}_sps={self.sessions_per_s}{art}_nums={self.sessions}"


def make_trace(spec: TraceSpec) -> list[SessionRequest]:
    """All requests by time."""
    return _by_time(request for session in range(spec.sessions) for request in DATASETS[spec.dataset](spec, session))


def check_trace() -> list[SessionRequest]:
    """30 sessions of 8 turns without a random number; three system prompts."""
    return _by_time(request for session in range(30) for request in _check_session(session))


def _by_time(requests: Iterator[SessionRequest]) -> list[SessionRequest]:
    return sorted(requests, key=lambda request: (request.time_s, request.session))


def _check_session(session: int) -> Iterator[SessionRequest]:
    history: Tokens = ((100_000 * (session % 3), 600),)
    for turn in range(8):
        asked = (10**6 + 10**4 * session + 200 * turn, 40 + (7 * session + 13 * turn) % 60)
        answered = (5 * 10**6 + 10**5 * session + 1000 * turn, 80 + (11 * session + 5 * turn) % 200)
        prompt = (*history, asked)
        yield _request(2.0 * session + 10.0 * turn, session, turn, prompt, answered)
        history = (*prompt, answered)


def _request(time_s: float, session: int, turn: int, prompt: Tokens, answer: TokenRun) -> SessionRequest:
    return SessionRequest(time_s, session, turn, prompt, count_tokens(prompt), (answer,))


class _Author:
    """Makes up the texts of a session: lengths have a long tail, tokens are its own."""

    def __init__(self, spec: TraceSpec, session: int) -> None:
        self.random = np.random.default_rng((spec.seed, session))
        self._next = (session + 1) << (2 * _PIECE_BITS)

    def text(self, mean_tokens: float, spread: float = 1.0) -> TokenRun:
        """Log-normal, of that mean."""
        tokens = max(1, round(self.random.lognormal(np.log(mean_tokens) - spread**2 / 2, spread)))
        self._next += 1 << _PIECE_BITS
        return self._next, tokens


@dataclass(frozen=True, slots=True)
class _Chat:
    """Mean tokens of questions and answers; sessions of ten rounds and, in the mean, five more. Whoever chats types the
    next question as soon as the answer is there, 90 words a minute."""

    question: float
    answer: float

    def __call__(self, spec: TraceSpec, session: int) -> Iterator[SessionRequest]:
        author = _Author(spec, session)
        time_s = session / spec.sessions_per_s
        history: Tokens = ()
        for turn in range(9 + int(author.random.geometric(1 / 6))):
            asked, answered = author.text(self.question), author.text(self.answer)
            prompt = (*history, asked)
            if count_tokens((*prompt, answered)) > MAX_CONTEXT_TOKENS:
                return
            if turn:
                time_s += asked[1] * _WORDS_PER_TOKEN / _TYPED_WORDS_PER_S
            yield _request(time_s, session, turn, prompt, answered)
            history = (*prompt, answered)


@dataclass(frozen=True, slots=True)
class _Agent:
    """An issue, then actions (the model's) and observations in turn. Only the last ``seen`` observations are shown; of
    those before them a line is left, so each turn the history changes in its middle."""

    system: int = 128
    issue: float = 6000.0
    action: float = 250.0
    observation: float = 1000.0
    line: int = 12
    seen: int = 5
    turns: int = 51
    mean_turns: float = 45.0

    def __call__(self, spec: TraceSpec, session: int) -> Iterator[SessionRequest]:
        author = _Author(spec, session)
        time_s = session / spec.sessions_per_s
        head: Tokens = ((0, self.system), author.text(self.issue))
        steps: list[tuple[TokenRun, TokenRun]] = []
        for turn in range(min(self.turns, 1 + int(author.random.poisson(self.mean_turns - 1)))):
            prompt = (*head, *(piece for step in self._shown(steps) for piece in step))
            action = author.text(self.action)
            if count_tokens((*prompt, action)) > MAX_CONTEXT_TOKENS:
                return
            yield _request(time_s, session, turn, prompt, action)
            steps.append((action, author.text(self.observation)))
            time_s += float(author.random.poisson(spec.response_s))

    def _shown(self, steps: list[tuple[TokenRun, TokenRun]]) -> Iterator[tuple[TokenRun, TokenRun]]:
        old = len(steps) - self.seen
        for index, (action, observation) in enumerate(steps):
            yield action, observation if index >= old else (-observation[0], self.line)


DATASETS: Mapping[str, Callable[[TraceSpec, int], Iterator[SessionRequest]]] = MappingProxyType(
    {"lmsys": _Chat(69.5, 214.5), "sharegpt": _Chat(161.3, 338.0), "swebench": _Agent()}
)
"""Mean lengths: of LMSYS-Chat-1M (Zheng et al., 2023) and of ShareGPT as vLLM's paper has them (Kwon et al., 2023).
Those of agents are not published: they are chosen so that Figure 11, caches of 60 to 140 GB, looks like Marconi's."""
