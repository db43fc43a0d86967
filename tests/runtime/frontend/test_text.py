"""The text side of a model: templates, tokenizer, detokenizer, stop strings."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from aegaeon.core.generation import ChatPrompt, PromptError, TextPrompt, TokenPrompt
from aegaeon.runtime.frontend.chat_template import try_template
from aegaeon.runtime.frontend.text import ModelText, PromptTooLongError, StopStrings, TextStream, TokenizerError

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'forbidden' %}{{ raise_exception('no such role') }}{% endif %}"
    "[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if shout %}LOUD {% endif %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
SENTENCES = ["hello world, this is some text.", "naïve café, größer: 漢字 and 🙂🙃 emoji", "a  b   c\n\tdone"]
PIECES = ["▁", "▁hello", "hello", "▁wor", "ld", ".", "▁▁", "a", "é", "x", "▁a"]
# What SentencePiece models decode with: Llama 2 (drops one leading space), Gemma (does not), Unigram models.
SPACE_DECODERS = {
    "strip": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "keep": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "metaspace": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
}


def _save(tokenizer: Tokenizer, path: Path) -> Path:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.save_pretrained(path)
    return path


def _byte_level(path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 8, trainer)
    tokenizer.add_tokens(["<think> ü"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return _save(tokenizer, path)


def _byte_fallback(path: Path, decoder: decoders.Decoder) -> Path:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    tokenizer = Tokenizer(models.Unigram([(token, -1.0) for token in tokens], unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoder
    return _save(tokenizer, path)


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _byte_level(tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="session", params=SPACE_DECODERS)
def byte_fallback(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _byte_fallback(tmp_path_factory.mktemp(request.param), SPACE_DECODERS[request.param])


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _byte_fallback(tmp_path_factory.mktemp("llama"), SPACE_DECODERS["strip"])


def _deltas(stream: TextStream, token_ids: Iterable[int]) -> list[str]:
    return [*(stream.push(token_id) for token_id in token_ids), stream.finish()]


def _streamed(text: ModelText, token_ids: Iterable[int]) -> str:
    return "".join(_deltas(text.stream(), token_ids))


def _whole(tokenizer: Any, token_ids: list[int]) -> str:
    known = [token_id for token_id in token_ids if tokenizer.convert_ids_to_tokens(token_id) is not None]
    return tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False)


# --- streams ---


def test_deltas_of_any_byte_level_tokens_are_the_whole_text(byte_level: Path) -> None:
    text, tokenizer = ModelText(byte_level), AutoTokenizer.from_pretrained(byte_level)

    @given(st.lists(st.integers(0, len(tokenizer) + 5)))
    def check(token_ids: list[int]) -> None:
        assert _streamed(text, token_ids) == _whole(tokenizer, token_ids)

    check()


def test_deltas_of_byte_fallback_tokens_are_the_whole_text(byte_fallback: Path) -> None:
    text, tokenizer = ModelText(byte_fallback), AutoTokenizer.from_pretrained(byte_fallback)
    vocabulary = tokenizer.get_vocab()
    pieces = st.sampled_from([*PIECES, "<s>", "</s>"]).map(lambda piece: [vocabulary[piece]])
    characters = st.characters(codec="utf-8").map(
        lambda char: [vocabulary[f"<0x{byte:02X}>"] for byte in char.encode()]
    )

    @given(st.lists(st.one_of(pieces, characters)).map(lambda parts: list(chain.from_iterable(parts))))
    def check(token_ids: list[int]) -> None:
        assert _streamed(text, token_ids) == _whole(tokenizer, token_ids)

    check()


def test_no_delta_has_half_a_character(byte_level: Path, llama: Path) -> None:
    texts = [ModelText(byte_level), ModelText(llama)]

    @given(st.text(st.characters(codec="utf-8")))
    def check(sentence: str) -> None:
        for text in texts:
            deltas = "".join(_deltas(text.stream(), text.encode(TextPrompt(sentence))))
            assert deltas.count("\ufffd") == sentence.count("\ufffd")
            assert deltas.lstrip(" ") == sentence.lstrip(" ")

    check()


def test_a_character_comes_with_its_last_byte(llama: Path) -> None:
    text, vocabulary = ModelText(llama), AutoTokenizer.from_pretrained(llama).get_vocab()
    token_ids = [vocabulary[f"<0x{byte:02X}>"] for byte in "🙂".encode()]
    assert _deltas(text.stream(), token_ids) == ["", "", "", "🙂", ""]
    assert _deltas(text.stream(), token_ids[:3]) == ["", "", "", "\ufffd"]


def test_a_stray_byte_spoils_nothing_else(llama: Path) -> None:
    text, vocabulary = ModelText(llama), AutoTokenizer.from_pretrained(llama).get_vocab()
    token_ids = [vocabulary[token] for token in ("▁hello", "<0xC3>", "<0xA9>", "<0xFF>", "▁a", "<0xE2>", "x")]
    assert _streamed(text, token_ids) == "helloé\ufffd a\ufffdx"


def test_a_long_run_of_stray_bytes_comes_out_as_it_goes_in(byte_level: Path) -> None:
    text, vocabulary = ModelText(byte_level), AutoTokenizer.from_pretrained(byte_level).get_vocab()
    stream = text.stream()
    assert all(stream.push(vocabulary["ĩ"]) == "\ufffd" for _ in range(100))  # byte 0x87: only ever inside a character


def test_the_space_after_a_raw_prompt_stays(llama: Path) -> None:
    text, vocabulary = ModelText(llama), AutoTokenizer.from_pretrained(llama).get_vocab()
    prompt = [vocabulary[token] for token in ("<s>", "▁hello", "</s>")]
    assert text.stream(prompt).push(vocabulary["▁a"]) == " a"
    assert text.stream().push(vocabulary["▁a"]) == "a"
    assert text.stream([vocabulary["<s>"]]).push(vocabulary["▁a"]) == "a"


@pytest.mark.parametrize("split", [1, 2, 3])
def test_output_may_finish_a_character_of_the_prompt(llama: Path, split: int) -> None:
    text, vocabulary = ModelText(llama), AutoTokenizer.from_pretrained(llama).get_vocab()
    token_ids = [vocabulary[f"<0x{byte:02X}>"] for byte in "é🙂".encode()]
    stream = text.stream(token_ids[: 2 + split])
    assert "".join(stream.push(token_id) for token_id in token_ids[2 + split :]) == "🙂"


# --- prompts ---


def test_raw_prompts_get_the_tokenizers_special_tokens_and_chats_the_templates(byte_level: Path) -> None:
    text = ModelText(byte_level, chat_template=CHAT_TEMPLATE)
    assert text.encode(TextPrompt("hello"))[0] == 0
    chat = text.encode(ChatPrompt(({"role": "user", "content": "hello"},)))
    assert chat[0] == 0
    assert chat.count(0) == 1
    assert text.encode(TokenPrompt((5, 6))) == (5, 6)


def test_chats_are_rendered_as_transformers_does(byte_level: Path) -> None:
    text, tokenizer = ModelText(byte_level, chat_template=CHAT_TEMPLATE), AutoTokenizer.from_pretrained(byte_level)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    expected = tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True, shout=True
    )
    assert text.render(ChatPrompt(tuple(messages), {"shout": True})) == expected
    continued = text.render(ChatPrompt(tuple(messages), {"continue_final_message": True}))
    assert continued.endswith("ho")


def test_a_template_of_the_directory_is_found(byte_level: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(byte_level)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    assert ModelText(tmp_path).has_chat_template
    assert not ModelText(byte_level).has_chat_template


@pytest.mark.parametrize(
    ("template", "chat", "param", "says"),
    [
        (None, ChatPrompt(({"role": "user", "content": "x"},)), "messages", "/v1/completions"),
        (CHAT_TEMPLATE, ChatPrompt(({"role": "forbidden", "content": "x"},)), "messages", "no such role"),
        ("{{ ''.__class__.__mro__ }}", ChatPrompt(({"role": "user", "content": "x"},)), "messages", "unsafe"),
        ("{{ messages[0].content + 1 }}", ChatPrompt(({"role": "user", "content": "x"},)), "messages", "concatenate"),
        ("{% for %}", ChatPrompt(({"role": "user", "content": "x"},)), "messages", "does not compile.*/v1/completions"),
        (
            CHAT_TEMPLATE,
            ChatPrompt(({"role": "user", "content": "x"},), {"chat_template": "y", "tokenize": True}),
            "chat_template_kwargs",
            "chat_template, tokenize",
        ),
    ],
)
def test_chats_that_cannot_be_rendered_say_why(
    byte_level: Path, template: str | None, chat: ChatPrompt, param: str, says: str
) -> None:
    with pytest.raises(PromptError, match=says) as caught:
        ModelText(byte_level, chat_template=template).encode(chat)
    assert caught.value.param == param


# --- forms of templates ---

PART = "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
LOOP = "{% for m in messages %}<{{ m.role }}>"
SAYS = tuple(
    {"role": role, "content": f"{role} text {index}"}
    for index, role in enumerate(["system", "user", "assistant", "user"])
)
EITHER = "{% if m.content is string %}{{ m.content }}{% else %}" + PART + "{% endif %}"


@pytest.mark.parametrize(
    "template",
    {
        "strings": LOOP + "{{ m.content }}{% endfor %}",
        "parts": LOOP + PART + "{% endfor %}",
        "either": LOOP + EITHER + "{% endfor %}",
        "first part": LOOP + "{{ m.content[0].text }}{% endfor %}",
        "mapped": LOOP + "{{ m.content | map(attribute='text') | join }}{% endfor %}",
        "strings refused": LOOP
        + "{% if m.content is string %}{{ raise_exception('no') }}{% endif %}"
        + PART
        + "{% endfor %}",
        "parts refused": LOOP
        + "{% if m.content is not string %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}",
        "by role": LOOP + "{% if m.role == 'user' %}" + PART + "{% else %}{{ m.content }}{% endif %}{% endfor %}",
        "other way": LOOP + "{% if m.role != 'user' %}" + PART + "{% else %}{{ m.content }}{% endif %}{% endfor %}",
        "system first": "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}"
        + LOOP
        + PART
        + "{% endfor %}",
    }.items(),
    ids=lambda pair: pair[0],
)
@pytest.mark.parametrize("in_parts", [False, True], ids=["said as strings", "said as parts"])
def test_all_that_is_said_comes_out_of_every_kind_of_template(
    byte_level: Path, template: tuple[str, str], in_parts: bool
) -> None:
    text = ModelText(byte_level, chat_template=template[1])
    says = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in SAYS] if in_parts else SAYS
    rendered = text.render(ChatPrompt(tuple(says)))
    assert rendered == "".join(f"<{message['role']}>{message['content']}" for message in SAYS)
    assert text.notes == ()


def test_a_template_may_change_the_case_of_what_is_said(byte_level: Path) -> None:
    text = ModelText(byte_level, chat_template=LOOP + "{{ m.content | upper }}{% endfor %}")
    assert text.render(ChatPrompt(({"role": "user", "content": "hello"},))) == "<user>HELLO"
    assert text.notes == ()


def test_several_parts_stay_parts_or_become_lines(byte_level: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = ChatPrompt(({"role": "user", "content": parts},))
    assert ModelText(byte_level, chat_template=LOOP + PART + "{% endfor %}").render(chat) == "<user>ab"
    assert ModelText(byte_level, chat_template=LOOP + "{{ m.content }}{% endfor %}").render(chat) == "<user>a\nb"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (LOOP + "{% endfor %}", "leaves out what the user says"),
        (LOOP + "{{ m.text }}{% endfor %}", "leaves out what the user says"),
        ("{{ tools }}", "leaves out what the user says"),
        ("{% for m in %}", "does not compile"),
        ("{{ messages | no_such_filter }}", "does not compile"),
    ],
)
def test_a_template_that_loses_the_users_text_is_told_and_takes_no_chats(
    byte_level: Path, template: str, says: str
) -> None:
    text = ModelText(byte_level, chat_template=template)
    assert [says in note for note in text.notes] == [True]
    with pytest.raises(PromptError, match=f"{says}.*/v1/completions"):
        text.encode(ChatPrompt(({"role": "user", "content": "x"},)))
    assert text.encode(TextPrompt("hello"))


def test_a_template_that_leaves_out_other_roles_is_told(byte_level: Path) -> None:
    text = ModelText(byte_level, chat_template=LOOP + "{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    assert text.notes == (
        "its chat template leaves out system messages",
        "its chat template leaves out assistant messages",
    )
    assert text.render(ChatPrompt(SAYS)).endswith("user text 3")


def test_a_template_that_refuses_what_is_tried_is_told_and_tried_again(byte_level: Path) -> None:
    template = "{% if not name %}{{ raise_exception('who?') }}{% endif %}{{ name }}: {{ messages[0].content }}"
    text = ModelText(byte_level, chat_template=template)
    assert text.notes == ("its chat template refuses a plain user message: who?",)
    assert text.render(ChatPrompt(SAYS, {"name": "Ann"})) == "Ann: system text 0"


@pytest.mark.parametrize(
    "error", [MemoryError("too much"), SyntaxError("too many nested blocks"), NotImplementedError()]
)
def test_a_template_that_fails_of_itself_takes_no_chats(error: Exception) -> None:
    def render(messages: object) -> NoReturn:
        raise error

    assert str(try_template(render).problem).startswith(f"its chat template fails: {type(error).__name__}")


def test_a_template_that_takes_for_ever_is_given_up_and_ends(byte_level: Path) -> None:
    loops = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    tokenizer = AutoTokenizer.from_pretrained(byte_level)

    def render(messages: object) -> str:
        return str(tokenizer.apply_chat_template(messages, chat_template=loops, tokenize=False))

    assert "takes longer than" in str(try_template(render, limit_s=0.2).problem)
    for trial in (thread for thread in threading.enumerate() if thread.name == "chat-template"):
        trial.join(20)
        assert not trial.is_alive()


def test_named_templates_without_a_default_are_told(byte_level: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(byte_level)
    tokenizer.chat_template = {"tool_use": CHAT_TEMPLATE}
    tokenizer.save_pretrained(tmp_path)
    assert "multiple chat templates" in ModelText(tmp_path).notes[0]
    tokenizer.chat_template = {"default": LOOP + PART + "{% endfor %}", "tool_use": CHAT_TEMPLATE}
    tokenizer.save_pretrained(tmp_path)
    assert ModelText(tmp_path).render(ChatPrompt(({"role": "user", "content": "x"},))) == "<user>x"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "has no tokenizer"),
        ({"config.json": '{"model_type": "llama"}'}, "has no tokenizer"),
        ({"tokenizer.json": "{"}, "cannot be loaded"),
        ({"tokenizer.json": '{"model": {"type": "Other"}}'}, "cannot be loaded"),
        ({"tokenizer.json": "{}"}, "cannot be loaded: KeyError: 'added_tokens'"),
    ],
)
def test_a_directory_without_a_tokenizer_is_a_clear_error(tmp_path: Path, files: dict[str, str], says: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=says):
        ModelText(tmp_path)


def test_a_directory_that_does_not_exist_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        ModelText(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["hello world " * 40_000, "a" * 400_000, "🙂" * 100_000, " " * 400_000])
def test_a_prompt_that_is_far_too_long_is_not_encoded_whole(byte_level: Path, text: str) -> None:
    model = ModelText(byte_level, chat_template=CHAT_TEMPLATE)
    for prompt in (TextPrompt(text), ChatPrompt(({"role": "user", "content": text},))):
        with pytest.raises(PromptTooLongError) as refused:
            model.encode(prompt, 1000)
        # Some pieces will do: a lower bound, and far from all there are.
        assert 1000 < refused.value.tokens < 80_000


def test_a_prompt_that_fits_is_never_called_too_long(byte_level: Path) -> None:
    model = ModelText(byte_level)
    for text in ("hello world " * 5000, "hello world, this is some text.\n" * 2000, "🙂 é 漢字" * 3000):
        prompt = TextPrompt(text)
        token_ids = model.encode(prompt)
        assert model.encode(prompt, len(token_ids)) == token_ids


# --- stop strings ---

# A small alphabet, so that stop strings do occur and overlap.
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)
PARTS = st.lists(st.text("abc", max_size=5), max_size=10)


def _cut(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first (the longest of those)."""
    for end in range(1, len(text) + 1):
        found = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(found)]
    return text


@given(STOPS, PARTS)
def test_stop_strings_cut_the_text_wherever_its_parts_end(stops: list[str], parts: list[str]) -> None:
    matcher = StopStrings(stops)
    kept = ""
    for count, part in enumerate(parts, start=1):
        text, over = matcher.push(part)
        kept += text
        so_far = "".join(parts[:count])
        assert over == (_cut(so_far, stops) != so_far)
        assert all(stop not in kept for stop in stops)
        if not over:
            held = so_far[len(kept) :]
            assert so_far.startswith(kept)
            assert not held or any(stop.startswith(held) for stop in stops), "held back for nothing"
    kept += matcher.finish()
    assert kept == _cut("".join(parts), stops)


def test_nothing_comes_after_a_stop_string() -> None:
    matcher = StopStrings(["stop"])
    assert matcher.push("go st") == ("go ", False)
    assert matcher.push("op and more") == ("", True)
    assert matcher.push("more") == ("", True)
    assert matcher.finish() == ""


def test_a_long_stop_string_costs_no_more_than_a_short_one() -> None:
    matcher = StopStrings(["a" * 100_000 + "b"])
    text = "".join(matcher.push("a" * 100)[0] for _ in range(2_000))
    assert text + matcher.finish() == "a" * 200_000
