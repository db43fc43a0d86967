"""How answers look on the wire: JSON bodies and stream chunks of chat and text completions.

What is the same in every chunk is serialised once, so that a token costs one short string.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aegaeon import __version__
from aegaeon.core.generation import FinishReason

FINGERPRINT = f"aegaeon-{__version__}"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that an answer took; ``cached_tokens``: of its prompt, which had not to be computed."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def body(self) -> dict[str, Any]:
        """The ``usage`` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class WholeChoice:
    """One complete output."""

    text: str
    finish_reason: FinishReason


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {_json(data)}\n\n".encode("ascii")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


class Wire(ABC):
    """The wire format of one answer. Chunks are whole server-sent events."""

    whole_object: str
    chunk_object: str

    def __init__(self, answer_id: str, model: str, created_s: int, *, include_usage: bool = False) -> None:
        self._head = {"id": answer_id, "object": self.chunk_object, "created": created_s, "model": model}
        self._head["system_fingerprint"] = FINGERPRINT
        # With usage asked for, OpenAI's other chunks carry a null in its place.
        self._prefix = f'data: {_json(self._head)[:-1]},"choices":[{{"index":'
        self._suffix = ',"usage":null}\n\n' if include_usage else "}\n\n"

    @abstractmethod
    def opening(self, index: int) -> bytes:
        """What comes before the first text of a choice."""

    @abstractmethod
    def delta(self, index: int, text: str) -> bytes:
        """A chunk of text of a choice."""

    @abstractmethod
    def closing(self, index: int, reason: FinishReason) -> bytes:
        """The last chunk of a choice."""

    @abstractmethod
    def choice(self, index: int, whole: WholeChoice) -> dict[str, Any]:
        """One choice of a whole body."""

    def usage(self, usage: Usage, extra: Mapping[str, Any]) -> bytes:
        """The chunk with the usage, and whatever else the client asked for."""
        return event({**self._head, "choices": [], "usage": usage.body, **extra})

    def body(self, choices: list[WholeChoice], usage: Usage, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The answer in one piece."""
        rendered = [self.choice(index, whole) for index, whole in enumerate(choices)]
        head = {**self._head, "object": self.whole_object}
        return {**head, "choices": rendered, "usage": usage.body, **extra}

    def _chunk(self, index: int, content: str, finish: str = "null") -> bytes:
        tail = f'"logprobs":null,"finish_reason":{finish}}}]'
        return f"{self._prefix}{index},{content},{tail}{self._suffix}".encode("ascii")


class ChatWire(Wire):
    """``/v1/chat/completions``."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> bytes:
        return self._chunk(index, '"delta":{"role":"assistant","content":"","refusal":null}')

    def delta(self, index: int, text: str) -> bytes:
        return self._chunk(index, f'"delta":{{"content":{json.dumps(text)}}}')

    def closing(self, index: int, reason: FinishReason) -> bytes:
        return self._chunk(index, '"delta":{}', f'"{reason}"')

    def choice(self, index: int, whole: WholeChoice) -> dict[str, Any]:
        message = {"role": "assistant", "content": whole.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": whole.finish_reason}


class CompletionWire(Wire):
    """``/v1/completions``."""

    whole_object = "text_completion"
    chunk_object = "text_completion"

    def opening(self, index: int) -> bytes:
        return b""

    def delta(self, index: int, text: str) -> bytes:
        return self._chunk(index, f'"text":{json.dumps(text)}')

    def closing(self, index: int, reason: FinishReason) -> bytes:
        return self._chunk(index, '"text":""', f'"{reason}"')

    def choice(self, index: int, whole: WholeChoice) -> dict[str, Any]:
        return {"index": index, "text": whole.text, "logprobs": None, "finish_reason": whole.finish_reason}
