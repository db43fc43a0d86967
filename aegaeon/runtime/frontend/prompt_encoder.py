"""Turns prompts into token ids off the event loop: small ones side by side, large ones one after the other."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from aegaeon.core.generation import ChatPrompt, Prompt, TextPrompt
from aegaeon.runtime.frontend.text import ModelText

LARGE_CHARS = 64 << 10
LARGE_MESSAGES = 256


class PromptEncoder:
    """However many large prompts come, small ones wait for none of them, and memory has to hold one at work."""

    def __init__(self) -> None:
        self._large = ThreadPoolExecutor(1, "large-prompts")

    async def encode(self, text: ModelText, prompt: Prompt, most_tokens: int) -> tuple[int, ...]:
        """A prompt's token ids. Raises ``PromptError``, ``PromptTooLongError``."""
        if not _is_large(prompt):
            return await asyncio.to_thread(text.encode, prompt, most_tokens)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._large, text.encode, prompt, most_tokens)

    def close(self) -> None:
        """Begin no more."""
        self._large.shutdown(wait=False, cancel_futures=True)


def _is_large(prompt: Prompt) -> bool:
    match prompt:
        case TextPrompt(text=text):
            return len(text) > LARGE_CHARS
        case ChatPrompt(messages=messages):
            if len(messages) > LARGE_MESSAGES:
                return True
            return sum(len(str(message.get("content"))) for message in messages) > LARGE_CHARS
        case _:
            return False  # token ids are there already
