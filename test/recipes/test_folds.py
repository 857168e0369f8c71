"""Cross-validation of mini_asterisk: two folds of tiny models, pooled, resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from recipe_clone import clone, run, train_two_steps
from warm_python import warm_python


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with warm_python(HF_HUB_OFFLINE="1") as variables:
        yield variables


@pytest.mark.slow
def test_all_prompts_are_tested_once(
    tmp_path, environment, asterisk_dir, tiny_whisper, tiny_llm
):
    folder = clone(tmp_path, "mini_asterisk") / "mini_asterisk" / "speechllm1"
    for name in ("warmup", "train"):
        path = folder / "conf" / "tiny" / f"{name}.yaml"
        train_two_steps(path, tiny_whisper, tiny_llm)
    words = ["local/folds.sh", "--tiny", "true", "--asterisk_dir", str(asterisk_dir)]
    words += ["--folds", "2", "--whisper", "false", "--nj", "1", "--ngpu", "0"]
    words += ["--skip_stages", "11", "--first_pass_config", ""]
    done = run(folder, *words, env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    decode = "speechllm_train/decode/test"
    texts = [
        (folder / f"exp_folds2_tiny/{name}/{decode}/text").read_text().splitlines()
        for name in ("1", "2", "pooled")
    ]
    assert sorted(texts[0] + texts[1]) == texts[2]
    ids = [{line.split()[0] for line in lines} for lines in texts]
    assert not ids[0] & ids[1]  # a prompt is in the test set of one fold
    for fold, others in ((1, ids[1]), (2, ids[0])):
        trained = {  # or chosen to validate
            line.split()[0]
            for name in ("train", "dev")
            for line in (folder / f"data_folds2_tiny/{fold}/all/{name}/text")
            .read_text()
            .splitlines()
        }
        assert {name.split("-asr-")[0].split("-st-")[0] for name in others} <= trained
    rows = json.loads((folder / "exp_folds2_tiny/RESULTS.json").read_text())
    assert {row["system"] for row in rows} == {"speechllm_train"}
    counts = {}
    for fold in (1, 2):
        path = folder / f"exp_folds2_tiny/{fold}/RESULTS.json"
        for row in json.loads(path.read_text()):
            if row["metric"] == "wer":
                words_of = counts.setdefault(row["language"], [])
                words_of.append(row["reference_words"])
    pooled = {row["language"]: row for row in rows if row["metric"] == "wer"}
    for language in ("en", "fr"):
        assert pooled[language]["reference_words"] == sum(counts[language])
        assert pooled[language]["interval"] >= 0

    done = run(folder, *words, env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "fold 1 of 2: finished" in done.stdout and "Stage 9" not in done.stdout


def test_the_number_of_folds_is_checked(tmp_path):
    folder = clone(tmp_path, "mini_asterisk") / "mini_asterisk" / "speechllm1"
    for value in ("1", "21", "x"):
        done = run(folder, "local/folds.sh", "--folds", value)
        assert done.returncode == 1
        assert "--folds takes a whole number from 2 to 20" in done.stderr
