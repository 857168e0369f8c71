"""Benchmarks of the server and of live transcription, with a tiny model."""

from __future__ import annotations

import re

import pytest
import soundfile
from served import RATE, running_server

from speechllm import SpeechToText
from speechllm.audio.io import load_audio
from speechllm.bin.benchmark import main
from speechllm.utils.errors import UserError


@pytest.fixture
def examples(tmp_path, speech_file):
    """Write an example dir with two transcripts and a translation."""
    samples, folder = load_audio(speech_file), tmp_path / "examples"
    folder.mkdir()
    for name, size in (("a", 2 * RATE), ("b", RATE), ("c", RATE)):
        soundfile.write(folder / f"{name}.wav", samples[:size], RATE)
    names = ("wav.scp", lambda n: f"{folder}/{n}.wav"), (
        "utt2task", lambda n: "st en fr" if n == "c" else "asr en en"
    )  # fmt: skip
    for table, value in names:
        (folder / table).write_text("".join(f"{n} {value(n)}\n" for n in "abc"))
    return folder


def test_throughput_by_number_of_clients(tiny_model, examples, capsys):
    with running_server(SpeechToText.from_pretrained(tiny_model)) as served:
        main(
            ["serve", "--url", served.url, "--examples", str(examples),
             "--clients", "1", "2"]
        )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 recordings, 3 s of audio"
    assert [line.split()[1] for line in lines[4:]] == ["1", "2"]


def test_server_that_is_not_there(examples):
    with pytest.raises(UserError, match="start speechllm serve"):
        main(["serve", "--url", "http://127.0.0.1:9", "--examples", str(examples)])


@pytest.mark.slow
def test_latency_of_a_feed_in_real_time(tiny_model, examples, capsys):
    main(
        ["live", "--examples", str(examples), "--pause", "1", "--", "--model",
         str(tiny_model), "--tokens_per_second", "1"]
    )  # fmt: skip
    found = re.match(
        r"2 segments in 5 s of audio; .* median (\S+) s, longest (\S+) s",
        capsys.readouterr().out,
    )
    assert found is not None
    assert 0 < float(found[1]) <= float(found[2])


def test_failure_of_the_command_is_reported(examples):
    with pytest.raises(UserError, match="no segment was printed: error: /no/such"):
        main(["live", "--examples", str(examples), "--", "--model", "/no/such"])
