"""Whisper's tokens, compared with OpenAI's vocabulary."""

from __future__ import annotations

import pytest
from transformers import WhisperProcessor

from speechllm.text.whisper_tokens import with_first_merge


@pytest.fixture(scope="module")
def processor(whisper_base) -> WhisperProcessor:
    return WhisperProcessor.from_pretrained(whisper_base)


def test_every_text_token_is_what_its_text_is_encoded_to(processor):
    """As by byte-pair encoding with all merges; transformers' file lacks one."""

    def wrong(tokenizer) -> set[str]:
        tokens = [tokenizer.convert_ids_to_tokens(k) for k in range(256, 50257)]
        texts = tokenizer.batch_decode([[k] for k in range(256, 50257)])
        return {
            token
            for token, text in zip(tokens, texts, strict=True)
            if "\ufffd" not in text
            and tokenizer.encode(text, add_special_tokens=False)
            != [tokenizer.convert_tokens_to_ids(token)]
        }

    plain = wrong(processor.tokenizer)
    merged = wrong(with_first_merge(processor.tokenizer))
    assert {"Ġt", "Ġthe", "Ġtest", "Ġtomorrow"} <= plain
    assert all(token.startswith("Ġt") for token in plain - merged)
    # the last one is of no text, the others are split before the merges
    assert merged == {"'D", "'M", "'RE", "'S", "'T", ""}


def test_a_saved_tokenizer_keeps_the_merge(processor, tmp_path):
    merged = with_first_merge(processor.tokenizer)
    assert merged.tokenize(" to the left") == ["Ġto", "Ġthe", "Ġleft"]
    assert processor.tokenizer.tokenize(" to") == ["Ġ", "to"]  # it is not changed
    assert with_first_merge(merged) is merged
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path)
    again.set_prefix_tokens("fr", "translate", False)
    text = " to the tower. 'Tis  two\tthree"
    assert again.decode(again(text).input_ids, skip_special_tokens=True) == text
    assert with_first_merge(again) is again
