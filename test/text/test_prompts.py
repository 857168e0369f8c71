"""Prompts: from a YAML file to the token ids around the speech."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from speechllm.text.prompts import Prompts, answer_tokens, read_prompts
from speechllm.utils.errors import UserError

GOOD = """\
languages: {en: English, fr: French}
tasks:
  asr: "{speech} in {source}:"
  st: "Translate {speech} from {source} to {target}:"
"""


def write(tmp_path, text: str):
    path = tmp_path / "prompts.yaml"
    path.write_text(text, "utf-8")
    return path


def test_prompt_contains_language_names(tmp_path):
    prompts = read_prompts(write(tmp_path, GOOD))
    assert prompts.text("asr", "en", "en") == "{speech} in English:"
    expected = "Translate {speech} from English to French:"
    assert prompts.text("st", "en", "fr") == expected
    assert not prompts.chat


def test_tokens_around_the_speech(tmp_path, tokenizer):
    prompts = read_prompts(write(tmp_path, GOOD))
    before, behind = prompts.tokens("st", "fr", "en", tokenizer)
    assert tokenizer.decode(before) == "Translate "
    assert tokenizer.decode(behind) == " from French to English:"
    before, behind = prompts.tokens("asr", "fr", "fr", tokenizer)
    assert before == []
    assert tokenizer.decode(behind) == " in French:"


def test_a_list_of_hotwords_has_its_place(tmp_path, tokenizer):
    plain = read_prompts(write(tmp_path, GOOD))
    text = GOOD.replace(': "{speech}', ': "{hotwords}{speech}')
    text = text.replace("{speech} from", "{speech} ({hotwords}) from")
    prompts = read_prompts(write(tmp_path, text + 'hotwords: "Words: {words}\\n"'))
    assert prompts.max_hotword_tokens == 0  # that of a model
    words = ("Asterisk", "New York")
    before, behind = prompts.tokens("asr", "en", "en", tokenizer, words)
    assert tokenizer.decode(before) == "Words: Asterisk, New York\n"
    assert tokenizer.decode(behind) == " in English:"
    assert prompts.tokens("asr", "en", "en", tokenizer) == plain.tokens(
        "asr", "en", "en", tokenizer
    )
    # fields in a word are text
    words = ("{speech}{source}", "{words}")
    before, behind = prompts.tokens("st", "en", "fr", tokenizer, words)
    assert tokenizer.decode(before) == "Translate "
    listed = "Words: {speech}{source}, {words}\n"
    assert tokenizer.decode(behind) == f" ({listed}) from English to French:"
    chat = read_prompts(write(tmp_path, text + "hotwords: '{words}'\nchat: true"))
    before, behind = chat.tokens("asr", "en", "en", tokenizer, ["{speech}"])
    assert tokenizer.decode(before).endswith("user\n{speech}")


def test_prompt_begins_with_bos_token(tmp_path, tokenizer):
    """Some tokenizers (Llama 2) begin texts with a token: the prompt has it once."""

    class WithBegin:
        bos_token_id = 1

        def __call__(self, text, add_special_tokens=True):
            ids = [ord(c) for c in text]
            return {"input_ids": [1, *ids] if add_special_tokens else ids}

    prompts = Prompts({"asr": "ab{speech}c"}, {"en": "English"})
    assert prompts.tokens("asr", "en", "en", WithBegin()) == ([1, 97, 98], [99])


def test_chat_template_wraps_the_prompt(tmp_path, tokenizer):
    prompts = read_prompts(write(tmp_path, GOOD + "chat: true\n"))
    before, behind = prompts.tokens("asr", "en", "en", tokenizer)
    turn = [{"role": "user", "content": "X in English:"}]
    whole = tokenizer.apply_chat_template(
        turn, tokenize=False, add_generation_prompt=True
    )
    joined = f"{tokenizer.decode(before)}X{tokenizer.decode(behind)}"
    assert joined == whole
    assert before[0] == tokenizer.bos_token_id
    assert behind[-1] != tokenizer.eos_token_id


def test_missing_chat_template_is_an_error(tmp_path):
    class Plain:
        bos_token_id = None
        chat_template = None

    prompts = read_prompts(write(tmp_path, GOOD + "chat: true\n"))
    with pytest.raises(UserError, match="no chat template"):
        prompts.tokens("asr", "en", "en", Plain())


def test_answer_begins_with_space_and_ends_with_eos(tokenizer):
    tokens = answer_tokens(tokenizer, "  Hello you. ")
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens[:-1]) == " Hello you."


def test_unknown_task_and_language_are_named(tmp_path):
    prompts = read_prompts(write(tmp_path, GOOD))
    with pytest.raises(UserError, match=r"no prompt for task 'tts' \(has asr, st\)"):
        prompts.text("tts", "en", "en")
    for pair in (("de", "en"), ("en", "de")):
        with pytest.raises(UserError, match=r"'de' has no name .*\(has en, fr\)"):
            prompts.text("st", *pair)


def test_language_code_of_norwegian_is_not_a_boolean(tmp_path):
    text = 'languages: {no: Norwegian}\ntasks: {asr: "{speech} in {source}"}\n'
    prompts = read_prompts(write(tmp_path, text))
    assert prompts.text("asr", "no", "no") == "{speech} in Norwegian"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'tasks' is missing"),
        ("- a", "expected options as"),
        ("tasks: [", "cannot be read as YAML"),
        (GOOD + "chats: true", "unknown key 'chats'"),
        ("tasks: {asr: '{speech}'}", "'languages' is missing"),
        ("languages: {en: English}", "'tasks' is missing"),
        ("languages: {en: E}\ntasks: asr", "'tasks' is missing or not a mapping"),
        ("languages: {en: E}\ntasks: {asr: 'no place'}", "task 'asr' must contain"),
        (
            "languages: {en: E}\ntasks: {st: '{speech}{speech}'}",
            "task 'st' must contain {speech} exactly once",
        ),
        (
            "languages: {en: E}\ntasks: {asr: '{speech} {sauce}'}",
            "task 'asr' has the unknown field {sauce}; known are {speech}, {source}",
        ),
        (
            "languages: {en: E}\ntasks: {asr: '{speech} {source.__class__}'}",
            "unknown field {source.__class__}",
        ),
        (GOOD + "hotwords: words", "'hotwords' must contain {words} exactly once"),
        (GOOD + "hotwords: 5", "'hotwords' must contain {words}"),
        (GOOD + "hotwords: '{words} {source}'", "'hotwords' must contain {words}"),
        (
            "languages: {en: E}\ntasks: {asr: '{hotwords}{speech}'}",
            "task 'asr' has {hotwords}: write the form of the list",
        ),
        (
            "languages: {../x: E}\ntasks: {asr: '{speech}'}",
            "languages: '../x' is not a language code",
        ),
    ],
)
def test_malformed_prompts_file_is_named(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)


def test_missing_or_non_utf8_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such prompts file"):
        read_prompts(tmp_path / "none.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes("languages: {fr: Fran\xe7ais}".encode("latin-1"))
    with pytest.raises(UserError, match="latin.yaml"):
        read_prompts(path)


def test_prompts_of_all_recipes_are_valid():
    root = Path(__file__).parents[2] / "egs2"
    files = sorted(root.glob("*/speechllm1/conf/**/prompts*.yaml"))
    assert files
    for path in files:
        prompts = read_prompts(path)
        first = next(iter(prompts.languages))
        for task in prompts.tasks:
            assert "{source}" not in prompts.text(task, first, first)


def test_date_in_a_chat_template_is_fixed(tokenizer):
    """Llama 3.2 and SmolLM3 print today's date otherwise."""
    import copy

    dated = copy.deepcopy(tokenizer)
    dated.chat_template = (
        "{% if not date is defined %}{% set date = strftime_now('%d %b %Y') %}"
        "{% endif %}Today: {{ date }}\n{{ messages[0]['content'] }}"
    )
    prompts = Prompts({"asr": "{speech} Text:"}, {"en": "English"}, chat=True)
    before, behind = prompts.tokens("asr", "en", "en", dated)
    assert tokenizer.decode(before) == "Today: 26 Jul 2024\n"
    assert tokenizer.decode(behind) == " Text:"


def test_prompts_that_are_no_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "prompts.yaml")
    with pytest.raises(UserError, match=r"prompts\.yaml: not a regular file"):
        read_prompts(tmp_path / "prompts.yaml")
