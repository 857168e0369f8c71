"""Test the command ``speechllm transcribe``: inputs, outputs and errors."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_models import write_tiny_model

from speechllm import SpeechToText, cli
from speechllm.audio.io import load_audio
from speechllm.inference.recordings import find_recordings
from speechllm.utils.errors import UserError

RATE = 16000


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, smollm2) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("cli") / "model", smollm2)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory, speech_file) -> Path:
    """Write a folder of real speech as wav, flac and mp3, of three lengths."""
    folder = tmp_path_factory.mktemp("recordings")
    samples = load_audio(speech_file)
    soundfile.write(folder / "a.wav", samples[: 2 * RATE], RATE)
    (folder / "deeper").mkdir()
    soundfile.write(folder / "deeper" / "b.flac", samples[:RATE], RATE)
    soundfile.write(folder / "c.mp3", samples, RATE)
    (folder / "notes.txt").write_text("no audio\n")
    return folder


@pytest.fixture(scope="module")
def expected(model_dir, recordings) -> dict[str, str]:
    """Return the texts of the Python API for each recording alone."""
    model = SpeechToText.from_pretrained(model_dir)
    paths = ["a.wav", "c.mp3", "deeper/b.flac"]
    return {
        p: " ".join(model.transcribe([recordings / p])[0].text.split()) for p in paths
    }


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main(["transcribe", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_is_fast_and_does_not_import_torch():
    begin = time.monotonic()
    command = [sys.executable, "-m", "speechllm.cli", "transcribe", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--target_language" in printed.stdout
    assert time.monotonic() - begin < 2
    code = "import sys, speechllm.cli; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_table_of_files_and_folders(capsys, model_dir, recordings, expected):
    status, out, err = run(
        capsys, "--model", model_dir, recordings / "c.mp3", recordings
    )
    names = ["c.mp3", "a.wav", "c.mp3", "deeper/b.flac"]
    assert out == "".join(f"{recordings / n}\t{expected[n]}\n" for n in names)
    assert status == 0
    seconds = round(sum(len(load_audio(recordings / n)) for n in names) / RATE)
    assert f"{seconds}/{seconds} s of audio" in err  # progress


def test_json_lines_from_wav_scp_to_file(
    capsys, tmp_path, model_dir, recordings, expected
):
    scp, output = tmp_path / "wav.scp", tmp_path / "new" / "out.jsonl"
    scp.write_text(
        f"u1 {recordings / 'a.wav'}\nu2 {recordings / 'deeper' / 'b.flac'}\n"
    )
    status, out, _ = run(
        capsys, "--model", model_dir, "--format", "json", "--output", output,
        "--beam_size", 2, "--nbest", 2, "--ctc_weight", 0.5, scp,
    )  # fmt: skip
    assert (status, out) == (0, "")
    first, second = [json.loads(line) for line in output.read_text().splitlines()]
    assert (first["name"], second["name"]) == ("u1", "u2")
    assert first["seconds"] == 2.0
    assert len(first["nbest"]) == 2
    assert " ".join(first["nbest"][0][0].split()) == first["text"]
    assert {"score", "ctc_text"} <= set(first)
    segment = {"id": 0, "start": 0.0, "end": 2.0, "text": first["text"]}
    assert (first["segments"], first["language"]) == ([segment], "en")


def test_standard_input_is_transcribed(
    capsys, monkeypatch, model_dir, recordings, expected
):
    audio = io.BytesIO((recordings / "deeper" / "b.flac").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(audio))
    status, out, _ = run(capsys, "--model", model_dir, "--format", "text", "-")
    assert (status, out) == (0, expected["deeper/b.flac"] + "\n")


def test_translation_task(capsys, model_dir, recordings):
    model = SpeechToText.from_pretrained(model_dir)
    one = model.transcribe(
        [recordings / "a.wav"], task="st", language="fr", target_language="en"
    )
    _, out, _ = run(
        capsys, "--model", model_dir, "--task", "st", "--language", "fr",
        "--target_language", "en", "--format", "text", recordings / "a.wav",
    )  # fmt: skip
    assert out == " ".join(one[0].text.split()) + "\n"


@pytest.mark.parametrize("form", ["table", "text", "json"])
def test_failed_recordings_do_not_stop_others(
    capsys, tmp_path, model_dir, recordings, expected, form
):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    silent = tmp_path / "silent.wav"  # longer than Whisper's 30 s
    soundfile.write(silent, np.zeros(31 * RATE), RATE)
    inputs = [broken, recordings / "a.wav", silent, tmp_path / "missing.wav"]
    status, out, err = run(capsys, "--model", model_dir, "--format", form, *inputs)
    assert status == 1
    assert "2 of 4 recordings failed" in err
    assert f"error: {broken}: " in err
    assert f"{tmp_path / 'missing.wav'}: the audio file does not exist" in err
    text = expected["a.wav"]
    if form == "table":
        assert out == f"{recordings / 'a.wav'}\t{text}\n{silent}\t\n"
    elif form == "text":
        assert out == f"\n{text}\n\n\n"
    else:
        entries = [json.loads(line) for line in out.splitlines()]
        assert ["error" in entry for entry in entries] == [True, False, False, True]
        assert entries[2]["flags"] == ["no speech"]
        assert (entries[2]["text"], entries[2]["seconds"]) == ("", 31.0)


def test_truncated_standard_input(capsys, monkeypatch, model_dir, recordings):
    content = (recordings / "a.wav").read_bytes()
    half = io.BytesIO(content[: len(content) // 2])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(half))
    status, out, err = run(capsys, "--model", model_dir, "--format", "json", "-")
    entry = json.loads(out)
    assert status == 1
    assert entry["seconds"] == pytest.approx(1.0, abs=0.01)
    assert entry["text"]  # of the first half
    assert entry["error"].startswith("standard input: cut off, the header states 2.00")
    assert f"error: {entry['error']}" in err


@pytest.mark.parametrize("content", [b"", b"no audio at all" * 99])
def test_standard_input_without_audio_is_an_error(
    capsys, monkeypatch, model_dir, content
):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    status, out, err = run(capsys, "--model", model_dir, "-")
    assert (status, out) == (1, "")
    assert "error: standard input: " in err


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_of_several_recordings_in_a_folder(
    capsys, tmp_path, model_dir, recordings, form
):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    subtitles = tmp_path / "new" / "subtitles"
    status, out, _ = run(
        capsys, "--model", model_dir, "--format", form, "--output", subtitles,
        recordings / "a.wav", broken, recordings / "c.mp3",
    )  # fmt: skip
    assert (status, out) == (1, "")
    assert sorted(p.name for p in subtitles.iterdir()) == [
        ".speechllm_transcribe.jsonl",
        f"a.{form}",
        f"c.{form}",
    ]
    _, out, _ = run(
        capsys, "--model", model_dir, "--format", form, recordings / "a.wav"
    )
    assert out == (subtitles / f"a.{form}").read_text("utf-8")
    assert " --> 00:00:02" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to transcribe"),
        (["{empty}"], "no audio file in this folder"),
        (["{empty}/none.scp"], "the table does not exist"),
        (["{empty}/none.wav", "--model", "{empty}"], "the audio file does not exist"),
        (["-", "-"], "only once"),
        (["{wav}", "--model", "{empty}"], "no model"),
        (["{wav}", "--task", "sing"], "no prompt for task 'sing'"),
        (["{wav}", "--language", "xx"], "language 'xx'"),
        (["{wav}", "--task", "st"], "needs a target_language"),
        (["{wav}", "--task", "st", "--target_language", "xx"], "language 'xx'"),
        (["{wav}", "--batch_size", "0"], "at least 1"),
        (["{wav}", "--beam_size", "0"], "at least 1"),
        (["{wav}", "--ctc_weight", "2"], "from 0 to 1"),
        (["{wav}", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["{wav}", "--dtype", "int3"], "dtype 'int3'"),
        (["{wav}", "--max_seconds", "0.2"], "max_seconds 0.2: at least 1"),
        (["{wav}", "{wav}", "--format", "srt"], "name a folder with --output"),
        (
            ["{wav}", "{wav}", "--format", "vtt", "--output", "{empty}"],
            "a.wav.vtt would hold the texts of both",
        ),
        (
            ["{wav}", "--format", "srt", "--output", "{wav}/out"],
            "cannot be written",
        ),
        (["{wav}", "--output", "{empty}"], "this is a folder"),
        (["{wav}", "--output", "{wav}/out"], "cannot be written"),
    ],
)
def test_wrong_arguments_are_errors(
    tmp_path, model_dir, recordings, arguments, message
):
    names = {"empty": tmp_path, "wav": recordings / "a.wav"}
    given = [a.format(**names) for a in arguments]
    with pytest.raises(UserError, match=message):
        cli.main(["transcribe", "--model", str(model_dir), *given])


def test_empty_wav_scp_is_an_error(tmp_path):
    scp = tmp_path / "wav.scp"
    scp.write_text("")
    with pytest.raises(UserError, match="the list is empty"):
        find_recordings([str(scp)])


def test_missing_pretrained_model_is_an_error(tmp_path, model_dir):
    copy = tmp_path / "copy"
    shutil.copytree(model_dir, copy)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(str(model_dir), "/nowhere"))
    with pytest.raises(UserError, match="/nowhere"):
        SpeechToText.from_pretrained(copy)
