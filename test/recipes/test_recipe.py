"""All stages of the mini recipe on a few prompts of real speech."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from recipe_clone import OUTPUTS, ROOT

from speechllm.pretrained.resolve import resolve_model

TIME_LIMIT = 2400  # seconds; with 25 other processes on two cores a run takes over 900


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, asterisk_dir):
    """Run stages 1 to 13; return the recipe's folder in a copy of egs2."""
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "egs2", root / "egs2", symlinks=True, ignore=OUTPUTS)
    for name in ("speechllm", "tools"):
        (root / name).symlink_to(ROOT / name)
    folder = root / "egs2" / "mini_asterisk" / "speechllm1"
    done = run(folder, asterisk_dir, "--stage", "1", "--stop_stage", "13")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    (folder / "first.log").write_text(done.stdout)
    return folder


def command(
    folder: Path, asterisk_dir: Path, *arguments: str, script: str = "run.sh"
) -> dict:
    """Return the arguments of subprocess for a tiny run of a script."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return {
        "args": [
            f"./{script}",
            *("--tiny", "true", "--asterisk_dir", str(asterisk_dir)),
            *arguments,
        ],
        "cwd": folder,
        "env": environment,
        "text": True,
        "stdin": subprocess.DEVNULL,
    }


def run(folder: Path, asterisk_dir: Path, *arguments: str, **options: str):
    return subprocess.run(
        **command(folder, asterisk_dir, *arguments, **options),
        capture_output=True,
        timeout=TIME_LIMIT,
    )


def run_and_kill(
    folder: Path, asterisk_dir: Path, *arguments: str, when: Callable[[], bool]
) -> None:
    """Start the recipe and kill its shell as soon as ``when`` is true.

    Waits until the job runner has ended the jobs.
    """
    process = subprocess.Popen(
        **command(folder, asterisk_dir, *arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        limit = time.monotonic() + TIME_LIMIT
        while not when():
            assert process.poll() is None, "the recipe ended before the kill"
            assert time.monotonic() < limit, "not killed within the time limit"
            time.sleep(0.02)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    limit = time.monotonic() + TIME_LIMIT
    while any_process_in(folder):
        assert time.monotonic() < limit, "jobs of the killed recipe are still running"
        time.sleep(0.1)


def any_process_in(folder: Path) -> bool:
    """Return True if the folder is the working folder of a process."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.resolve(strict=True) == folder.resolve():
                return True
        except OSError:
            continue
    return False


def table(folder: Path, name: str = "exp_tiny") -> list[dict]:
    return json.loads((folder / name / "RESULTS.json").read_text())


@pytest.mark.slow
def test_all_stages_end_in_a_table(recipe):
    log = (recipe / "first.log").read_text()
    for stage in range(1, 14):
        assert f"Stage {stage}: done in" in log
    scored = {
        (row["task"], row["language"], row["target_language"]) for row in table(recipe)
    }
    assert scored >= {("asr", "en", "en"), ("asr", "fr", "fr"), ("st", "en", "fr")}
    metrics = {row["metric"].upper() for row in table(recipe)}
    assert any("WER" in name for name in metrics)
    assert any("BLEU" in name for name in metrics)


@pytest.mark.slow
def test_a_rerun_gives_the_same_table(recipe, asterisk_dir):
    before = table(recipe)
    done = run(recipe, asterisk_dir, "--stage", "3", "--stop_stage", "13")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "up to date" in done.stdout
    assert table(recipe) == before


@pytest.mark.slow
def test_another_llm_shares_the_first_pass(recipe, asterisk_dir):
    weights = recipe / "exp_tiny" / "first_pass" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    llm = resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    done = run(
        recipe, asterisk_dir, "--stage", "8", "--stop_stage", "8", "--llm", str(llm)
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert weights.stat().st_mtime_ns == before
    assert [p.name for p in weights.parent.parent.glob("first_pass*/")] == [
        "first_pass"
    ]


@pytest.mark.slow
def test_five_languages_and_a_quarter_of_the_english_messages(recipe, asterisk_dir):
    done = run(recipe, asterisk_dir, "--stop_stage", "5", script="run_asr_st.sh")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    folder = recipe / "dump_tiny_asr_st/examples/train_sp_first_pass"
    tasks = (folder / "utt2task").read_text()
    assert {tuple(line.split()[1:]) for line in tasks.splitlines()} == {
        *(("asr", code, code) for code in ("en", "es", "fr", "it", "ru")),
        *(("st", code, "en") for code in ("es", "fr", "it", "ru")),
    }
    texts = (recipe / "dump_tiny_asr_st/examples/train_sp/text").read_text("utf-8")
    examples = dict(line.split(" ", 1) for line in texts.splitlines())
    assert all("\t" in target for target in examples.values())
    tasks = (recipe / "dump_tiny_asr_st/examples/train_sp/utt2task").read_text()
    directions = {tuple(line.split()[1:]) for line in tasks.splitlines()}
    others = ("es", "fr", "it", "ru")
    assert directions == {
        *(("asr_st", "en", other) for other in others),
        *(("asr_st", other, "en") for other in others),
    }

    def messages(language, text):
        raw = recipe / f"dump_tiny_asr_st/raw/train_messages_{language}"
        return len((raw / text).read_text("utf-8").splitlines())

    def read(language):
        return sum(name.startswith(f"{language}-message") for name in examples)

    for other in others:
        assert read(other) == messages(other, "text.en") > 0
    pairs = sum(messages("en", f"text.{other}") for other in others)
    assert 0.1 * pairs < read("en") < 0.4 * pairs
    vocabulary = recipe / "data_tiny_asr_st/token_list/char/tokens.txt"
    assert {"é", "я"} <= set(vocabulary.read_text("utf-8").split())


@pytest.mark.slow
def test_a_missing_input_is_reported_with_its_stage(recipe, asterisk_dir):
    arguments = ("--stage", "12", "--stop_stage", "12", "--expdir", "elsewhere")
    done = run(recipe, asterisk_dir, *arguments)
    assert done.returncode == 1
    assert "run stage 10 first" in done.stderr


@pytest.mark.slow
def test_a_model_older_than_its_training_is_not_decoded(recipe, asterisk_dir):
    checkpoint = recipe / "exp_tiny/speechllm_train/checkpoint.pth"
    before = checkpoint.stat()
    os.utime(checkpoint)
    done = run(recipe, asterisk_dir, "--stage", "12", "--stop_stage", "12")
    os.utime(checkpoint, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert done.returncode == 1
    assert "was trained after the export of exp_tiny/" in done.stderr


@pytest.mark.slow
def test_killed_training_and_decoding_resume_to_the_same_table(recipe, asterisk_dir):
    """Kill in both epochs, between them and while decoding; resume from an old folder.

    Before version 0.2, decode.yaml wrote to decode_decode.
    """
    whole, killed = recipe / "exp_tiny", recipe / "exp_killed_tiny"
    for name in (
        "first_pass",
        "speechllm_stats_train",
        "speechllm_stats_warmup",
        "speechllm_warmup",
    ):
        shutil.copytree(whole / name, killed / name, symlinks=True)
    arguments = ("--expdir", killed.name, "--stage", "9", "--stop_stage", "13")
    # smaller batches, which do not change the text, give more moments to kill at
    arguments += ("--inference_args", "--batch_size 2")
    train = killed / "speechllm_train"
    decode = train / "decode" / "test"
    log = train / "train.log"
    moments = (
        lambda: contains(log, "progress: epoch 1/2"),
        lambda: (train / "1epoch.pth").exists(),
        lambda: contains(log, "progress: epoch 2/2"),
        lambda: count_lines(decode / "hypotheses.1.jsonl") > 3,
    )
    for when in moments:
        run_and_kill(recipe, asterisk_dir, *arguments, when=when)
    assert not (decode / "text").exists()
    assert 3 < count_lines(decode / "hypotheses.1.jsonl") < 19
    whole_lines = (decode / "hypotheses.1.jsonl").read_bytes().rpartition(b"\n")[0]
    decode.parent.rename(train / "decode_decode")
    done = run(recipe, asterisk_dir, *arguments)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "renamed exp_killed_tiny/speechllm_train/decode_decode" in done.stdout
    assert (decode / "hypotheses.1.jsonl").read_bytes().startswith(whole_lines)
    assert not (decode / "hypotheses.1.jsonl.previous").exists()

    relative = Path("speechllm_train", "decode", "test", "text")
    assert (killed / relative).read_bytes() == (whole / relative).read_bytes()
    drop = {"hypotheses_file"}
    rows = [
        [
            {k: v for k, v in row.items() if k not in drop}
            for row in table(recipe, name)
            if row["metric"] != "rtf"
        ]
        for name in (whole.name, killed.name)
    ]
    assert rows[0] == rows[1]
    weights = Path("speechllm_train", "model", "model.safetensors")
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()


def contains(log: Path, text: str) -> bool:
    try:
        return text in log.read_text()
    except FileNotFoundError:  # not yet written, or renamed by the next run
        return False


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
