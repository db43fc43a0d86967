"""What model is asked for, and whether it can be made: looked at before anything heavy is imported."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from aegaeon.toy_models.special_tokens import MIN_VOCAB_SIZE

DTYPES = ("bfloat16", "float16", "float32")


class MakeModelError(ValueError):
    """A model cannot be made as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """The sizes of a model. ``kv_heads`` None: half of the heads; ``intermediate_size`` None: thrice the hidden size.

    Mixtures of experts get four experts, two of which are active.
    """

    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int | None = None
    intermediate_size: int | None = None
    vocab_size: int = 1024
    max_context: int = 2048

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise MakeModelError(f"{field.name} must be at least 1, got {value}")
        if self.hidden_size % self.heads or self.head_size % 2:
            raise MakeModelError(
                f"hidden_size must be an even multiple of heads, got {self.hidden_size} and {self.heads}"
            )
        if self.heads % self.key_value_heads:
            raise MakeModelError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.key_value_heads}")
        if self.vocab_size < MIN_VOCAB_SIZE:
            raise MakeModelError(f"vocab_size must be at least {MIN_VOCAB_SIZE}, got {self.vocab_size}")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or (self.heads if self.heads % 2 else self.heads // 2)

    @property
    def feed_forward_size(self) -> int:
        return self.intermediate_size or 3 * self.hidden_size


def check_request(directory: Path, dtype: str, learn: Path | None, steps: int) -> str:
    """The text to learn, empty where there is none. Raises ``MakeModelError`` for what can be told without torch."""
    if dtype not in DTYPES:
        raise MakeModelError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    if steps < 1:
        raise MakeModelError(f"steps must be at least 1, got {steps}")
    _require_free(directory)
    return _read_text(learn) if learn is not None else ""


def _require_free(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise MakeModelError(f"{directory} is a file; choose another directory")
    try:
        taken = directory.is_dir() and any(directory.iterdir())
    except OSError as error:
        raise MakeModelError(f"cannot look into {directory}: {error.strerror}") from error
    if taken:
        raise MakeModelError(f"{directory} is not empty; remove it or choose another directory")


def _read_text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise MakeModelError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MakeModelError(f"{file} is not UTF-8 text") from error
    if len(text.split()) < 2:
        raise MakeModelError(f"{file} has nothing to learn; write a few sentences into it")
    return text
