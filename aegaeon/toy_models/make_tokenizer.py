"""A small but real tokenizer: byte-level BPE trained on a few kilobytes of English, with a chat template."""

from __future__ import annotations

import itertools
import json
from importlib.resources import files

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from aegaeon.toy_models.special_tokens import BEGIN, END, MIN_VOCAB_SIZE, PAD, SPECIAL_TOKENS

# Instructions of a developer are the system's, and what a tool gives comes, as the user's words do, from outside.
CHAT_TEMPLATE = """\
{%- set markers = {
    'system': 'system', 'developer': 'system', 'user': 'user', 'tool': 'user', 'assistant': 'assistant'
} %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in markers %}
        {{- raise_exception('the roles of this model are system, developer, user, tool and assistant') }}
    {%- endif %}
    {{- '<|' + markers[message.role] + '|>' }}
    {%- if message.content is string %}
        {{- message.content | trim }}
    {%- else %}
        {%- for part in message.content or [] if part.type == 'text' %}{{ part.text | trim }}{% endfor %}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

_OWN_TEXT_WEIGHT = 8
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def corpus() -> str:
    """The English text that comes with the package."""
    return (files("aegaeon") / "data" / "corpus.txt").read_text(encoding="utf-8")


def make_tokenizer(vocab_size: int, own_text: str = "", max_context: int = 2048) -> PreTrainedTokenizerFast:
    """Train a tokenizer of exactly ``vocab_size`` tokens on the corpus and, with more weight, ``own_text``.

    Where the texts have too few distinct words for that, made-up words fill the rest, so that every id a model may
    produce is some text. A plain text begins with ``<|begin|>``. Raises ``ValueError`` below ``MIN_VOCAB_SIZE``.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"a vocabulary needs at least {MIN_VOCAB_SIZE} tokens (bytes and markers), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([corpus(), *[own_text] * _OWN_TEXT_WEIGHT], trainer)
    _fill(tokenizer, vocab_size)
    begin = (BEGIN, tokenizer.token_to_id(BEGIN))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[begin]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_context,
        clean_up_tokenization_spaces=False,
    )


def _fill(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Add made-up words that no merge leads to until the vocabulary has its size."""
    model = json.loads(tokenizer.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    for word in _made_up_words():
        if len(vocab) >= vocab_size:
            break
        vocab.setdefault(word, len(vocab))
    tokenizer.model = models.BPE(vocab, [tuple(merge) for merge in model["merges"]])


def _made_up_words() -> itertools.chain[str]:
    """`` baba``, `` babe``, ...: without end."""
    syllables = ["".join(pair) for pair in itertools.product(_CONSONANTS, _VOWELS)]
    by_length = (itertools.product(syllables, repeat=count) for count in itertools.count(2))
    return itertools.chain.from_iterable((f"Ġ{''.join(word)}" for word in words) for words in by_length)
