"""Turns prompts into token ids off the event loop: small ones side by side, large ones one after the other."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from aegaeon.core.generation import ChatPrompt, Prompt, TextPrompt
from aegaeon.memory.token_hash import block_names, root_name
from aegaeon.runtime.frontend.served_model import ServedModel
from aegaeon.runtime.wire.messages import KvNames

LARGE_CHARS = 64 << 10
LARGE_MESSAGES = 256


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt's token ids, and what their KV is called."""

    token_ids: tuple[int, ...]
    names: KvNames


class PromptEncoder:
    """However many large prompts come, small ones wait for none of them, and memory has to hold one at work."""

    def __init__(self) -> None:
        self._large = ThreadPoolExecutor(1, "large-prompts")

    async def encode(self, model: ServedModel, prompt: Prompt, salt: str = "") -> EncodedPrompt:
        """A prompt's tokens. Raises ``PromptError``, ``PromptTooLongError``."""
        if not _is_large(prompt):
            return await asyncio.to_thread(_encode, model, prompt, salt)
        return await asyncio.get_running_loop().run_in_executor(self._large, _encode, model, prompt, salt)

    def close(self) -> None:
        """Begin no more."""
        self._large.shutdown(wait=False, cancel_futures=True)


def _encode(model: ServedModel, prompt: Prompt, salt: str) -> EncodedPrompt:
    token_ids = model.text.encode(prompt, model.spec.max_context_tokens)
    root = root_name(model.spec.name, model.identity, salt)
    if not 0 <= min(token_ids, default=0) <= max(token_ids, default=0) < model.vocab_size:
        return EncodedPrompt(token_ids, KvNames(root))  # a client's own ids, which are refused in a moment
    names = block_names(root, token_ids, model.spec.kv_shape.block_tokens)
    return EncodedPrompt(token_ids, KvNames(root, tuple(names)))


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
