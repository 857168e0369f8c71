"""Baselines of the translation recipes on a few words of real speech."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import tiny_baselines
from recipe_clone import clone

from speechllm.audio.io import load_audio
from speechllm.data.examples import make_examples
from speechllm.data.kaldi_table import write_table

RECORDER = """#!/usr/bin/env bash
# Records the programs that a script runs.
if [ "$1" != -m ]; then exec {python} "$@"; fi
echo "${{@:2}}" >> calls
"""


def write_stage_5(folder: Path, name: str, speech_file: Path) -> None:
    """Write the output of stages 3 to 5 for a set with two English utterances."""
    raw = folder / "dump" / "raw" / name
    raw.mkdir(parents=True)
    speech = load_audio(speech_file)
    tables = {"wav.scp": {}, "utt2num_samples": {}}
    for number, wave in enumerate((speech[:20000], speech[20000:48000])):
        path = raw / f"u{number}.wav"
        soundfile.write(path, wave, 16000)
        tables["wav.scp"][f"u{number}"] = str(path)
        tables["utt2num_samples"][f"u{number}"] = str(len(wave))
    both = ("u0", "u1")
    tables["text"] = dict(zip(both, ("Please enter", "your password")))
    tables["text.de"] = dict(zip(both, ("Bitte geben Sie", "Ihr Passwort ein")))
    tables["utt2lang"] = dict.fromkeys(both, "en")
    tables["utt2spk"] = dict.fromkeys(both, "s")
    for table, content in tables.items():
        write_table(raw / table, content)
    tasks = ["asr:en", "st:en:de", "asr_st:en:de"]
    make_examples([raw], folder / "dump" / "examples" / name, tasks)


def run_script(
    folder: Path, *arguments: str, script: str = "baselines.sh"
) -> subprocess.CompletedProcess:
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        [f"local/{script}", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2400,
        check=False,
    )


@pytest.mark.slow
def test_baselines_are_added_to_the_results(tmp_path, speech_file, whisper_base):
    folder = clone(tmp_path / "clone", "covost2") / "covost2" / "speechllm1"
    write_stage_5(folder, "test", speech_file)
    models = tmp_path / "models"
    tiny_baselines.write_tiny_whisper_decoder(models / "whisper-x.y", whisper_base)
    tiny_baselines.write_tiny_nllb(models / "nllb")
    tiny_baselines.write_tiny_seamless(models / "seamless")
    arguments = ["--beam_size", "1", "--dtype", "float32", "--device", "cpu"]
    arguments += ["--whisper", str(models / "whisper-x.y")]
    arguments += ["--nllb", str(models / "nllb")]
    done = run_script(folder, *arguments, "--seamless", str(models / "seamless"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((folder / "exp" / "RESULTS.json").read_text())
    assert {row["decode"] for row in rows} == {"decode_beam1"}
    found = {(row["system"], row["task"]) for row in rows}
    everything = {"asr", "st", "asr_st"}
    assert found == {
        ("whisper-x_y", "asr"),
        *(("whisper-x_y_nllb", task) for task in everything),
        *(("seamless", task) for task in everything),
    }
    assert "| whisper-x_y_nllb/decode_beam1 | test | en → de | 2 |" in done.stdout


@pytest.mark.parametrize("recipe", ["must_c", "covost2"])
def test_missing_examples_are_reported(tmp_path, recipe):
    done = run_script(clone(tmp_path, recipe) / recipe / "speechllm1")
    assert done.returncode == 1
    assert "run stage 5 first" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_option_prints_one_line(tmp_path):
    done = run_script(
        clone(tmp_path, "covost2") / "covost2" / "speechllm1", "--wisper", "x"
    )
    assert done.returncode == 1
    assert "unknown option '--wisper'" in done.stderr


@pytest.mark.parametrize(
    ("recipe", "script", "dump"),
    [
        ("covost2", "baselines.sh", "dump"),
        ("fillets", "baselines.sh", "dump"),
        ("mini_asterisk", "baselines.sh", "dump"),
        ("mini_asterisk", "joint_baselines.sh", "dump_asr_st"),
    ],
)
def test_test_sets_of_whisper_keep_empty_transcripts(tmp_path, recipe, script, dump):
    """As those of stage 5 do, or the systems have other test sets."""
    folder = clone(tmp_path, recipe) / recipe / "speechllm1"
    for program, text in (
        ("utils/python3", RECORDER.format(python=sys.executable)),
        ("run_asr_st.sh", "#!/usr/bin/env bash\n"),
    ):
        (folder / program).write_text(text)
        (folder / program).chmod(0o755)
    joint = "exp_asr_st/speechllm_train_asr_st/decode_asr_st/test/text"
    for name in (
        *("dump/raw/test/text", "dump/examples/test/utt2task", joint),
        *("exp/speechllm_train/decode/test/text", "exp/RESULTS.md"),
        "exp_asr_st/RESULTS.md",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("u0-asr-en asr en en\n")
    done = run_script(folder, script=script)
    assert done.returncode == 0, done.stderr
    calls = (folder / "calls").read_text().splitlines()
    (call,) = (call for call in calls if call.startswith("speechllm.bin.make_examples"))
    assert f"--input {dump}/raw/test " in call
    assert "--keep_empty" in call.split()
