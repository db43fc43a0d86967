"""The forms in which the API takes prompts and message contents, brought to one."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticCustomError

from aegaeon.core.generation import TextPrompt, TokenPrompt

TOKEN_ID_LIMIT = 2**31


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong_form", "{reason}", {"reason": message})


def message_content(content: Any) -> Any:
    """A message's text as it came: a string, or parts, all of them text. Templates differ in what they want."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong("must be a string or a list of text parts")
    return [{"type": "text", "text": _part_text(part, index)} for index, part in enumerate(content)]


def _part_text(part: Any, index: int) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise _wrong(f"part {index} must be an object with a type")
    if part["type"] != "text":
        raise _wrong(f"part {index} is of type {part['type']!r}; only text is supported")
    if not isinstance(part.get("text"), str):
        raise _wrong(f"part {index} needs a text")
    return str(part["text"])


def completion_prompts(value: Any) -> tuple[TextPrompt | TokenPrompt, ...]:
    """A string, token ids, or a list of either, as prompts; none may be empty."""
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        return tuple(_prompt(item, f"prompt {index}") for index, item in enumerate(value))
    return (_prompt(value, "prompt"),)


def _prompt(value: Any, name: str) -> TextPrompt | TokenPrompt:
    if not isinstance(value, str | list):
        raise _wrong(f"{name} must be a string or a list of token ids")
    if not value:
        raise _wrong(f"{name} must not be empty")
    if isinstance(value, str):
        return TextPrompt(value)
    if not all(type(item) is int and 0 <= item < TOKEN_ID_LIMIT for item in value):
        raise _wrong(f"{name} must be a list of token ids (non-negative integers)")
    return TokenPrompt(tuple(value))
