"""The guard's limit of the language, by Whisper's own decoder, on real speech."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from speechllm import SpeechToText
from speechllm.audio.io import load_audio
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.first_pass import language_probabilities, make_first_pass
from speechllm.inference import tuning
from speechllm.inference.guard import Guard
from speechllm.inference.guard_thresholds import (
    NO_CTC_OUTPUT,
    WITHHELD,
    Limits,
    Thresholds,
    read_thresholds,
    write_thresholds,
)
from speechllm.inference.tuning import find_thresholds, least_language_probability
from speechllm.models.speech_decoder import SpeechDecoder
from speechllm.text.tasks import Task

FIRST_PASS = {"first_pass_beam_size": 1, "rescore_decoder_weight": 1.0}
SHORT = {"tokens_per_second": 0.0, "extra_tokens": 6.0}
WIDE = Limits(rate=1e9, min_length_ratio=0.0, max_length_ratio=1e9, repetition=10**6)
ENGLISH, FRENCH = Task("asr", "en", "en"), Task("asr", "fr", "fr")
TRANSLATION = Task("st", "en", "fr")


@pytest.fixture(scope="module")
def speech(asterisk_dir) -> dict[str, np.ndarray]:
    """Return the same prompt in English and French."""
    root = asterisk_dir / "usr/share/asterisk/sounds"
    folders = {"en": "en_US_f_Allison", "fr": "fr_CA_f_June"}
    return {c: load_audio(root / f / "vm-tooshort.g722") for c, f in folders.items()}


@pytest.fixture
def model(tiny_model, whisper_base) -> SpeechToText:
    model = SpeechToText.from_pretrained(tiny_model)
    model.load_speech_decoder = lambda: SpeechDecoder(whisper_base)
    return model


def set_limits(model: SpeechToText, language: float | None, **limits) -> None:
    groups = {"asr_en": replace(WIDE, **limits)}
    thresholds = Thresholds(0.0, 0.5, groups, language_probability=language)
    model.guard = Guard(model.llm, model.codec, thresholds)


def test_probabilities_equal_those_of_transformers(whisper_base, speech):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    whisper = WhisperForConditionalGeneration.from_pretrained(whisper_base)
    processor = WhisperProcessor.from_pretrained(whisper_base)
    waves = list(speech.values())
    features = processor(waves, sampling_rate=16000, return_tensors="pt")
    start = torch.tensor([[whisper.config.decoder_start_token_id]] * 2)
    with torch.inference_mode():
        output = whisper(features.input_features, decoder_input_ids=start)
    codes = list(whisper.generation_config.lang_to_id.values())
    expected = output.logits[:, 0, codes].softmax(1)  # (batch, languages)
    french = codes.index(processor.tokenizer.convert_tokens_to_ids("<|fr|>"))

    decoder = SpeechDecoder(whisper_base)
    found = language_probabilities(decoder, waves, ["fr", "fr"])
    assert found == pytest.approx(expected[:, french].tolist(), abs=1e-5)
    known = {}
    first = make_first_pass(decoder, waves, ["fr", "fr"], 1, known)
    assert [f.language_probability for f in first] == pytest.approx(found, abs=1e-5)
    known = {key: replace(f, language_probability=0.25) for key, f in known.items()}
    assert language_probabilities(decoder, waves[:1], ["fr"], known) == [0.25]


def test_other_languages_are_withheld(model, speech):
    """English and French speech, both as English, recognised and translated."""
    set_limits(model, 0.5)
    waves = [speech["en"], speech["fr"]] * 2
    tasks = [ENGLISH, ENGLISH, TRANSLATION, TRANSLATION]
    options = model.options({**FIRST_PASS, **SHORT})
    plain = model.decode(waves, tasks, replace(options, guard=False))
    found = model.decode(waves, tasks, options)
    assert all(result.text for result in plain)
    assert [r.text for r in found] == [plain[0].text, "", plain[2].text, ""]
    assert [WITHHELD in r.flags for r in found] == [False, True, False, True]
    assert found[1].unguarded == plain[1].text
    (alone,) = model.decode(waves[1:2], tasks[1:2], options)
    assert (alone.text, alone.unguarded) == ("", plain[1].text)


@pytest.mark.parametrize("language", [0.5, None])
def test_speech_that_is_withheld_is_not_searched(model, speech, monkeypatch, language):
    """English and French speech as English, and noise without CTC output."""
    noise = np.random.default_rng(1).normal(0, 0.05, 16000).astype(np.float32)
    waves = [speech["en"], noise, speech["fr"], speech["fr"]]
    tasks = [ENGLISH, ENGLISH, ENGLISH, TRANSLATION]
    set_limits(model, language)
    options = model.options({**FIRST_PASS, **SHORT, "word_times": True})
    encode = model.encode

    def with_silent_noise(*arguments) -> EncodedBatch:
        """Let CTC write blanks only for the noise."""
        batch = encode(*arguments)
        for row, wave in enumerate(batch.waves):
            if wave is noise:
                batch.logits[row, :, 0] = 1e4
                batch.ctc_texts = [*batch.ctc_texts]
                batch.ctc_texts[row] = ""
        return batch

    monkeypatch.setattr(model, "encode", with_silent_noise)
    model.guard.thresholds = replace(model.guard.thresholds, ctc_confidence=1e-6)
    every = model.decode(waves, tasks, options)
    searched, finished = [], []
    search = model.search

    def spy(batch: EncodedBatch, *rest) -> list:
        searched.extend(batch.waves)
        return search(batch, *rest)

    monkeypatch.setattr(model, "search", spy)
    found = model.decode(waves, tasks, options, 2, finished.append, unguarded=False)
    kept = [0] if language else [0, 2, 3]
    assert [id(wave) for wave in searched] == [id(waves[row]) for row in kept]
    assert sorted(finished) == [0, 1, 2, 3]
    assert [r.text for r in found] == [r.text for r in every]
    assert [found[row].entry() for row in kept] == [every[row].entry() for row in kept]
    assert every[1].unguarded and every[1].flags == [NO_CTC_OUTPUT]
    for row in {0, 1, 2, 3}.difference(kept):
        assert (found[row].unguarded, found[row].words) == (None, every[row].words)
        assert found[row].flags == [NO_CTC_OUTPUT if row == 1 else WITHHELD]
    (alone,) = model.decode(waves[1:2], tasks[1:2], options, unguarded=False)
    assert (alone.text, alone.flags) == ("", [NO_CTC_OUTPUT])


def test_the_limit_replaces_that_of_improbable_texts(model, speech):
    options = {**FIRST_PASS, **SHORT, "language": "en"}
    set_limits(model, 0.5, nll_per_second=0.0)  # every text is too improbable
    (kept,) = model.transcribe([speech["en"]], **options)
    assert kept.text and WITHHELD not in kept.flags
    without = {**options, "first_pass_beam_size": 0, "rescore_decoder_weight": None}
    (withheld,) = model.transcribe([speech["en"]], **without)
    assert (withheld.text, WITHHELD in withheld.flags) == ("", True)
    set_limits(model, None, nll_per_second=0.0)
    (withheld,) = model.transcribe([speech["en"]], **options)
    assert (withheld.text, WITHHELD in withheld.flags) == ("", True)


@pytest.mark.parametrize(
    ("task", "translation"),
    [(ENGLISH, ""), (Task("asr_st", "en", "fr"), "\tvotre message était trop court")],
)
def test_a_decoder_that_knows_the_language_gives_a_limit(
    model, speech, monkeypatch, task, translation
):
    from speechllm.data.examples import Example

    monkeypatch.setattr(tuning, "LEAST_TO_WITHHOLD", 2)
    model.prompts.tasks["asr_st"] = "{speech} both {source} and {target}:"
    texts = ["your message was too short", "message was too short"]
    waves = [speech["en"], speech["en"][4000:]]
    examples = [
        Example(name, wave, task, text + translation)
        for name, wave, text in zip("ab", waves, texts)
    ]
    options = model.options({**FIRST_PASS, **SHORT})
    found = find_thresholds(model, examples, options)
    assert found.language_probability == 0.5
    without = replace(options, first_pass_beam_size=0, rescore_decoder_weight=None)
    assert find_thresholds(model, examples, without).language_probability is None


@pytest.mark.parametrize(
    ("probabilities", "limit"),
    [
        ([0.6, *[0.99] * 19], 0.5),
        ([0.99] * 19, None),  # too few
        ([0.1, 0.5, *[0.99] * 18], 0.5),  # letters can sound like another language
        ([0.1, 0.5, 0.5, *[0.99] * 18], None),  # the decoder does not know it
        ([None, *[0.99] * 20], None),
        ([], None),
    ],
)
def test_limits_of_probabilities(probabilities, limit):
    assert least_language_probability(probabilities) == limit


def test_the_limit_is_in_the_file(tmp_path):
    found = Thresholds(0.5, 0.7, {"asr_en": WIDE}, "dev", 0.975)
    write_thresholds(found, tmp_path)
    assert read_thresholds(tmp_path) == found
    text = (tmp_path / "guard.yaml").read_text()
    assert "\nlanguage_probability: 0.975\n" in text
    (tmp_path / "guard.yaml").write_text(text.replace("language_prob", "# "))
    assert read_thresholds(tmp_path) == replace(found, language_probability=None)
