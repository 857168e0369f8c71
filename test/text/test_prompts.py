"""Prompts: from YAML to token ids around the speech."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


def write(tmp_path, text: str):
    path = tmp_path / "prompts.yaml"
    path.write_text(text, "utf-8")
    return path


def test_a_prompt_names_its_languages(tmp_path):
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


def test_a_tokenizer_that_begins_texts_with_a_token(tmp_path, tokenizer):
    """Llama 2 and its kin: the prompt begins with it too, once."""

    class WithBegin:
        bos_token_id = 1

        def __call__(self, text, add_special_tokens=True):
            ids = [ord(c) for c in text]
            return {"input_ids": [1, *ids] if add_special_tokens else ids}

    prompts = Prompts({"asr": "ab{speech}c"}, {"en": "English"})
    assert prompts.tokens("asr", "en", "en", WithBegin()) == ([1, 97, 98], [99])


def test_the_chat_template_goes_around(tmp_path, tokenizer):
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


def test_a_chat_without_a_template(tmp_path):
    class Plain:
        bos_token_id = None
        chat_template = None

    prompts = read_prompts(write(tmp_path, GOOD + "chat: true\n"))
    with pytest.raises(UserError, match="no chat template"):
        prompts.tokens("asr", "en", "en", Plain())


def test_an_answer_ends_and_begins_with_a_space(tokenizer):
    tokens = answer_tokens(tokenizer, "  Hello you. ")
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens[:-1]) == " Hello you."


def test_unknown_task_and_language(tmp_path):
    prompts = read_prompts(write(tmp_path, GOOD))
    with pytest.raises(UserError, match=r"no prompt for task 'tts' \(has asr, st\)"):
        prompts.text("tts", "en", "en")
    for pair in (("de", "en"), ("en", "de")):
        with pytest.raises(UserError, match=r"'de' has no name .*\(has en, fr\)"):
            prompts.text("st", *pair)


def test_norwegian_is_no_boolean(tmp_path):
    text = 'languages: {no: Norwegian}\ntasks: {asr: "{speech} in {source}"}\n'
    prompts = read_prompts(write(tmp_path, text))
    assert prompts.text("asr", "no", "no") == "{speech} in Norwegian"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the keys tasks and languages"),
        ("- a", "expected the keys tasks and languages"),
        ("tasks: [", "not a YAML file"),
        (GOOD + "chats: true", "unknown key 'chats'"),
        ("tasks: {asr: '{speech}'}", "'languages' is missing"),
        ("languages: {en: English}", "'tasks' is missing"),
        ("languages: {en: E}\ntasks: asr", "'tasks' is missing or is no mapping"),
        ("languages: {en: E}\ntasks: {asr: 'no place'}", "task 'asr' must hold"),
        (
            "languages: {en: E}\ntasks: {st: '{speech}{speech}'}",
            "task 'st' must hold {speech} exactly once",
        ),
    ],
)
def test_files_that_are_no_prompts(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)


def test_missing_or_not_utf8(tmp_path):
    with pytest.raises(UserError, match="no such prompts file"):
        read_prompts(tmp_path / "none.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes("languages: {fr: Fran\xe7ais}".encode("latin-1"))
    with pytest.raises(UserError, match="latin.yaml"):
        read_prompts(path)


def test_the_recipes_own_prompts():
    root = Path(__file__).parents[2] / "egs2"
    files = sorted(root.glob("*/speechllm1/conf/**/prompts*.yaml"))
    assert files
    for path in files:
        prompts = read_prompts(path)
        first = next(iter(prompts.languages))
        for task in prompts.tasks:
            assert "{source}" not in prompts.text(task, first, first)
