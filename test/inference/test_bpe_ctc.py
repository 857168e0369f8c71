"""CTC labels that are BPE pieces: joint search, rescoring, word times, guard."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from speechllm import SpeechToText
from speechllm.audio.io import load_audio
from speechllm.data.ctc_vocabulary import build_bpe_vocabulary
from speechllm.data.examples import Example
from speechllm.inference.guard_thresholds import (
    LOW_CTC_SCORE,
    NO_CTC_OUTPUT,
    Limits,
    Thresholds,
    write_thresholds,
)
from speechllm.inference.tuning import find_thresholds
from speechllm.models.speech_llm import build_speech_llm
from speechllm.text.normalization import ctc_text
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

SHORT = {"tokens_per_second": 0.0, "extra_tokens": 6.0}  # six tokens at most
SENTENCES = ("the quick brown fox", "jumps over the lazy dog", "the dog and the fox")
ENGLISH = Task("asr", "en", "en")


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory) -> Path:
    """Write the tiny model with a CTC branch over pieces."""
    folder = tmp_path_factory.mktemp("bpe") / "model"
    shutil.copytree(tiny_model, folder)
    lines = "".join(f"u{i} {text}\n" for i, text in enumerate(SENTENCES))
    (folder.parent / "text").write_text(lines, "utf-8")
    vocabulary = folder.parent / "vocabulary"
    tokens = build_bpe_vocabulary([folder.parent / "text"], vocabulary, 40)
    for name in ("tokens.txt", "bpe.model"):
        shutil.copy(vocabulary / name, folder / name)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    torch.manual_seed(8)
    state = build_speech_llm({**config, "token_list": tokens}).state_dict()
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(folder) -> SpeechToText:
    return SpeechToText.from_pretrained(folder)


@pytest.fixture(scope="module")
def waves(speech_file) -> list[np.ndarray]:
    speech = load_audio(speech_file)
    return [speech[: 4000 * n] for n in (2, 3, 5)]


@pytest.mark.parametrize("weight", ["ctc_weight", "rescore_ctc_weight"])
def test_score_is_that_of_llm_and_ctc(model, waves, weight):
    """Compare the score of the search with both parts, computed for the whole text."""
    options = model.options({**SHORT, weight: 0.4, "beam_size": 3, "nbest": 3})
    batch = model.encode(waves, [ENGLISH] * 3)
    for row, nbest in enumerate(model.search(batch, options)):
        for found in nbest:
            spoken = ctc_text(model.codec.decode(found.tokens), "en")
            units = model.ctc_tokenizer.scoring_units(spoken)
            (by_ctc,) = batch.ctc_scores(row, [units])
            (by_llm,) = model.llm.answer_log_probs(
                [batch.prompt_embeds[row]], [[*found.tokens, model.llm.eos_id]]
            )
            expected = 0.4 * by_ctc + 0.6 * by_llm.sum().item()
            assert found.score == pytest.approx(expected, abs=1e-3)


def test_joint_search_does_not_depend_on_the_batch(model, waves):
    options = {**SHORT, "beam_size": 3, "ctc_weight": 0.4}
    alone = [model.transcribe([wave], **options)[0] for wave in waves]
    for one, other in zip(alone, model.transcribe(waves, **options)):
        assert one.text == other.text
        assert one.score == pytest.approx(other.score, abs=1e-3)


def test_words_have_times(model, waves):
    for wave, result in zip(waves, model.transcribe(waves, word_times=True, **SHORT)):
        assert " ".join(word.text for word in result.words) == result.text
        times = [t for word in result.words for t in (word.start, word.end)]
        assert times == sorted(times)
        assert 0 <= times[0] and times[-1] <= len(wave) / 16000 + 0.02


def test_guard_replaces_a_flagged_text(folder, waves, tmp_path):
    """A text that CTC does not support becomes the best of CTC and LLM together."""
    copied = tmp_path / "model"
    shutil.copytree(folder, copied)
    wide = Limits(1e9, 0.0, 1e9, 10**6)
    flagging = Thresholds(0.0, 0.9, {"asr_en": replace(wide, ctc_margin=-1e9)})
    write_thresholds(flagging, copied)
    guarded = SpeechToText.from_pretrained(copied)
    batch = guarded.encode(waves, [ENGLISH] * 3)
    for row, result in enumerate(guarded.transcribe(waves, **SHORT)):
        assert LOW_CTC_SCORE in result.flags
        if result.unguarded is not None:
            before, after = batch.ctc_scores(
                row,
                [
                    guarded.ctc_tokenizer.scoring_units(ctc_text(text, "en"))
                    for text in (result.unguarded, result.text)
                ],
            )
            assert after > before
    nothing = Thresholds(1.0, 0.5, {"asr_en": wide})
    write_thresholds(nothing, copied)
    for result in SpeechToText.from_pretrained(copied).transcribe(waves, **SHORT):
        assert result.text == "" and NO_CTC_OUTPUT in result.flags


def test_thresholds_of_a_development_set(model, waves):
    examples = [
        Example(text[:3] + text[-3:], wave, ENGLISH, text)
        for wave, text in zip(waves, SENTENCES)
    ]
    found = find_thresholds(model, examples, model.options(SHORT))
    limits = found.groups["asr_en"]
    batch = model.encode(waves, [ENGLISH] * 3)
    margins = []
    for row, text in enumerate(SENTENCES):
        spelt = [
            model.ctc_tokenizer.scoring_units(t) for t in (batch.ctc_text(row), text)
        ]
        best, score = batch.ctc_scores(row, spelt)
        margins.append((best - score) / max(map(len, spelt)))
    assert limits.ctc_margin >= max(margins)


def test_model_without_its_pieces_is_refused(folder, waves, tmp_path):
    copied = tmp_path / "model"
    shutil.copytree(folder, copied)
    (copied / "bpe.model").unlink()
    model = SpeechToText.from_pretrained(copied)
    assert model.transcribe(waves[:1], **SHORT)[0].text
    with pytest.raises(UserError, match="ctc_weight needs bpe.model in the model fold"):
        model.transcribe(waves[:1], ctc_weight=0.3)
