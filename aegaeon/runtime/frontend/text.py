"""Text of one model: chat template, tokenizer, incremental detokenizer, stop strings."""

from __future__ import annotations

import codecs
import inspect
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from aegaeon.core.generation import ChatPrompt, Prompt, PromptError, TextPrompt, TokenPrompt
from aegaeon.runtime.frontend.chat_template import RENDER_ERRORS, TemplateUse, try_template

UTF8_MAX_BYTES = 4
_VOCABULARY_FILES = ("tokenizer.json", "vocab.*", "tekken.json", "*.model", "*.tiktoken")
# A text with fewer characters than this for each token that it may have is encoded without counting first.
_LIKELY_TOKEN_CHARS = 4
_PIECE_CHARS = 16 << 10
_CUT_TOKENS = 64  # what cutting a text in two may add to its tokens, generously
_TEMPLATE_OPTIONS = frozenset({"add_generation_prompt", "continue_final_message"})


class TokenizerError(Exception):
    """A model directory has no usable tokenizer; the message says why."""


class PromptTooLongError(Exception):
    """A prompt has more tokens than it may; ``tokens`` is a lower bound of how many."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"at least {tokens} tokens")
        self.tokens = tokens


class ModelText:
    """Everything about a model that has to do with text. Encoding is safe in threads, beside streams elsewhere."""

    def __init__(self, path: Path, *, chat_template: str | None = None) -> None:
        """The tokenizer of the Hugging Face model directory ``path``; runs no code from it.

        ``chat_template`` (Jinja source) replaces the directory's own. Raises ``TokenizerError``.
        """
        self._tokenizer = _load_tokenizer(path)
        if chat_template is not None:
            self._tokenizer.chat_template = chat_template
        self._vocabulary = _vocabulary(path, self._tokenizer)
        self._template = try_template(self._apply_template) if self.has_chat_template else TemplateUse()
        parameters = set(inspect.signature(self._tokenizer.apply_chat_template).parameters)
        self._reserved_kwargs = (parameters | {"messages"}) - _TEMPLATE_OPTIONS

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be rendered."""
        return bool(self._tokenizer.chat_template)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is wrong or odd about the chat template, for the operator."""
        return (*filter(None, [self._template.problem]), *self._template.notes)

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text, as the tokenizer has it."""
        token_id: int | None = self._tokenizer.eos_token_id
        return token_id

    def encode(self, prompt: Prompt, most_tokens: int | None = None) -> tuple[int, ...]:
        """A prompt's token ids; those of a ``TokenPrompt`` are not checked. Raises ``PromptError``.

        ``most_tokens``: far longer prompts need not be encoded whole to be told apart; ``PromptTooLongError`` then.
        """
        match prompt:
            case TokenPrompt(token_ids=token_ids):
                return token_ids
            case TextPrompt(text=text):
                return self._ids(text, most_tokens, add_special_tokens=True)
            case ChatPrompt():
                # The template writes the special tokens itself.
                return self._ids(self.render(prompt), most_tokens, add_special_tokens=False)

    def render(self, chat: ChatPrompt) -> str:
        """The text that the model's chat template makes of messages. Raises ``PromptError``."""
        if not self.has_chat_template:
            message = "This model has no chat template: use /v1/completions, or configure a chat_template for it."
            raise PromptError(message, "messages")
        if self._template.problem is not None:
            advice = "use /v1/completions, or configure a chat_template for it"
            raise PromptError(f"This model takes no chats, {self._template.problem}: {advice}.", "messages")
        options = {"add_generation_prompt": not chat.template_kwargs.get("continue_final_message")}
        options |= self._allowed(chat.template_kwargs)
        try:
            return self._apply_template(self._template.formed(chat.messages), **options)
        except RENDER_ERRORS as error:
            raise PromptError(f"The model's chat template refuses these messages: {error}", "messages") from error

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        """A detokenizer of output.

        ``context``: the tokens that the output goes on from (a raw prompt), so that a space between the two is not
        lost; none for output that stands for itself (the answer in a chat).
        """
        visible = (token_id for token_id in reversed(context) if self._vocabulary.visible(token_id))
        return TextStream(self._vocabulary, list(islice(visible, UTF8_MAX_BYTES))[::-1])

    def _apply_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        options.setdefault("add_generation_prompt", True)
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def _ids(self, text: str, most_tokens: int | None, *, add_special_tokens: bool) -> tuple[int, ...]:
        if most_tokens is not None and len(text) > _LIKELY_TOKEN_CHARS * most_tokens:
            self._refuse_if_too_long(text, most_tokens)
        return self._encoded(text, add_special_tokens=add_special_tokens)

    def _refuse_if_too_long(self, text: str, most_tokens: int) -> None:
        """Count in pieces, as far as needed: of a text far too long one never has to hold all tokens."""
        tokens = 0
        for start in range(0, len(text), _PIECE_CHARS):
            piece = text[start : start + _PIECE_CHARS]
            tokens += max(0, len(self._encoded(piece, add_special_tokens=False)) - _CUT_TOKENS)
            if tokens > most_tokens:
                raise PromptTooLongError(tokens)

    def _encoded(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))

    def _allowed(self, template_kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        reserved = sorted(self._reserved_kwargs & template_kwargs.keys())
        if reserved:
            raise PromptError(f"chat_template_kwargs must not set {', '.join(reserved)}.", "chat_template_kwargs")
        return template_kwargs


def _vocabulary(path: Path, tokenizer: Any) -> _Vocabulary:
    try:
        return _Vocabulary(tokenizer)
    except Exception as error:  # Tokenizers of unusual make, asked for what they do not have.
        raise TokenizerError(f"The tokenizer in {path} cannot be used: {type(error).__name__}: {error}") from error


def _load_tokenizer(path: Path) -> Any:
    if not any(any(path.glob(pattern)) for pattern in _VOCABULARY_FILES):
        raise TokenizerError(f"{path} has no tokenizer: copy the model's tokenizer files (tokenizer.json) there.")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # The tokenizer library raises bare exceptions.
        reason = next(iter(str(error).splitlines()), "")
        raise TokenizerError(f"The tokenizer in {path} cannot be loaded: {type(error).__name__}: {reason}") from error


class TextStream:
    """Turns output tokens into text as they come.

    Tokens are bytes, and text is their UTF-8: a character appears with its last byte, invalid bytes become U+FFFD one
    by one, special tokens and ids beyond the vocabulary are left out. All deltas together are what decoding all tokens
    at once gives. (One exception: where a byte-fallback tokenizer would let one stray byte spoil its valid neighbours,
    these stay valid.)
    """

    def __init__(self, vocabulary: _Vocabulary, context: Sequence[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._previous: int | None = None
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in context:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that is complete with this token."""
        return self._utf8.decode(self._bytes(token_id))

    def finish(self) -> str:
        """What is left at the end: U+FFFD if that is within a character."""
        return self._utf8.decode(b"", final=True)

    def _bytes(self, token_id: int) -> bytes:
        if not self._vocabulary.visible(token_id):
            return b""
        token_bytes = self._vocabulary.bytes_after(self._previous, token_id)
        self._previous = token_id
        return token_bytes


class _Vocabulary:
    """The bytes that tokens stand for.

    Three kinds of tokens: of byte-level tokenizers, whose characters each stand for a byte (GPT-2); single bytes,
    written ``<0xE2>`` (SentencePiece's byte fallback); and all others, whose text may depend on whether there is a
    token before them (SentencePiece drops the first space).
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._is_byte_level = _is_byte_level(tokenizer)
        self._byte_tokens = _byte_tokens(tokenizer)
        self._hidden = _special_ids(tokenizer)
        # Only the Rust tokenizers answer None to ids they do not have.
        self._id_limit = 2**31 if tokenizer.is_fast else len(tokenizer)

    def visible(self, token_id: int) -> bool:
        """Whether a token is text at all."""
        return token_id not in self._hidden and self._token(token_id) is not None

    def bytes_after(self, previous: int | None, token_id: int) -> bytes:
        """What visible token ``token_id`` adds to a text that ends in ``previous`` (None: to an empty one)."""
        if self._is_byte_level:
            return _byte_level_bytes(str(self._token(token_id)))
        byte = self._byte_tokens.get(token_id)
        # A leading space is dropped also where it is a byte token, so only later ASCII bytes are taken as they are.
        if byte is not None and (previous is not None or not byte.isascii()):
            return byte
        if previous is None:
            return self._decode([token_id]).encode()
        return self._decode([previous, token_id])[len(self._decode([previous])) :].encode()

    def _token(self, token_id: int) -> str | None:
        if token_id >= self._id_limit:
            return None
        token: str | None = self._tokenizer.convert_ids_to_tokens(token_id)
        return token

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))


def _is_byte_level(tokenizer: Any) -> bool:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    return any(part["type"] == "ByteLevel" for part in state.get("decoders", [state]))


def _byte_tokens(tokenizer: Any) -> dict[int, bytes]:
    """Byte-fallback tokens; none unless the vocabulary has all 256."""
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary.get(f"<0x{byte:02X}>") for byte in range(256)]
    return {} if None in ids else {token_id: bytes([byte]) for byte, token_id in enumerate(ids)}


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids).union(token_id for token_id, token in added if token.special)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones of Latin-1 as they are, all others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


_BYTE_ALPHABET = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([_BYTE_ALPHABET[char] for char in token])
    except KeyError:  # An added token, which is plain text.
        return token.encode()


class StopStrings:
    """Cuts text off before the first stop string, wherever pieces of the text end.

    Text that may yet become a stop string is held back. The stop string that is complete first counts, and of several
    that end at the same character the longest. One Knuth-Morris-Pratt automaton per stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._patterns = [_Pattern(stop) for stop in stops]
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """The part of the text so far that is certain to stay and was not returned yet; whether the text is over."""
        if self._stopped or not self._patterns:
            return ("" if self._stopped else text), self._stopped
        for index, char in enumerate(text):
            complete = [pattern.length for pattern in self._patterns if pattern.advance(char)]
            if complete:
                self._stopped = True
                return self._release(text[: index + 1], max(complete), keep=False), True
        return self._release(text, max(pattern.matched for pattern in self._patterns), keep=True), False

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        return self._release("", 0, keep=False)

    def _release(self, text: str, tail_chars: int, *, keep: bool) -> str:
        """All text that is held, but for its tail, which is kept for later or dropped."""
        text = self._held + text
        cut = len(text) - tail_chars
        self._held = text[cut:] if keep else ""
        return text[:cut]


class _Pattern:
    """A Knuth-Morris-Pratt automaton: how much of a string the text so far ends in."""

    def __init__(self, string: str) -> None:
        self._string = string
        self._fallback = _fallbacks(string)
        self.length = len(string)
        self.matched = 0

    def advance(self, char: str) -> bool:
        """Take one character; whether the string is complete with it. Not to be called after that."""
        while self.matched and self._string[self.matched] != char:
            self.matched = self._fallback[self.matched - 1]
        self.matched += self._string[self.matched] == char
        return self.matched == self.length


def _fallbacks(string: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    table = [0]
    matched = 0
    for char in string[1:]:
        while matched and string[matched] != char:
            matched = table[matched - 1]
        matched += string[matched] == char
        table.append(matched)
    return table
