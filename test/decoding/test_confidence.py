"""Word confidence: features, calibration, calibration error and word times.

The calibration error is compared with scikit-learn's calibration curve, word times with
the forced alignment, LLM features with a forward pass of transformers.
"""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread
from sklearn.calibration import calibration_curve

from speechllm import SpeechToText
from speechllm.audio.io import load_audio
from speechllm.benchmarks.reliability import reliability_picture
from speechllm.bin import calibrate as calibrate_command
from speechllm.decoding.confidence import (
    Calibration,
    bins,
    correct_words,
    expected_calibration_error,
    features_of_word,
    fit,
    read_calibration,
    tokens_of_words,
    write_calibration,
)
from speechllm.decoding.forced_alignment import REACH, align_texts, word_times
from speechllm.inference.results import UNALIGNED, word_features
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

SHORT = {"tokens_per_second": 0.0, "extra_tokens": 8.0}  # eight tokens at most


def test_features_are_mean_and_minimum_probabilities():
    labels, tokens = [math.log(0.9), math.log(0.4)], [math.log(0.5)]
    expected = (0.6, 0.4, 0.5, 0.5)
    assert features_of_word(labels, tokens) == pytest.approx(expected)
    assert features_of_word([], tokens) == pytest.approx((0.5,) * 4)
    assert features_of_word(labels, []) == pytest.approx((0.6, 0.4, 0.6, 0.4))


def test_tokens_are_assigned_to_words():
    pieces = [" Pre", "ss", " t", "wo", ", ", "now", "."]
    words = ["Press", "two,", "now."]
    assert tokens_of_words(pieces, words) == [[0, 1], [2, 3, 4], [5, 6]]
    assert tokens_of_words(["a b", "c"], ["a", "bc"]) == [[0], [0, 1]]
    assert tokens_of_words([], []) == []
    assert tokens_of_words(["はい", "。", "そう"], ["は", "い。", "そ", "う"]) == [
        [0],
        [0, 1],
        [2],
        [2],
    ]


@pytest.mark.parametrize(
    ("words", "reference", "language", "right"),
    [
        ("Press 2, now!", "press two now", "en", [True, True, True]),
        ("press one two", "press two", "en", [True, False, True]),
        ("I'm twenty-one", "i'm twenty two", "en", [True, False]),
        ("a", "", "en", [False]),
        ("è qui", "e qui", "it", [False, True]),
    ],
)
def test_correct_words_are_found_by_alignment(words, reference, language, right):
    assert correct_words(words.split(), reference, language) == right
    assert correct_words(["は", "い。"], "はあ", "ja") == [True, False]


def test_fit_recovers_known_weights():
    random = np.random.default_rng(1)
    features = random.uniform(size=(20000, 4))
    truth = Calibration((3.0, 0.0, -2.0, 1.0, -0.5))
    probabilities = [truth.probability(row) for row in features]
    right = random.uniform(size=len(features)) < probabilities
    found = fit(features, right, "made up")
    assert found.weights == pytest.approx(truth.weights, abs=0.25)
    assert found.made_from == "made up"
    predicted = [found.probability(row) for row in features]
    assert expected_calibration_error(predicted, right.tolist()) < 0.02
    for same in (True, False):
        with pytest.raises(UserError, match="right" if same else "wrong"):
            fit(features, np.full(len(features), same))


def test_calibration_error_equals_scikit_learn():
    random = np.random.default_rng(2)
    probabilities = random.uniform(size=500)
    right = random.uniform(size=500) < probabilities**2
    accuracy, confidence = calibration_curve(right, probabilities, n_bins=10)
    sizes = np.histogram(probabilities, bins=10, range=(0, 1))[0]
    rows = bins(probabilities.tolist(), right.tolist())
    assert [n for n, *_ in rows] == sizes.tolist()
    assert [p for _, p, _ in rows] == pytest.approx(confidence.tolist())
    assert [a for *_, a in rows] == pytest.approx(accuracy.tolist())
    expected = (sizes * abs(accuracy - confidence)).sum() / 500
    found = expected_calibration_error(probabilities.tolist(), right.tolist())
    assert found == pytest.approx(expected)
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0.0
    assert expected_calibration_error([1.0, 1.0], [True, False]) == 0.5
    assert expected_calibration_error([], []) == 0.0


def test_written_calibration_is_read_back(tmp_path):
    assert read_calibration(tmp_path) is None
    found = Calibration((1.0, 2.0, 3.0, 4.0, -5.0), "dev")
    write_calibration(found, tmp_path)
    assert read_calibration(tmp_path) == found
    for content in ("[", "{}", '{"weights": [1]}', '{"weights": ["x", 1, 1, 1, 1]}'):
        (tmp_path / "confidence.json").write_text(content)
        with pytest.raises(UserError, match=r"confidence\.json: damaged"):
            read_calibration(tmp_path)


def test_reliability_diagram_is_written(tmp_path):
    path = tmp_path / "new" / "reliability.png"
    reliability_picture(path, {"a": ([0.1, 0.9, 0.8], [False, True, True])})
    image = imread(path)
    assert image.shape[0] > 300 and image.shape[1] > 300
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 10


# With a tiny model


@pytest.fixture(scope="module")
def model(tiny_model) -> SpeechToText:
    return SpeechToText.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def waves(speech_file) -> list[np.ndarray]:
    speech = load_audio(speech_file)
    return [speech[500 * i : 500 * i + n] for i, n in enumerate((20000, 30000))]


def test_words_have_times_and_confidence(model, waves):
    plain = model.transcribe(waves, **SHORT)
    assert all(r.words is None and r.confidence is None for r in plain)
    found = model.transcribe(waves, **SHORT, word_times=True)
    for wave, before, result in zip(waves, plain, found):
        assert result.text == before.text
        assert [w.text for w in result.words] == result.text.split()
        times = [t for w in result.words for t in (w.start, w.end)]
        assert all(b - a > -1e-9 for a, b in pairwise(times))
        assert 0 <= times[0] and times[-1] <= len(wave) / 16000 + 0.02
        assert all(0 <= w.confidence <= 1 for w in result.words)
        mean = sum(w.confidence for w in result.words) / len(result.words)
        assert result.confidence == pytest.approx(mean)
        assert json.loads(json.dumps(result.entry()))["words"][0][0]
    # the same one by one
    alone = [model.transcribe([w], **SHORT, word_times=True)[0] for w in waves]
    for one, other in zip(alone, found):
        for a, b in zip(one.words, other.words, strict=True):
            assert (a.start, a.end) == (b.start, b.end)
            assert a.confidence == pytest.approx(b.confidence, abs=1e-3)


@torch.inference_mode()
def test_word_times_equal_the_forced_alignment(model, waves):
    (result,) = model.transcribe(waves[:1], **SHORT, word_times=True)
    speech_llm = model.model
    _, _, logits = speech_llm.encode(
        torch.from_numpy(waves[0])[None], torch.tensor([len(waves[0])])
    )
    words, log_probs = result.text.split(), logits[0].log_softmax(1)
    spans = align_texts(words, "en", log_probs, model.ctc_tokenizer)
    expected = word_times(spans, len(log_probs), 0.02)
    # except for the edges, which depend on the sound level
    for one, text, (start, end) in zip(result.words, words, expected, strict=True):
        assert one.text == text
        assert one.start == pytest.approx(start, abs=REACH)
        assert one.end == pytest.approx(end, abs=REACH)


def test_llm_features_equal_transformers(model, waves):
    batch = model.encode(waves[:1], [Task("asr", "en", "en")])
    ((hypothesis,),) = model.search(batch, model.options(SHORT))
    words, spans, features = word_features(model.codec, batch, 0, hypothesis)
    assert len(words) == len(spans) == len(features)
    llm = model.llm
    inputs = torch.cat([batch.prompt_embeds[0], *llm.embed_lists([hypothesis.tokens])])
    with torch.inference_mode():
        logits = llm.causal_lm(inputs_embeds=inputs[None]).logits[0]
    positions = torch.arange(len(batch.prompt_embeds[0]) - 1, len(inputs) - 1)
    log_probs = logits.log_softmax(1)[positions, torch.tensor(hypothesis.tokens)]
    smallest = min(f[3] for f in features)
    assert smallest == pytest.approx(log_probs.min().exp().item(), rel=1e-3)
    assert sum(log_probs).item() > hypothesis.llm_score  # includes the end of the text


def test_text_longer_than_the_audio_is_flagged(model, waves):
    options = {"extra_tokens": 60.0, "min_tokens": 60}
    (result,) = model.transcribe([waves[0][:1600]], **options, word_times=True)
    assert UNALIGNED in result.flags
    assert [w.text for w in result.words] == result.text.split()


def test_translation_has_no_word_times(model, waves):
    (result,) = model.transcribe(
        waves[:1], task="st", target_language="fr", **SHORT, word_times=True
    )
    assert result.words is None and result.confidence is None


def test_calibrate_command(tiny_model, waves, tmp_path, capsys):
    folder, examples = tmp_path / "model", tmp_path / "dev"
    shutil.copytree(tiny_model, folder)
    model = SpeechToText.from_pretrained(folder)
    results = model.transcribe(waves, **SHORT)
    examples.mkdir()
    tables: dict[str, list[str]] = {"wav.scp": [], "utt2task": [], "text": []}
    for index, (wave, result) in enumerate(zip(waves, results)):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, wave, 16000, subtype="FLOAT")
        tables["wav.scp"].append(f"u{index} {path}")
        tables["utt2task"].append(f"u{index} asr en en")
        # the first reference equals the hypothesis, the second does not
        text = "nothing of that" if index else " ".join(result.text.split())
        tables["text"].append(f"u{index} {text}")
    for name, lines in tables.items():
        (examples / name).write_text("\n".join(lines) + "\n")
    config = tmp_path / "decode.yaml"
    config.write_text("tokens_per_second: 0.0\nextra_tokens: 8.0\n")
    picture = tmp_path / "reliability.png"
    arguments = ["--model", str(folder), "--examples", str(examples)]
    calibrate_command.main(
        [
            *(*arguments, "--config", str(config)),
            *("--test_examples", str(examples), "--picture", str(picture)),
        ]
    )
    output = capsys.readouterr().out
    assert "expected calibration error, calibrated: 0." in output
    assert picture.stat().st_size > 10_000
    calibration = read_calibration(folder)
    calibrated = SpeechToText.from_pretrained(folder)
    assert calibrated.calibration == calibration
    found = calibrated.transcribe(waves, **SHORT, word_times=True)
    assert found[0].confidence > found[1].confidence
    with pytest.raises(SystemExit):
        calibrate_command.main([*arguments, "--picture", "a.png"])
    (examples / "utt2task").write_text("u0 st en fr\nu1 st en fr\n")
    with pytest.raises(UserError, match="there is none"):
        calibrate_command.main(arguments)
