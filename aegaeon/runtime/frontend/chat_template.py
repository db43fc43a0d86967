"""A model's chat template: in which form it wants messages, and whether it can be used at all.

Templates are programs of whoever made the model. Most print a message's content as a string; some walk over it as a
list of parts, and leave out, or refuse, a string. So each template is tried with marked text, role by role, and gets
each role's content in the form in which the text comes out.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

# How a template fails over messages that it does not take. It is the model's own code: others are faults of its own.
RENDER_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

Render = Callable[[list[dict[str, Any]]], str]
"""Renders messages as they are; may raise anything."""

_TRIAL_S = 10.0  # where it takes milliseconds

_CHATS = (("user",), ("system", "user"))
"""Conversations of which one at least must show what the user says."""

_ALL_FORMS = (frozenset[str](), frozenset({"user"}), frozenset({"user", "system"}))
_TRIED = frozenset({"system", "user", "assistant", "tool"})
_TOLD = frozenset({"system", "assistant"})
"""Roles that every template should know; most have never heard of tools, which is no news."""


@dataclass(frozen=True, slots=True)
class TemplateUse:
    """``in_parts``: roles whose content must be a list of parts. ``problem``: why no chat can be rendered.

    ``notes``: what is odd about the template, for the operator.
    """

    in_parts: frozenset[str] = frozenset()
    problem: str | None = None
    notes: tuple[str, ...] = ()

    def formed(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages in the forms that the template wants; roles that were not tried go as the user's."""
        roles = [message.get("role") for message in messages]
        forms = [(role if role in _TRIED else "user") in self.in_parts for role in roles]
        return [_formed(message, parts) for message, parts in zip(messages, forms, strict=True)]


class _GivenUp(BaseException):
    """Nobody waits any more."""


def try_template(render: Render, limit_s: float = _TRIAL_S) -> TemplateUse:
    """Find out how a template is to be used, from what it makes of marked messages.

    One that takes longer than ``limit_s`` is given up: a loop within a loop may take for ever.
    """
    found: list[TemplateUse] = []

    def attempt() -> None:
        with contextlib.suppress(_GivenUp):
            found.append(_try(render))

    trial = threading.Thread(target=attempt, name="chat-template", daemon=True)
    trial.start()
    trial.join(limit_s)
    if found:
        return found[0]
    # It would go on in the background; this ends it at its next line of Python.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(trial.ident or 0), ctypes.py_object(_GivenUp))
    return TemplateUse(problem=f"its chat template takes longer than {limit_s:.0f} s for a few words")


def _try(render: Render) -> TemplateUse:
    chats = [_attempt(render, roles, in_parts) for in_parts in _ALL_FORMS for roles in _CHATS]
    seen = next((chat for chat in chats if chat.shows("user")), None)
    if seen is None:
        return _unusable(chats)
    in_parts, notes = seen.in_parts, []
    for roles in (_CHATS[1], (*seen.roles, "assistant", "user"), (*seen.roles, "assistant", "tool")):
        plain = _attempt(render, roles, in_parts)
        for role in dict.fromkeys(roles):
            if role == "user" or role in in_parts or plain.shows(role):
                continue
            if _attempt(render, roles, in_parts | {role}).shows(role):
                in_parts |= {role}
            elif plain.error is None and role in _TOLD:
                notes.append(f"its chat template leaves out {role} messages")
    return TemplateUse(in_parts, None, tuple(dict.fromkeys(notes)))


def _unusable(attempts: Sequence[_Attempt]) -> TemplateUse:
    error = attempts[0].error
    if isinstance(error, TemplateSyntaxError):
        return TemplateUse(problem=f"its chat template does not compile: {error}")
    if error is not None and not isinstance(error, RENDER_ERRORS):
        return TemplateUse(problem=f"its chat template fails: {type(error).__name__}: {error}")
    if any(attempt.error is None for attempt in attempts):
        return TemplateUse(problem="its chat template leaves out what the user says, as a string and as parts")
    # It may yet take messages of other kinds, or with arguments.
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return TemplateUse(notes=(f"its chat template refuses a plain user message: {reason}",))


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What came of a conversation in which every message has marked text."""

    roles: tuple[str, ...]
    in_parts: frozenset[str]
    text: str
    error: Exception | None

    def shows(self, role: str) -> bool:
        """Whether all that this role says came out, in whatever case."""
        marks = [_mark(place) for place, said_by in enumerate(self.roles) if said_by == role]
        return self.error is None and all(mark in self.text.lower() for mark in marks)


def _attempt(render: Render, roles: tuple[str, ...], in_parts: frozenset[str]) -> _Attempt:
    messages = [{"role": role, "content": _mark(place)} for place, role in enumerate(roles)]
    try:
        return _Attempt(roles, in_parts, render(TemplateUse(in_parts).formed(messages)), None)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is told
        return _Attempt(roles, in_parts, "", error)


def _mark(place: int) -> str:
    return f"marked{place}text"


def _formed(message: Mapping[str, Any], parts: bool) -> dict[str, Any]:
    """Content as text is joined by newlines, as vLLM does."""
    content = message.get("content")
    if parts and isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    if not parts and isinstance(content, list):
        return {**message, "content": "\n".join(part["text"] for part in content)}
    return dict(message)
