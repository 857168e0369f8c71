"""Guard: flags, second decoding, rescoring, thresholds of a development set, commands.

CTC scores are compared with the sum over all paths and with the prefix scorer.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_models import LABELS

from speechllm import SpeechToText
from speechllm.audio.io import load_audio
from speechllm.benchmarks.guard import (
    Condition,
    at_level,
    guard_rows,
    make_conditions,
    pieces_of,
    pink_noise,
    white_noise,
)
from speechllm.bin import calibrate as calibrate_command
from speechllm.bin import guard_table as guard_table_command
from speechllm.bin import guard_thresholds as guard_thresholds_command
from speechllm.data.examples import Example, read_examples
from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.first_pass import FirstPass
from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.rescoring import ctc_log_probs, rescore
from speechllm.decoding.result import Result
from speechllm.inference import tuning
from speechllm.inference.guard import Guard, GuardDecision, measure_output
from speechllm.inference.guard_thresholds import (
    LOW_CTC_SCORE,
    NO_CTC_OUTPUT,
    REPETITION,
    TOO_LONG,
    WITHHELD,
    Limits,
    Thresholds,
    read_thresholds,
    write_thresholds,
)
from speechllm.inference.results import TRUNCATED, add_decision, make_result
from speechllm.inference.tuning import (
    Trial,
    best_weight,
    count_errors,
    find_thresholds,
)
from speechllm.text.answer_codec import AnswerCodec
from speechllm.text.ctc_labels import NEVER, CTCTokenizer, label_runs
from speechllm.text.joint_target import find_separator
from speechllm.text.normalization import ctc_text
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

ENGLISH = Task("asr", "en", "en")
WIDE = Limits(rate=1e9, min_length_ratio=0.0, max_length_ratio=1e9, repetition=10**6)
SHORT = {"tokens_per_second": 0.0, "extra_tokens": 8.0}  # eight tokens at most


def guard_flags(result: Result) -> list[str]:
    """Return the flags of a result except that of its length."""
    return [flag for flag in result.flags if flag != TRUNCATED]


def thresholds(confidence: float = 0.0, weight: float = 0.5, **limits) -> Thresholds:
    wide = replace(WIDE, **limits)
    return Thresholds(confidence, weight, {"asr_en": wide, "st_en_fr": wide})


# Rescoring


def random_log_probs(frames: int, labels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(frames, labels, generator=generator)
    return logits.log_softmax(1)


@pytest.mark.parametrize("seed", range(3))
def test_ctc_score_is_the_sum_over_all_paths(seed):
    log_probs = random_log_probs(5, 3, seed)
    texts = [(), (1,), (2, 1), (1, 1), (1, 2, 1), (2, 2, 2)]
    totals = dict.fromkeys(texts, 0.0)
    for path in itertools.product(range(3), repeat=5):
        labels = tuple(k for k, _, _ in label_runs(path) if k)
        if labels in totals:
            totals[labels] += math.exp(sum(log_probs[t, k] for t, k in enumerate(path)))
    found = ctc_log_probs(log_probs, texts)
    assert found == pytest.approx([math.log(totals[t]) for t in texts], abs=1e-4)
    assert ctc_log_probs(log_probs, [(1, 1, 1, 1)]) == [NEVER]


def test_rescoring_ranks_by_llm_and_ctc():
    log_probs = random_log_probs(30, 5, 1)
    texts = [[1, 2], [], [3, 3, 1], [4, -1]]  # the last one ends with END
    nbest = [Hypothesis([7] * n, llm_score=-1.5 * n) for n in range(4)]
    ranked = rescore(
        nbest,
        ctc_log_probs(log_probs, [[k for k in text if k > 0] for text in texts]),
        0.4,
        penalty=0.1,
    )
    scorer = CTCPrefixScorer(log_probs[None], torch.tensor([30]))
    expected = {}
    for hypothesis, text in zip(nbest, texts):
        state = scorer.start(torch.tensor([0]))
        for label in text:
            if label > 0:
                state = scorer.extend(state, torch.tensor([label]))
        size = len(hypothesis.tokens)
        ctc_score = scorer.finish(state).item()
        expected[size] = 0.4 * ctc_score + 0.6 * hypothesis.llm_score + 0.1 * (size + 1)
    assert {len(h.tokens): h.score for h in ranked} == pytest.approx(expected, abs=1e-3)
    best_first = sorted(expected.values(), reverse=True)
    assert [h.score for h in ranked] == pytest.approx(best_first, abs=1e-3)


# Statistics of a hypothesis


def test_ctc_margin_is_per_label():
    log_probs = random_log_probs(20, 4, 3)
    tokenizer = CTCTokenizer(["<blank>", "<unk>", "a", "b"])
    batch = EncodedBatch(
        [ENGLISH],
        [np.zeros(16000, np.float32)],
        [torch.zeros(1, 1)],
        log_probs[None],
        torch.tensor([20]),
        ["ab"],
        [0],
    )
    best, other = ctc_log_probs(log_probs, [[2, 3], [1, 2, 3, 2]])
    codec = AnswerCodec(None, tokenizer)
    margins = [
        measure_output(codec, batch, 0, "", labels).ctc_margin
        for labels in ([1, 2, 3, 2], [2, 3], None)
    ]
    assert margins == [pytest.approx((best - other) / 4), 0.0, None]


# Guard of a tiny model


@pytest.fixture(scope="module")
def model(tiny_model) -> SpeechToText:
    return SpeechToText.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def waves(speech_file) -> list[np.ndarray]:
    speech = load_audio(speech_file)
    return [speech[500 * i : 500 * i + n] for i, n in enumerate((8000, 20000, 30000))]


@pytest.fixture
def guarded(model):
    """Return a function that sets the thresholds of the model for one test."""

    def set_thresholds(**limits) -> SpeechToText:
        model.guard = Guard(model.llm, model.codec, thresholds(**limits))
        return model

    yield set_thresholds
    model.guard = None


def test_hypotheses_within_the_limits_are_unchanged(model, guarded, waves):
    before = model.transcribe(waves, **SHORT)
    found = guarded().transcribe(waves, **SHORT)
    assert [r.text for r in found] == [r.text for r in before]
    assert [r.entry() for r in found] == [r.entry() for r in before]
    assert all(not guard_flags(r) and r.unguarded is None for r in found)


@pytest.mark.parametrize("task", ["asr", "st"])
def test_text_is_empty_without_ctc_output(guarded, waves, task):
    request = {"task": task, "language": "en", "target_language": "fr"}
    model = guarded(confidence=1.1)
    before = model.transcribe(waves, **request, **SHORT, guard=False)
    found = model.transcribe(waves, **request, **SHORT)
    for old, new in zip(before, found, strict=True):
        assert old.text and not guard_flags(old)
        assert (new.text, new.tokens) == ("", [])
        assert new.flags == [NO_CTC_OUTPUT]
        assert new.unguarded == old.text
        assert new.ctc_text == old.ctc_text


@pytest.mark.parametrize("task", ["asr", "st"])
@pytest.mark.parametrize("most", [0.3, 1.0])
def test_text_is_not_longer_than_the_limit(guarded, waves, task, most):
    request = {"task": task, "language": "en", "target_language": "fr"}
    model = guarded(max_length_ratio=most)
    limits = model.guard.thresholds.limits(ENGLISH)
    flagged = 0
    for wave, result in zip(waves, model.transcribe(waves, **request, **SHORT)):
        longest = max(limits.max_characters(result.ctc_text, len(wave) / 16000), 0)
        assert len(ctc_text(result.text, "en")) <= longest
        flagged += TOO_LONG in result.flags
        assert (TOO_LONG in result.flags) == (result.unguarded is not None)
    assert flagged


def test_text_with_low_ctc_score_is_replaced(guarded, waves):
    """The CTC transcript is more probable than the output of a random LLM."""
    model = guarded(ctc_margin=0.0, weight=0.9)
    for result in model.transcribe(waves, **SHORT, nbest=3):
        assert guard_flags(result) == [LOW_CTC_SCORE]
        assert result.text == result.ctc_text
        assert result.unguarded
        assert result.nbest[0][0] == result.text
        scores = [score for _, score in result.nbest]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("task", ["asr", "st"])
def test_improbable_text_is_withheld(guarded, waves, task):
    request = {"task": task, "language": "en", "target_language": "fr"}
    model = guarded(nll_per_second=0.0)  # every text is too improbable
    before = model.transcribe(waves, **request, **SHORT, guard=False)
    found = model.transcribe(waves, **request, **SHORT)
    for old, new in zip(before, found, strict=True):
        assert (new.text, new.tokens) == ("", [])
        assert guard_flags(new) == [WITHHELD]
        assert new.unguarded == old.text
        (empty, _), (second, _) = new.nbest
        assert (empty, second) == ("", old.text)
    accepted = guarded(nll_per_second=1e99).transcribe(waves, **request, **SHORT)
    assert [r.entry() for r in accepted] == [r.entry() for r in before]


def test_nll_per_second_combines_llm_and_ctc(guarded, waves):
    model = guarded(weight=0.3)
    batch = model.encode(waves[:2], [ENGLISH, Task("st", "en", "fr")])
    hypothesis = Hypothesis(model.codec.encode("a cab"), llm_score=-7.0)
    scorer = CTCPrefixScorer(batch.logits, batch.encoder_lengths)

    def ctc_score(row: int, text: str) -> float:
        state = scorer.start(torch.tensor([row]))
        for label in model.ctc_tokenizer(text):
            state = scorer.extend(state, torch.tensor([label]))
        return scorer.finish(state).item()

    expected = -(0.3 * ctc_score(0, "a cab") - 0.7 * 7.0) / (len(waves[0]) / 16000)
    assert model.guard.nll_per_second(batch, 0, hypothesis) == pytest.approx(
        expected, abs=1e-3
    )
    expected = -ctc_score(1, batch.ctc_texts[1]) / (len(waves[1]) / 16000)
    assert model.guard.nll_per_second(batch, 1, hypothesis) == pytest.approx(
        expected, abs=1e-3
    )


def test_low_confidence_text_of_both_llm_and_ctc_stays(guarded, waves):
    model = guarded(confidence=1.1)
    batch = model.encode(waves, [ENGLISH] * len(waves))
    assert all(batch.ctc_texts)
    equal = [[Hypothesis(model.codec.encode(text))] for text in batch.ctc_texts]

    def check(nbests: list, scale: float) -> list:
        part = replace(batch, logits=batch.logits * scale)
        return model.guard.check(part, nbests, SearchOptions())

    found = check(equal, 100.0)  # label probabilities near one
    assert [d.nbest for d in found] == equal and not any(d.flags for d in found)
    assert all(d.flags == [NO_CTC_OUTPUT] for d in check(equal, 0.01))
    other = [[Hypothesis(model.codec.encode("a" + text))] for text in batch.ctc_texts]
    assert all(d.flags == [NO_CTC_OUTPUT] for d in check(other, 100.0))


def test_text_of_the_first_pass_stays_where_there_is_speech(guarded, speech_file):
    model = guarded(confidence=1.1)
    speech = load_audio(speech_file)
    noise = np.random.default_rng(1).normal(0, 0.05, len(speech)).astype(np.float32)
    waves = [speech, noise, speech]
    first = [
        FirstPass(texts, wave, None, "en", None)
        for texts, wave in zip((["other", "A b."], ["A b."], ["other"]), waves)
    ]
    batch = replace(model.encode(waves, [ENGLISH] * 3), first_pass=first)
    nbests = [[Hypothesis(model.codec.encode("a b"))] for _ in waves]
    found = model.guard.check(batch, nbests, SearchOptions())
    assert [d.flags for d in found] == [[], [NO_CTC_OUTPUT], [NO_CTC_OUTPUT]]
    assert found[0].nbest == nbests[0]


def test_text_of_the_first_pass_that_is_too_long_stays_out(guarded, waves):
    """The decoder, with the whole weight, prefers the longest text."""
    decoder = SimpleNamespace(
        encode=lambda waves: [torch.zeros(1, 1)],
        log_probs=lambda states, texts, *other: [float(len(t)) for t in texts],
    )
    model = guarded(max_length_ratio=1.5)
    batch = model.encode(waves[-1:], [ENGLISH])
    loop = " ".join([batch.ctc_text(0)] * 4)
    first = FirstPass([loop], waves[-1], None, "en", decoder)
    batch = replace(batch, first_pass=[first])
    options = replace(
        model.options({**SHORT, "nbest": 9}),
        first_pass_beam_size=1,
        rescore_decoder_weight=1.0,
    )
    looped = Hypothesis(model.codec.encode(loop))
    (found,) = model.guard.check(batch, [[looped]], options)
    assert TOO_LONG in found.flags
    texts = [model.codec.decode(h.tokens).strip() for h in found.nbest]
    assert batch.ctc_text(0) in texts and loop not in texts
    # nothing else is left: the text that was cut stays
    model = guarded(max_length_ratio=0.0)
    (found,) = model.guard.check(batch, [[looped]], options)
    assert [h.tokens for h in found.nbest] == [[]]
    # with no CTC transcript to compare it with, only its rate counts
    batch = replace(batch, ctc_texts=[""])
    for rate, kept in ((1000.0, True), (0.1, False)):
        guard = guarded(max_length_ratio=1.5, rate=rate).guard
        assert guard.is_too_long(batch, 0, looped) is not kept


def test_repetitive_translation_is_decoded_without_repeated_ngrams(guarded, waves):
    request = {"task": "st", "language": "en", "target_language": "fr"}
    model = guarded(repetition=-1)  # every text counts as repetitive
    long = {"tokens_per_second": 0.0, "extra_tokens": 40.0}
    for result in model.transcribe(waves, **request, **long):
        assert REPETITION in result.flags
        trigrams = list(zip(result.tokens, result.tokens[1:], result.tokens[2:]))
        assert len(set(trigrams)) == len(trigrams)


@pytest.mark.parametrize("limits", [{"max_length_ratio": 1.0}, {"ctc_margin": 0.5}])
def test_guard_does_not_depend_on_the_batch(guarded, waves, limits):
    model = guarded(**limits)
    alone = [model.transcribe([wave], **SHORT)[0] for wave in waves]
    together = model.transcribe(waves, **SHORT)
    assert [r.text for r in together] == [r.text for r in alone]
    assert [r.flags for r in together] == [r.flags for r in alone]
    assert any(r.flags for r in alone)


def test_guard_is_on_if_the_model_has_thresholds(tiny_model, tmp_path, waves):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    unguarded = SpeechToText.from_pretrained(folder)
    assert not guard_flags(unguarded.transcribe(waves[:1], **SHORT)[0])
    with pytest.raises(UserError, match="guard_thresholds"):
        unguarded.transcribe(waves[:1], guard=True)
    write_thresholds(thresholds(confidence=1.0), folder)
    model = SpeechToText.from_pretrained(folder)
    assert model.transcribe(waves[:1], **SHORT)[0].flags == [NO_CTC_OUTPUT]
    assert model.transcribe(waves[:1], guard=True, **SHORT)[0].text == ""
    assert model.transcribe(waves[:1], guard=False, **SHORT)[0].text


def test_rescoring_reorders_the_nbest_list(model, waves):
    options = {**SHORT, "beam_size": 4, "nbest": 4}
    plain = model.transcribe(waves, **options)
    found = model.transcribe(waves, rescore_ctc_weight=0.8, **options)
    assert [r.text for r in plain] != [r.text for r in found]
    for old, new in zip(plain, found):
        assert {t for t, _ in old.nbest} == {t for t, _ in new.nbest}
    one = model.transcribe(waves, rescore_ctc_weight=0.8, **{**options, "nbest": 1})
    assert [r.text for r in one] == [r.text for r in found]
    assert all(len(r.nbest) == 1 for r in one)


# Thresholds from a development set


@pytest.mark.parametrize(
    ("reference", "text", "errors"),
    [
        ("press 2", "Press two.", 0),
        ("a b c", "a x c d", 2),
        ("", "some words", 2),
        ("some words", "", 2),
    ],
)
def test_errors_are_counted_as_in_scoring(reference, text, errors):
    assert count_errors(reference, text, "en") == errors
    assert count_errors("はい", "はーい", "ja") == 1


def test_best_weight_has_the_fewest_errors():
    candidates = [(-1.0, -9.0, 3), (-9.0, -2.0, 0)]  # of the LLM and of CTC
    assert best_weight([candidates]) == 0.7
    assert best_weight([[(-1.0, -9.0, 0), (-9.0, -2.0, 3)]]) == 0.5
    assert best_weight([]) == 0.5
    trial = Trial("asr_en", 2.0, True, candidates)
    assert trial.nll_per_second(0.5) == 2.5  # first candidate: 5 nats in 2 s
    assert trial.nll_per_second(0.75) == 1.875  # second candidate: 3.75 nats


@pytest.fixture
def examples(tmp_path, speech_file):
    """Return an example dir of real speech with two tasks."""
    folder = tmp_path / "dev"
    folder.mkdir()
    speech = load_audio(speech_file)
    tables: dict[str, list[str]] = {"wav.scp": [], "utt2task": [], "text": []}
    for index, size in enumerate((16000, 30000, len(speech))):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, speech[:size], 16000)
        for task, text in (("asr en en", "please enter"), ("st en fr", "Entrez cela.")):
            name = f"{index}-{task[:2]}"
            tables["wav.scp"].append(f"{name} {path}")
            tables["utt2task"].append(f"{name} {task}")
            tables["text"].append(f"{name} {text}")
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(sorted(lines)) + "\n")
    return folder


@pytest.mark.parametrize("least", [3, 4])
def test_thresholds_accept_the_references(model, examples, monkeypatch, least, capsys):
    """The set has three examples of each task."""
    monkeypatch.setattr(tuning, "LEAST_TO_WITHHOLD", least)
    found = read_examples(examples)
    options = SearchOptions(**SHORT)
    thresholds = find_thresholds(model, found, options, margin=2.0)
    output = capsys.readouterr().out
    assert set(thresholds.groups) == {"asr_en", "st_en_fr"}
    ctc_texts = {
        e.name: r.ctc_text
        for e, r in zip(
            found,
            model.decode([e.wave for e in found], [e.task for e in found], options),
        )
    }
    for example in found:
        limits = thresholds.limits(example.task)
        characters = len(ctc_text(example.text, "en"))
        ratio = (characters + 5) / (len(ctc_texts[example.name]) + 5)
        assert limits.min_length_ratio <= ratio <= limits.max_length_ratio
        assert characters / (len(example.wave) / 16000) <= limits.rate
    for name, limits in thresholds.groups.items():
        assert (limits.nll_per_second is None) == (least == 4)
        warned = f"{name}: improbable texts are not withheld; 3 examples" in output
        assert warned == (least == 4)
    assert thresholds.groups["st_en_fr"].ctc_margin is None
    assert thresholds.groups["asr_en"].ctc_margin > 0
    model.guard = Guard(model.llm, model.codec, thresholds)
    for batch in (found[:2], found[2:]):
        tasks = [example.task for example in batch]
        for result in model.decode([e.wave for e in batch], tasks, options):
            assert WITHHELD not in result.flags
    model.guard = None


def test_guard_commands(tiny_model, examples, speech_file, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = tmp_path / "decode.yaml"
    config.write_text("tokens_per_second: 0.0\nextra_tokens: 3.0\nbatch_size: 3\n")
    common = ["--model", str(folder), "--config", str(config)]
    guard_table = ["--examples", str(examples), "--limit", "2", *common]
    with pytest.raises(UserError, match="guard_thresholds"):
        guard_table_command.main(guard_table)
    guard_thresholds_command.main(["--examples", str(examples), *common])
    assert read_thresholds(folder).made_from == "6 examples"
    output = tmp_path / "table.md"
    capsys.readouterr()
    guard_table_command.main(
        [
            *guard_table,
            *("--music", str(speech_file), "--foreign", f"it={speech_file}"),
            *("--words", f"password={speech_file}", "--output", str(output)),
        ]
    )
    lines = output.read_text().splitlines()
    assert all(line.count("|") == 11 for line in lines)
    rows = {line.split(" | ")[0].strip("| "): line for line in lines}
    assert {
        "digital silence",
        "white noise -40 dB",
        "hold music",
        "speech in it",
        "one word 30 times",
        "clipped audio",
        "all noise and music",
    } <= set(rows)
    some = [*guard_table, "--output", str(output), "--conditions"]
    guard_table_command.main([*some, "digital", "clips of"])
    rows = [line.split(" | ")[0] for line in output.read_text().splitlines()[2:]]
    assert rows == ["| digital silence", "| clips of 0.05 s"]
    with pytest.raises(UserError, match="no condition none; of: digital silence, "):
        guard_table_command.main([*some, "none"])
    with pytest.raises(UserError, match="NAME=FILE"):
        guard_table_command.main([*guard_table, "--words", "five"])
    with pytest.raises(UserError, match="margin"):
        guard_thresholds_command.main(
            ["--examples", str(examples), *common, "--margin", "0.5"]
        )


def test_noise_has_the_expected_spectrum_and_level():
    random = np.random.default_rng(1)
    white, pink = white_noise(1 << 16, random), pink_noise(1 << 16, random)
    for noise, slope in ((white, 0.0), (pink, -1.0)):
        assert noise.std() == pytest.approx(1.0, abs=0.02)
        power = np.abs(np.fft.rfft(noise)) ** 2
        octaves = [power[1 << n : 2 << n].mean() for n in range(6, 15)]
        measured = np.polyfit(range(len(octaves)), np.log2(octaves), 1)[0]
        assert measured == pytest.approx(slope, abs=0.1)
    quiet = at_level(white, -40)
    assert 20 * np.log10(quiet.std()) == pytest.approx(-40, abs=0.3)
    assert abs(at_level(white, 20)).max() == 1.0
    pieces = pieces_of(np.arange(16000 * 60), 3)
    assert [p[0] / 16000 for p in pieces] == [0, 25, 50]
    assert [len(p) for p in pieces] == [160000] * 3


def test_conditions_without_utterances_are_left_out():
    """Of a test set without recognition there is no clipped audio to recognise."""
    wave = np.ones(16000, np.float32)
    joint = Example("u1-asr_st-de", wave, Task("asr_st", "en", "de"), "one\teins")
    conditions = make_conditions([joint])
    assert all(condition.examples for condition in conditions)
    names = [condition.name for condition in conditions]
    assert "digital silence" in names and names[-1] == "clean asr_st_en_de"
    assert "clipped audio" not in names
    recognition = Example("u1-asr-en", wave, ENGLISH, "one")
    names = [c.name for c in make_conditions([joint, recognition])]
    assert "clipped audio" in names


def test_joint_output_without_the_guard_has_transcript_and_translation(guarded):
    """The guard withholds two words and their translation, in noise of one second."""
    model, task = guarded(), Task("asr_st", "en", "fr")
    codec = model.codec
    separator = find_separator(codec.tokenizer).tokens
    tokens = [*codec.encode("please wait"), *separator, *codec.encode("un moment oui")]
    batch = SimpleNamespace(tasks=[task], ctc_texts=[""])
    decision = GuardDecision([Hypothesis([])], [NO_CTC_OUTPUT])
    result = make_result(codec, batch, 0, decision.nbest)
    add_decision(result, codec, batch, 0, [Hypothesis(tokens)], decision)
    assert (result.transcript, result.text) == ("", "")
    texts = result.unguarded_transcript, result.unguarded
    assert texts == ("please wait", "un moment oui")

    decoder = SimpleNamespace(
        guard=model.guard, options=dict, decode_all=lambda *_: [result]
    )
    noise = Condition("noise", [Example("0", np.zeros(16000), task, "")])
    [row] = guard_rows(decoder, [noise])
    assert row.invented == (pytest.approx(60 * 5), 0)


def test_entry_has_guarded_and_unguarded_text(guarded, waves):
    (result,) = guarded(confidence=1.1).transcribe(waves[:1], **SHORT)
    entry = json.loads(json.dumps(result.entry()))
    assert entry["text"] == "" and entry["unguarded"] == " ".join(
        result.unguarded.split()
    )
    assert entry["flags"] == ["nothing heard"]
    assert len(LABELS) == len(guarded().model.token_list)


def test_no_guard_where_a_model_does_not_allow_it(
    tiny_model, examples, tmp_path, capsys
):
    """Stage 11 goes on without a guard."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(
        yaml.safe_dump({**config, "ctc_trained": False})
    )
    common = ["--model", str(folder), "--examples", str(examples), "--limit", "2"]
    for command, name in (
        (guard_thresholds_command, "guard.yaml"),
        (calibrate_command, "confidence.json"),
    ):
        with pytest.raises(UserError, match="trained CTC"):
            command.main(common)
        command.main([*common, "--if_possible"])
        assert f"no {name}: " in capsys.readouterr().out
    assert not (folder / "guard.yaml").exists()


def test_thresholds_replace_those_of_an_earlier_model(
    tiny_model, examples, tmp_path, capsys
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    command = ["--model", str(folder), "--examples", str(examples)]
    (folder / "guard.yaml").write_text("groups: {}")  # damaged: the model does not load
    guard_thresholds_command.main(command)
    assert "guard.yaml.previous" in {path.name for path in folder.iterdir()}
    assert read_thresholds(folder) is not None
    edited = (folder / "guard.yaml").read_text() + "# checked by hand\n"
    (folder / "guard.yaml").write_text(edited)
    guard_thresholds_command.main(command)
    assert (folder / "guard.yaml").read_text() != edited
    assert (folder / "guard.yaml.previous.2").read_text() == edited
    guard_thresholds_command.main(command)  # nothing changes, nothing is kept
    assert not (folder / "guard.yaml.previous.3").exists()
    config = tmp_path / "decode.yaml"
    config.write_text("ctc_weight: 0.5\n")
    model_config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(
        yaml.safe_dump({**model_config, "ctc_trained": False})
    )
    guard_thresholds_command.main([*command, "--config", str(config), "--if_possible"])
    assert "no guard.yaml: ctc_weight needs" in capsys.readouterr().out
    assert not (folder / "guard.yaml").exists()
