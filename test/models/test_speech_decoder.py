"""The pretrained speech model's decoder, compared with transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import write_tiny_hubert

from speechllm.audio.io import load_audio
from speechllm.baselines.whisper_trainer import set_positions
from speechllm.models.speech_decoder import (
    SpeechDecoder,
    padded_samples,
    written_forms,
)
from speechllm.utils.errors import UserError


@pytest.fixture(scope="module")
def decoder(whisper_base) -> SpeechDecoder:
    return SpeechDecoder(whisper_base)


@pytest.fixture(scope="module")
def waves(speech_file) -> list[np.ndarray]:
    speech = load_audio(speech_file)
    return [speech, speech[:24000]]


def test_greedy_search_writes_what_transformers_writes(decoder, waves):
    features = decoder.processor(waves, sampling_rate=16000, return_tensors="pt")
    expected = decoder.model.generate(
        features.input_features, language="en", task="transcribe", num_beams=1
    )
    texts = decoder.tokenizer.batch_decode(expected, skip_special_tokens=True)
    found = decoder.search(decoder.encode(waves), ["en", "en"], beam_size=1)
    assert found == [[text.strip()] for text in texts]
    assert "password" in found[0][0]


def test_short_input_has_the_states_of_a_model_with_so_many_positions(
    whisper_base, decoder, waves
):
    short = SpeechDecoder(whisper_base, finetuned=True)
    (states,) = short.encode(waves[1:])  # 1.5 s
    features = decoder.processor(
        waves[1:], sampling_rate=16000, max_length=48000, return_tensors="pt"
    ).input_features
    set_positions(short.model, 150)
    with torch.inference_mode():
        (expected,) = short.model.get_encoder()(features).last_hidden_state
    assert states.shape == (150, 512)
    torch.testing.assert_close(states, expected)


@pytest.mark.parametrize(
    ("samples", "seconds"), [(0, 2), (15999, 2), (16000, 3), (470_000, 30), (10**6, 30)]
)
def test_padding_of_short_input(samples, seconds):
    assert padded_samples(samples) == 16000 * seconds


def test_beam_search_gives_distinct_texts_that_do_not_depend_on_the_batch(
    decoder, waves
):
    together = decoder.search(decoder.encode(waves), ["en", "fr"], beam_size=3)
    for row, language in enumerate(("en", "fr")):
        states = decoder.encode(waves[row : row + 1])
        assert decoder.search(states, [language], beam_size=3) == [together[row]]
        assert len(set(together[row])) == len(together[row]) <= 3


@pytest.mark.parametrize("translate", [False, True])
def test_log_probs_are_the_loss_that_transformers_computes(decoder, waves, translate):
    too_long = "Please enter your password. " * 120  # Whisper has 448 positions
    texts = ["Please enter your password.", "please", "", too_long]
    assert len(decoder.tokenizers) == 2  # they split words with "t" only
    (states,) = decoder.encode(waves[:1])
    found = decoder.log_probs(states, texts, "en", translate)
    features = decoder.processor(waves[:1], sampling_rate=16000, return_tensors="pt")
    for text, score in zip(texts, found):
        ids = decoder.tokenizer.encode(
            f" {text}" if text else "", add_special_tokens=False
        )
        decoder.tokenizer.set_prefix_tokens(
            "en", "translate" if translate else "transcribe", predict_timestamps=False
        )
        prefix = decoder.tokenizer.prefix_tokens
        labels = [*ids, decoder.tokenizer.eos_token_id]
        count = len(labels)
        ids, labels = ids[: 448 - len(prefix)], labels[: 448 + 1 - len(prefix)]
        labels = torch.tensor([[-100] * (len(prefix) - 1) + labels])
        with torch.inference_mode():
            loss = decoder.model(
                input_features=features.input_features,
                decoder_input_ids=torch.tensor([[*prefix, *ids]]),
                labels=labels,
            ).loss
        assert score == pytest.approx(-loss.item() * count, rel=1e-4, abs=1e-3)
    assert found[0] == max(found)


def test_a_text_is_scored_in_the_tokens_that_the_model_writes(decoder, waves):
    """Words that begin with "t", whose merge is missing in transformers' file."""
    (states,) = decoder.encode(waves[:1])
    plain, merged = decoder.tokenizers
    text = "Please enter the password to your tent."
    scores = []
    for tokenizer in (plain, merged):
        decoder.tokenizers = (tokenizer,)
        scores += decoder.log_probs(states, [text], "en")
    decoder.tokenizers = (plain, merged)
    both = decoder.log_probs(states, ["please", text], "en")
    assert scores[1] > scores[0] + 10  # nats
    assert both[1] == pytest.approx(scores[1], abs=1e-3)
    assert both[0] == pytest.approx(
        decoder.log_probs(states, ["please"], "en")[0], abs=1e-3
    )


def test_unknown_language_and_other_models_are_refused(decoder, tmp_path):
    with pytest.raises(UserError, match="not trained on language 'xx'"):
        decoder.prefix("xx")
    folder = write_tiny_hubert(tmp_path / "hubert", "group")
    with pytest.raises(UserError, match="first_pass_beam_size to 0"):
        SpeechDecoder(folder)


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        ("suivi du dièse", ["suivi du dièse", "Suivi du dièse."]),
        ("Yes!", ["Yes!"]),
        ("", [""]),
    ],
)
def test_written_forms(text, forms):
    assert written_forms(text) == forms
