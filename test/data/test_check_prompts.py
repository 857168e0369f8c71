"""Check of prompts and targets against an LLM's tokenizer."""

import pytest
from transformers import AutoTokenizer

from speechllm.data.check_prompts import check_prompts
from speechllm.utils.errors import UserError

PROMPTS = 'languages: {en: English, fr: French}\ntasks: {asr: "{speech} {target}:"}\n'


@pytest.fixture
def examples(tmp_path):
    folder = tmp_path / "examples"
    folder.mkdir()
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    (folder / "text").write_text("a Bonjour à tous, ça va ?\nb Press one.\n")
    (folder / "utt2task").write_text("a asr fr fr\nb asr en en\n")
    return folder


def test_every_task_has_a_line(examples, smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    lines = check_prompts(tokenizer, examples.parent / "prompts.yaml", [examples])
    assert lines == [
        "asr en en: '<speech> English:', targets of at most 4 tokens",
        "asr fr fr: '<speech> French:', targets of at most "
        f"{len(tokenizer(' Bonjour à tous, ça va ?')['input_ids']) + 1} tokens",
    ]


def test_task_without_prompt_is_named(examples, smollm2):
    (examples / "utt2task").write_text("a asr fr fr\nb st en fr\n")
    with pytest.raises(UserError, match="no prompt for task 'st'"):
        check_prompts(
            AutoTokenizer.from_pretrained(smollm2),
            examples.parent / "prompts.yaml",
            [examples],
        )


def test_target_that_the_tokenizer_changes_is_named(examples):
    class OnlyLetters:
        eos_token_id = 32

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [ord(c) for c in text if c.isascii()]}

        bos_token_id = None

        def decode(self, tokens, skip_special_tokens=False):
            return "".join(map(chr, tokens))

    lines = check_prompts(OnlyLetters(), examples.parent / "prompts.yaml", [examples])
    assert "changes 1 targets, the first is a of" in lines[-1]
    assert "'Bonjour à tous, ça va ?' is decoded to 'Bonjour tous, a va ?'" in lines[-1]
