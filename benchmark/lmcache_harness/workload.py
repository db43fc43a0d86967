"""The requests of a workload: a sentence as often as the context is long, and a question."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from benchmark.command.errors import BenchmarkUsageError
from benchmark.lmcache_harness.config import Usecase, WorkloadConfig

_SENTENCE = "The harbour was quiet in the morning. "
_WARM_UP_SENTENCE = "Nobody has asked for these words yet. "  # of another beginning: nothing of it may be found
_QUESTIONS = {
    Usecase.DUMMY: "Question: what was quiet?",
    Usecase.VARY: "Question: what was quiet?",
    Usecase.MULTI: "Question: please tell a long story of a harbour.",
}
_WARM_UP_TIMES = (20, 21)


@dataclass(frozen=True, slots=True)
class HarnessRequest:
    """``at_s``: after the beginning of the experiment, at the earliest."""

    at_s: float
    context: str
    question: str

    @property
    def text(self) -> str:
        return f"{self.context} {self.question}"


class TextMaker:
    """Makes text of so many tokens of a model. Raises ``BenchmarkUsageError`` for a model without a tokenizer file."""

    def __init__(self, model: Path) -> None:
        file = model / "tokenizer.json"
        if not file.is_file():
            raise BenchmarkUsageError(f"{model} is no folder of a model: it has no tokenizer.json")
        self._tokenizer = Tokenizer.from_file(str(file))

    def tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)

    def filler(self, tokens: int) -> str:
        """The sentence, again and again, as often as it fits."""
        once, more = self.tokens(_SENTENCE), self.tokens(_SENTENCE * 11) - self.tokens(_SENTENCE)
        return _SENTENCE * max(0, 1 + int((tokens - once) * 10 / more) if tokens >= once else 0)

    def question(self, index: int, config: WorkloadConfig) -> str:
        """Padded in front to the length that is wanted, where it is shorter."""
        begin, end = f"Index {index}.", _QUESTIONS[config.usecase]
        filler = self.filler(config.query_tokens - self.tokens(f"{begin} {end}"))
        return f"{begin} {filler}{end}"


def requests_of(config: WorkloadConfig, texts: TextMaker) -> list[HarnessRequest]:
    """The requests of a workload; of a conversation what each adds to it."""
    return [
        HarnessRequest(
            index * config.gap_s, texts.filler(_context_tokens(index, config)), texts.question(index, config)
        )
        for index in range(config.requests)
    ]


def _context_tokens(index: int, config: WorkloadConfig) -> int:
    times = (index + 1) // 2 + 1 if config.usecase is Usecase.VARY else 1
    return config.context_tokens * times


def warm_up_texts() -> list[str]:
    """What every engine is asked before anything is measured."""
    return [_WARM_UP_SENTENCE * times for times in _WARM_UP_TIMES]
