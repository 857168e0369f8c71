"""The recipe for a user's own data: all stages, a manifest, adaptation of a model."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from recipe_clone import TWO_STEPS, clone
from warm_python import warm_python

from speechllm.bin import align_recordings
from speechllm.corpora.own_data import add_arguments
from speechllm.data.kaldi_table import read_table
from speechllm.training import load_task

TRAINING = {
    "encoder": "whisper",
    "bridge": "convolution",
    "llm": "causal_lm",
    "model_conf": {"ctc_weight": 0.3},
    **TWO_STEPS,
}
SMALL = ["--ngpu", "0", "--nj", "1", "--speed_perturb_factors", ""]
WORDS = "red green blue yellow black white".split()


def run(
    folder: Path,
    *arguments: str,
    start: Path,
    check: bool = True,
    environment: dict[str, str] | None = None,
):
    """Run the recipe from another working folder, as a user does."""
    if environment is None:
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        [str(folder / "run.sh"), *arguments],
        cwd=start,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=2400,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done


def write_data(root: Path, number: int = 10) -> Path:
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(number):
        wave = 0.1 * rng.standard_normal(int(rng.uniform(1.0, 2.0) * 16000))
        soundfile.write(root / f"clip {n}.wav", wave, 16000)
        text = f"{WORDS[n % 6].title()} {WORDS[n * 5 % 6]} {WORDS[n // 6]}."
        (root / f"clip {n}.txt").write_text(text)
    return root


@pytest.fixture
def folder(tmp_path, tiny_whisper, tiny_llm):
    """Return the recipe in a copy of egs2, with configs of tiny models."""
    folder = clone(tmp_path / "clone", "own_data", "mini_asterisk")
    folder = folder / "own_data" / "speechllm1"
    llm = {"model": str(tiny_llm), "tuning": "lora", "lora": {"r": 2}}
    config = {**TRAINING, "encoder_conf": {"model": str(tiny_whisper)}, "llm_conf": llm}
    (folder / "conf" / "tiny.yaml").write_text(yaml.safe_dump(config))
    decoding = {"batch_size": 4, "tokens_per_second": 1.0, "extra_tokens": 2.0}
    (folder / "conf" / "decode_tiny.yaml").write_text(yaml.safe_dump(decoding))
    return folder


@pytest.mark.slow
def test_all_stages_end_in_a_table_and_a_model_that_can_be_adapted(folder, tmp_path):
    write_data(tmp_path / "my recordings")
    options = ["--warmup_config", "", "--train_config", "conf/tiny.yaml", *SMALL]
    options += ["--first_pass_config", ""]
    options += ["--inference_config", "conf/decode_tiny.yaml", "--lang", "de"]
    done = run(folder, "--data", "my recordings", *options, start=tmp_path)
    for stage in (1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13):
        assert f"Stage {stage}: done in" in done.stdout
    report = done.stdout.index("| train | 8 |")
    cost = done.stdout.index("cost of conf/tiny.yaml (speechllm estimate")
    assert report < cost < done.stdout.index("Stage 9:")
    assert "warning: too little speech" in done.stdout
    assert "times the training set" in done.stdout
    (row, *_) = json.loads((folder / "exp_my_recordings/RESULTS.json").read_text())
    assert (row["task"], row["language"]) == ("asr", "de")
    model = folder / "exp_my_recordings" / "speechllm_tiny" / "model"
    *_, first, last = done.stdout.splitlines()
    assert first == f"model: {model}"
    assert last.endswith(f"speechllm transcribe --model {model} --language de FILE")
    words = last.removeprefix("transcribe: ").partition(" && ")[2].split()
    words[words.index("FILE")] = str(tmp_path / "my recordings" / "clip 1.wav")
    transcribe = [sys.executable, "-m", "speechllm.cli", *words[1:]]
    spoken = subprocess.run(transcribe, capture_output=True, text=True, check=False)
    assert spoken.returncode == 0, spoken.stderr

    # other recordings with a letter that the model has no label for
    other = write_data(tmp_path / "more", 9)
    (other / "clip 3.txt").write_text("Zebra.")
    starts = {"folder": model, "file": model.parent / "valid.acc.ave.pth"}
    for tag, start in starts.items():
        relative = os.path.relpath(start, tmp_path)
        found = run(
            folder,
            *("--data", "more", "--init_param", relative, "--train_tag", tag),
            *options,
            *(
                "--stop_stage",
                "10",
                "--skip_stages",
                "11" if tag == "folder" else "1 3 4",
            ),
            start=tmp_path,
        )
        assert "Stage 8" not in found.stdout
        adapted = folder / "exp_more" / f"speechllm_{tag}"
        tokens = (adapted / "model" / "tokens.txt").read_text()
        assert tokens == (model / "tokens.txt").read_text() and "z" not in tokens
        config = yaml.safe_load((adapted / "config.yaml").read_text())
        assert config["init_param"] == [str(start)]
    assert "coverage of dump_more/examples/" in found.stdout


@pytest.mark.slow
def test_a_manifest_with_translations_through_stage_5(folder, tmp_path):
    data = write_data(tmp_path / "d", 9)
    rows = ["clip;the text;speaker;Deutsch"]
    for n in range(9):
        text = (data / f"clip {n}.txt").read_text()
        rows.append(f'clip {n}.wav;"{text}";s{n};"{text[::-1]}"')
    (data / "list 1.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    arguments = ["--data", "d/list 1.csv", "--text_column", "the text"]
    arguments += ["--translation_column", "Deutsch", "--tgt_lang", "de", *SMALL]
    arguments += ["--data_name", "list", "--stop_stage", "5"]
    arguments += ["--warmup_config", "", "--train_config", "conf/tiny.yaml"]
    arguments += ["--train_args", "--max_epoch 7 --num_iters_per_epoch 90"]
    done = run(folder, *arguments, start=tmp_path)
    # 630 batches of 400,000 samples
    assert "this training     4.4 h of speech" in done.stdout
    assert "audio = clip, text = the text, speaker = speaker" in done.stdout
    targets = read_table(folder / "dump_list" / "examples" / "test" / "text")
    asr, translation = (targets[key] for key in sorted(targets))
    assert translation == asr[::-1]
    kinds = read_table(folder / "dump_list" / "examples" / "train" / "utt2task")
    assert set(kinds.values()) == {"asr en en", "st en de"}
    assert len(kinds) == 2 * 7


@pytest.mark.slow
def test_a_rerun_with_new_recordings_stops_at_the_finished_training(folder, tmp_path):
    data = write_data(tmp_path / "talks")
    words = ["--data", "talks", "--warmup_config", "", "--first_pass_config", ""]
    words += ["--train_config", "conf/tiny.yaml", *SMALL, "--stop_stage", "9"]
    with warm_python(HF_HUB_OFFLINE="1") as environment:
        options = {"start": tmp_path, "environment": environment}
        run(folder, *words, **options)
        again = run(folder, *words, "--stage", "9", **options)
        assert "Stage 9: done in" in again.stdout and again.stderr == ""

        shutil.copy(data / "clip 0.wav", data / "clip 20.wav")
        (data / "clip 20.txt").write_text("Violet red.")
        done = run(folder, *words, **options, check=False)
        assert done.returncode == 1 and "Stage 7: done in" in done.stdout
        message = "stage 9: exp_talks/speechllm_tiny was trained on other examples"
        *_, error = done.stderr.splitlines()
        assert error.startswith(f"speechllm.sh: error: {message}")
        run(folder, *words, "--stage", "7", "--expdir", "exp_more", **options)
    assert (folder / "exp_more/speechllm_tiny/valid.acc.ave.pth").exists()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--lang", "de"], "my_talks"),
        (["--lang", "de", "--tgt_lang", "en"], "my_talks_en"),
        (["--tgt_lang", "en", "--data_name", "x"], "x"),
    ],
)
def test_a_model_that_translates_has_its_own_folders(folder, tmp_path, options, name):
    (folder / "speechllm.sh").unlink()
    (folder / "speechllm.sh").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (folder / "speechllm.sh").chmod(0o755)
    done = run(folder, "--data", "my talks.csv", *options, start=tmp_path)
    words = done.stdout.splitlines()
    for kind in ("data", "dump", "exp"):
        assert words[words.index(f"--{kind}dir") + 1] == f"{kind}_{name}"


def test_the_longer_training_of_the_readme_ends_its_schedules():
    root = Path(__file__).parents[2] / "egs2/own_data/speechllm1"
    readme = (root / "README.md").read_text("utf-8")
    options = re.search('--train_args "(--max_epoch 20 .*)"', readme)[1].split()
    for name in ("warmup", "train", "adapt"):
        config = ["--config", str(root / f"conf/{name}.yaml")]
        args = load_task().parse([*config, *options])
        steps = args.max_epoch * args.num_iters_per_epoch // args.accum_grad
        assert steps == args.scheduler_conf["max_steps"] == 6000
        assert args.scheduler_conf["warmup_ratio"] == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is needed: the folder or file with your data"),
        (["--data", "x", "--lang", "xx"], "no language 'xx'"),
        (
            ["--data", "x", "--data_name", "a b"],
            "--data_name takes letters, digits and _",
        ),
        (["--data", "none", "--stop_stage", "1"], "none: no such file or folder"),
    ],
)
def test_wrong_options(folder, tmp_path, arguments, message):
    done = run(folder, *arguments, start=tmp_path, check=False)
    assert done.returncode == 1
    assert message in done.stderr


def test_options_of_the_data_are_those_of_the_programs():
    options = (
        '. local/options.sh; echo "${READING_OPTIONS[@]}"; echo "${SET_OPTIONS[@]}"'
    )
    options += '; echo "${DATA_HELP}"'
    folder = Path(__file__).parents[2] / "egs2/own_data/speechllm1"
    words = ["bash", "-euc", options]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    reading, sets, *lines = done.stdout.splitlines()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    known = {action.dest for action in parser._actions} - {"help", "output"}
    assert {*reading.split(), *sets.split(), "alignments"} == known
    known = {action.dest for action in align_recordings.get_parser()._actions}
    assert {*reading.split(), "help", "output", "model", "device"} == known
    listed = {line.split()[0] for line in lines if line.startswith("  --")}
    others = {"--align_model", "--train_config", "--warmup_config"}
    others.add("--first_pass_config")
    assert listed == {f"--{name}" for name in f"{reading} {sets}".split()} | others


def test_every_language_of_whisper_has_a_name():
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    from speechllm.text.prompts import read_prompts

    root = Path(__file__).parents[2]
    prompts = read_prompts(root / "egs2/own_data/speechllm1/conf/prompts.yaml")
    assert set(LANGUAGES) <= set(prompts.languages)
    assert prompts.text("st", "de", "en") == "{speech}\nEnglish:"
