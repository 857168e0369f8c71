"""Pictures of the worst utterances of a decode dir."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from speechllm import SpeechToText, load_audio
from speechllm.bin.draw_alignments import main
from speechllm.inference.align_transcript import TimedWord, ctc_log_probs
from speechllm.inference.alignment_pictures import align_each, draw_alignment


def test_words_are_drawn_at_their_times(tmp_path):
    """Words from 0.5 to 1 s and 1 to 1.75 s of 2 s: lines at these times."""
    words = [
        TimedWord("$a", 0.5, 1.0, False, (0.0,)),
        TimedWord("b", 1.0, 1.75, False, (0.0,)),
    ]
    noise = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    draw_alignment(tmp_path / "without.png", "x", noise, {"a": [], "b": []})
    draw_alignment(tmp_path / "with.png", "x", noise, {"a": words, "b": []})
    without, drawn = (imread(tmp_path / f"{n}.png") for n in ("without", "with"))
    height, width = without.shape[:2]
    changed = (without != drawn).any(axis=2)[int(0.6 * height)]  # in the spectrogram
    columns = np.flatnonzero(changed)
    lines = columns[np.diff(columns, prepend=-9) > 2]
    assert len(lines) == 3
    second = 2 * (lines[1] - lines[0])
    assert lines[2] - lines[1] == pytest.approx(0.75 * second, abs=3)
    beginning = lines[0] - 0.5 * second
    assert 0 < beginning < 0.2 * width
    assert 0.9 * width < beginning + 2 * second <= width


def test_texts_that_do_not_fit_have_no_words(tiny_model, speech_file):
    model = SpeechToText.from_pretrained(tiny_model)
    wave = load_audio(speech_file)
    texts = {"short": "two words", "empty": "", "long": "a b " * 2000}
    found = align_each(model, wave, texts, "en")
    assert [word.text for word in found["short"]] == ["two", "words"]
    assert found["empty"] == found["long"] == []
    assert len(ctc_log_probs(model, wave, "en"))


def test_the_command_draws_the_worst_and_replaces_old_pictures(
    tiny_model, speech_file, tmp_path, capsys
):
    examples, decoded = tmp_path / "examples", tmp_path / "decode" / "test"
    examples.mkdir()
    decoded.mkdir(parents=True)
    names = [f"u{number:02}" for number in range(12)]
    for file, value in (
        ("wav.scp", str(speech_file)), ("utt2task", "asr en en"), ("text", "one two")
    ):  # fmt: skip
        (examples / file).write_text("".join(f"{n} {value}\n" for n in names))
    texts = ["three four", "one two", *["one"] * 10]
    lines = (f"{name} {text}\n" for name, text in zip(names, texts))
    (decoded / "text").write_text("".join(lines))
    words = ["--model", str(tiny_model), "--examples", str(examples)]
    main([*words, "--decode_dir", str(decoded), "--device", "cpu"])
    assert "alignments: 10 pictures" in capsys.readouterr().out
    found = sorted(path.name for path in (decoded / "alignments").glob("*.png"))
    assert found[:2] == ["01-u00.png", "02-u02.png"] and len(found) == 10

    texts = ["three four", *["one two"] * 10, "a b c d"]  # audio of the last is missing
    table = (examples / "wav.scp").read_text().splitlines()
    (examples / "wav.scp").write_text("\n".join([*table[:-1], "u11 missing.wav\n"]))
    lines = (f"{name} {text}\n" for name, text in zip(names, texts))
    (decoded / "text").write_text("".join(lines))
    main([*words, "--decode_dir", str(decoded), "--device", "cpu"])
    assert [p.name for p in (decoded / "alignments").glob("*.png")] == ["02-u00.png"]
    assert "missing.wav" in capsys.readouterr().out
