"""Segmentation of long recordings by their transcripts, on constructed CTC output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_models import LABELS

from speechllm.bin.align_recordings import main, open_output
from speechllm.inference import align_transcript
from speechllm.inference.align_transcript import (
    TimedWord,
    align_recording,
    align_words,
    ctc_error,
    ctc_log_probs,
    cut_segments,
)
from speechllm.inference.speech_to_text import SpeechToText
from speechllm.text.ctc_labels import CTCTokenizer
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

RATE = 50.0  # frames per second
WORDS = "alpha beta gamma delta omega lambda sigma epsilon theta kappa".split()


def spoken(words: list[str], seed: int = 0):
    """Return CTC log probabilities of words, and the frames of each.

    Each letter is a spike of one frame in five, between noise; words are 10 to 60
    frames apart.
    """
    rng = np.random.default_rng(seed)
    labels, spans = [], []
    for word in words:
        labels += [0] * int(rng.integers(10, 60))
        begin = len(labels)
        for letter in word:
            labels += [LABELS.index(letter), 0, 0, 0, 0]
        spans.append((begin, len(labels) - 4))
        labels += [LABELS.index("<space>")]
    labels += [0] * 30
    logits = torch.tensor(rng.normal(0, 1, (len(labels), len(LABELS))))
    logits[torch.arange(len(labels)), labels] += 6
    return logits.log_softmax(1).float(), spans


@pytest.mark.parametrize("block_seconds", [8.0, 120.0])
def test_words_are_found_in_one_block_or_in_many(monkeypatch, block_seconds):
    monkeypatch.setattr(align_transcript, "BLOCK_SECONDS", block_seconds)
    monkeypatch.setattr(align_transcript, "EDGE_SECONDS", 2.0)
    rng = np.random.default_rng(3)
    words = [WORDS[i] for i in rng.integers(0, len(WORDS), 80)]
    log_probs, spans = spoken(words)
    assert len(log_probs) / RATE > 3 * 8.0
    lines = [" ".join(words[:30]) + ".", " ".join(words[30:])]
    tokenizer = CTCTokenizer(LABELS)
    found = align_words(lines, log_probs, "en", tokenizer, RATE)
    assert [word.text.rstrip(".") for word in found] == words
    for word, (begin, end) in zip(found, spans, strict=True):
        # a word is lengthened by at most 0.08 s before and 0.06 s after its labels
        assert begin / RATE - 0.081 <= word.start <= begin / RATE + 1e-6
        assert end / RATE - 1e-6 <= word.end <= end / RATE + 0.061
    ends = [n for n, word in enumerate(found) if word.ends_sentence]
    assert ends == [29, 79]


def test_a_transcript_that_has_no_room_or_no_words():
    log_probs, _ = spoken(["alpha"])
    tokenizer = CTCTokenizer(LABELS)
    with pytest.raises(UserError, match="more letters than the audio"):
        align_words(["beta gamma " * 40], log_probs, "en", tokenizer, RATE)
    with pytest.raises(UserError, match="no words"):
        align_words(["♪"], log_probs, "en", tokenizer, RATE)


def test_segments_end_at_pauses_and_sentences():
    def word(text: str, start: float, end: float) -> TimedWord:
        return TimedWord(text, start, end, text.endswith("."), ())

    words = [
        word("one", 1.0, 2.0),
        word("two.", 2.1, 4.0),  # a sentence and a pause of 0.2 s: 0.7
        word("three", 4.2, 6.0),  # a pause of 0.3 s
        word("four", 6.3, 9.0),
        word("five", 9.02, 11.0),
    ]
    found = cut_segments(words, "en", max_seconds=8.5)
    assert [one.text for one in found] == ["one two.", "three four five"]
    assert (found[0].start, found[1].start) == (pytest.approx(0.8), pytest.approx(4.1))
    assert (found[0].end, found[1].end) == (pytest.approx(4.1), pytest.approx(11.2))
    joined = cut_segments(words[:2], "ja")
    assert [one.text for one in joined] == ["onetwo."]


def test_windows_give_the_frames_of_the_whole_recording(tiny_model):
    """The windows of a recording have as many frames as the recording."""
    model = SpeechToText.from_pretrained(tiny_model)
    wave = 0.1 * np.random.default_rng(0).standard_normal(16000 * 25).astype(np.float32)
    whole = model.encode([wave], [Task("asr", "en", "en")])
    log_probs = ctc_log_probs(model, wave, "en")
    assert log_probs.shape == whole.log_probs(0).shape
    assert torch.allclose(log_probs.exp().sum(1), torch.ones(len(log_probs)), atol=1e-4)


def test_a_model_without_ctc_is_refused(tiny_model, monkeypatch):
    model = SpeechToText.from_pretrained(tiny_model)
    model.ctc_tokenizer = None
    with pytest.raises(UserError, match=r"needs .*CTC.*--align_model, or subtitles"):
        align_recording(model, "x.wav", "text", "en")


def test_ctc_error_is_the_character_error_rate():
    assert ctc_error("helo world", "Hello, world!", "en") == round(1 / 11, 4)
    assert ctc_error("", "abc", "en") == 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("years of work\n", "not an output"),
        ('{"text": "years"}\n', "not an output"),
        ("[1]\n", "not an output"),
        ('{"model": "/m"}\n5\n', "damaged"),
    ],
)
def test_the_command_replaces_no_other_file(tmp_path, content, message):
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=f"{path}: {message}"), open_output(path, "/m"):
        pass
    assert path.read_text() == content


def test_segments_of_another_model_are_kept(tmp_path):
    path = tmp_path / "out.jsonl"
    content = '{"model": "/m"}\n{"audio": "a", "text": "b", "segments": []}\n{"aud'
    path.write_text(content)
    with open_output(path, "/m") as (done, _):
        assert done == {("a", None, None, "b", True, None)}
    with open_output(path, "/other") as (done, _):
        assert not done
    assert path.read_text() == '{"model": "/other"}\n'
    assert (tmp_path / "out.jsonl.previous").read_text() == content[
        : content.rfind("{")
    ]


def test_the_command_aligns_compares_and_resumes(tiny_model, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for name, seconds in (("long", 40), ("short", 2), ("damaged", 2)):
        wave = 0.1 * rng.standard_normal(seconds * 16000)
        soundfile.write(data / f"{name}.wav", wave, 16000)
    (data / "long.txt").write_text("good morning everybody\nand thank you\n")
    (data / "short.txt").write_text("hello")
    (data / "damaged.txt").write_text("hello " * 200)
    output = tmp_path / "out" / "alignments.jsonl"
    options = ["--data", str(data), "--model", str(tiny_model), "--output", str(output)]
    main(options)
    assert "1 recordings aligned, 2 utterances compared, 0 failed" in (
        capsys.readouterr().out
    )
    head, *rows = map(json.loads, output.read_text().splitlines())
    assert head == {"model": str(tiny_model)}
    found = {Path(row["audio"]).stem: row for row in rows}
    segments = found["long"]["segments"]
    text = " ".join(one["text"] for one in segments)
    assert text == "good morning everybody and thank you"
    edges = [(one["start"], one["end"]) for one in segments]
    assert all(0 <= a < b <= 40 for a, b in edges) and edges == sorted(edges)
    assert found["short"]["ctc_error"] > 0
    output.write_text(output.read_text()[:-30])  # as after a kill
    main(options)
    assert "0 recordings aligned, 1 utterances compared" in capsys.readouterr().out
    assert len(output.read_text().splitlines()) == 4
    main([*options, "--max_seconds", "1.5"])  # the short one is too long now
    assert "1 recordings aligned, 0 utterances compared" in capsys.readouterr().out
    soundfile.write(data / "short.wav", wave, 16000)
    main(options)
    assert "0 recordings aligned, 1 utterances compared" in capsys.readouterr().out
