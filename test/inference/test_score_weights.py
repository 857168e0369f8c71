"""Weights of the pooled n-best list: fitted to errors, written, read and used."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechllm import SpeechToText
from speechllm.bin import tune
from speechllm.inference.score_weights import (
    STEPS,
    WEIGHTS_FILE,
    ScoredText,
    ScoredTranslation,
    ScoreWeights,
    fit_score_weights,
    fit_translation_weight,
    read_score_weights,
    write_score_weights,
)
from speechllm.models.speech_decoder import SpeechDecoder
from speechllm.utils.errors import UserError


def test_the_model_that_knows_best_gets_the_weight():
    #                 llm   ctc  decoder  errors
    right_by_decoder = [
        [ScoredText(-1.0, -1.0, -9.0, 2), ScoredText(-9.0, -9.0, -1.0, 0)]
    ]
    fitted = fit_score_weights(right_by_decoder, "one utterance")
    assert fitted.decoder > 0.5
    assert fitted.made_from == "one utterance"
    right_by_ctc = [[ScoredText(-1.0, -9.0, -1.0, 2), ScoredText(-9.0, -1.0, -9.0, 0)]]
    assert fit_score_weights(right_by_ctc).ctc >= 0.5
    right_by_llm = [[ScoredText(-9.0, -1.0, -1.0, 2), ScoredText(-1.0, -9.0, -9.0, 0)]]
    fitted = fit_score_weights(right_by_llm)
    assert fitted.ctc + fitted.decoder < 0.5


def test_the_translator_that_knows_best_gets_the_weight():
    def pool(by_llm: str, by_decoder: str) -> tuple[str, list[ScoredTranslation]]:
        texts = [
            ScoredTranslation(-1.0, -4.0, by_llm, from_decoder=False),
            ScoredTranslation(-4.0, -1.0, by_decoder, from_decoder=True),
        ]
        return "press the key", texts

    good, bad = "press the key", "hang up"
    assert fit_translation_weight([pool(good, bad)] * 3) == 0.0
    assert fit_translation_weight([pool(bad, good)] * 3) == 0.6  # 0.5 is a tie
    mixed = [pool(good, bad), pool(bad, good), pool(bad, good)]
    assert fit_translation_weight(mixed) == 0.6
    # the LLM prefers what the decoder wrote, which it only has with a weight
    likely = [
        ScoredTranslation(-0.5, -0.5, good, from_decoder=True),
        *pool(bad, bad)[1],
    ]
    assert fit_translation_weight([("press the key", likely)]) == 0.1


def test_a_score_is_the_weighted_sum():
    text = ScoredText(llm=-1.0, ctc=-2.0, decoder=-4.0, errors=0)
    assert text.score(ScoreWeights(0.5, 0.2)) == pytest.approx(-2.0 - 0.4 - 0.3)


numbers = st.floats(-50, 0)
texts = st.builds(ScoredText, numbers, numbers, numbers, st.integers(0, 5))


@given(st.lists(st.lists(texts, min_size=1, max_size=4), min_size=1, max_size=4))
def test_no_weights_nearer_to_the_usual_ones_make_as_few_errors(pools):
    def errors(weights):
        return sum(max(pool, key=lambda t: t.score(weights)).errors for pool in pools)

    def distance(weights):
        steps = (weights.decoder - usual.decoder, weights.ctc - usual.ctc)
        return sum(round(STEPS * step) ** 2 for step in steps)

    usual, fitted = ScoreWeights(), fit_score_weights(pools)
    tried = [
        ScoreWeights(a / STEPS, b / STEPS)
        for a in range(STEPS + 1)
        for b in range(STEPS + 1 - a)
    ]
    least = min(map(errors, tried))
    assert errors(fitted) <= least + least**0.5
    for weights in tried:
        if errors(weights) <= least + least**0.5:
            assert distance(weights) >= distance(fitted)


@pytest.mark.parametrize(("utterances", "usual"), [(4, True), (5, False)])
def test_few_errors_do_not_change_the_weights(utterances, usual):
    """Four errors with the LLM alone; the usual weights make 2 or 3 more: 2 = √4."""
    wrong_anyway = [[ScoredText(-1.0, -1.0, -1.0, 4)]]
    right_by_llm = [ScoredText(-9.0, -1.0, -1.0, 1), ScoredText(-1.0, -9.0, -9.0, 0)]
    fitted = fit_score_weights([*wrong_anyway, *[right_by_llm] * (utterances - 2)])
    assert (fitted == ScoreWeights()) is usual


def test_no_recognition_is_an_error():
    with pytest.raises(UserError, match="no transcripts"):
        fit_score_weights([[]])


def test_written_weights_are_read_again(tmp_path):
    assert read_score_weights(tmp_path) is None
    weights = ScoreWeights(0.3, 0.4, "53 examples")
    write_score_weights(weights, tmp_path)
    assert read_score_weights(tmp_path) == weights


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"decoder": 0.5}',
        '{"decoder": 0.7, "ctc": 0.4}',
        '{"decoder": -0.1, "ctc": 0.4}',
        '{"decoder": NaN, "ctc": 0.4}',
        '{"decoder": "a", "ctc": 0.4}',
        '{"decoder": 0.5, "ctc": 0.4, "translation": 1.1}',
    ],
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / WEIGHTS_FILE).write_text(content)
    with pytest.raises(UserError, match=f"{WEIGHTS_FILE}: damaged"):
        read_score_weights(tmp_path)


def test_options_take_the_weights_of_the_model(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    given = {"first_pass_beam_size": 2}

    def load() -> SpeechToText:
        model = SpeechToText.from_pretrained(folder)
        model.load_speech_decoder = lambda: pytest.fail("loaded before its first use")
        return model

    model = load()
    options = model.options(given)
    assert (options.rescore_decoder_weight, options.rescore_ctc_weight) == (0.8, 0.1)
    assert options.rescore_translation_weight == 0.0
    write_score_weights(ScoreWeights(0.3, 0.1, translation=0.7), folder)
    model = load()
    options = model.options(given)
    assert (options.rescore_decoder_weight, options.rescore_ctc_weight) == (0.3, 0.1)
    assert options.rescore_translation_weight == 0.7
    options = model.options({**given, "rescore_decoder_weight": 0.9})
    assert (options.rescore_decoder_weight, options.rescore_ctc_weight) == (0.9, 0.0)
    options = model.options({**given, "rescore_translation_weight": 0.2})
    assert options.rescore_translation_weight == 0.2
    assert model.options({}).rescore_decoder_weight is None
    with pytest.raises(UserError, match="rescore_ctc_weight: with a first pass give"):
        model.options({**given, "rescore_ctc_weight": 0.8})


@pytest.mark.slow
@pytest.mark.parametrize("task", ["asr", "asr_st"])
def test_stage_11_fits_the_weights(
    tiny_model, whisper_base, asterisk_dir, tmp_path, task
):
    """Whisper reads the prompt; the other models are random: it gets the weight."""
    import soundfile
    import yaml

    from speechllm.audio.io import load_audio

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["encoder"] == "whisper"
    settings = {"first_pass_beam_size": 2, "tokens_per_second": 8, "extra_tokens": 4}
    (folder / "generation_config.yaml").write_text(yaml.safe_dump(settings))
    with open(folder / "prompts.yaml", "a", encoding="utf-8") as stream:
        stream.write('  asr_st: "{speech} both {source} and {target}:"\n')
    examples = tmp_path / "examples"
    examples.mkdir()
    sounds = asterisk_dir / "usr/share/asterisk/sounds"
    voice, languages, text = {
        "asr": (
            "en_US_f_Allison",
            "en en",
            "please enter your password followed by the pound key",
        ),
        "asr_st": (
            "fr_CA_f_June",
            "fr en",
            "composez votre mot de passe suivi du dièse\t"
            "Please enter your password followed by the pound key.",
        ),
    }[task]
    wave = load_audio(sounds / voice / "agent-pass.g722")
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    for name, value in (
        ("wav.scp", tmp_path / "a.wav"),
        ("text", text),
        ("utt2task", f"{task} {languages}"),
        ("utt2num_samples", len(wave)),
    ):
        (examples / name).write_text(f"a {value}\n")

    def from_pretrained(*args, **options):
        model = original(*args, **options)
        model.load_speech_decoder = lambda: SpeechDecoder(whisper_base)
        return model

    original = SpeechToText.from_pretrained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpeechToText, "from_pretrained", from_pretrained)
        tune.main(
            ["--model", str(folder), "--examples", str(examples), "--if_possible"]
        )
    fitted = json.loads((folder / WEIGHTS_FILE).read_text())
    assert fitted["decoder"] > 0 and fitted["made_from"] == "1 examples"
    assert (fitted["translation"] > 0) == (task == "asr_st")
