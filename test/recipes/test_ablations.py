"""The ablations on English prompts: rows of tiny models, resumed, in one table."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import yaml
from recipe_clone import clone, run, train_two_steps
from warm_python import warm_python

from speechllm.utils.io import read_yaml

ROWS = ("conv", "removal_ctc", "llm_random", "llm_lora", "encoder_frozen")
DECODING = {"tokens_per_second": 1.0, "extra_tokens": 2.0, "guard": False}


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with warm_python(HF_HUB_OFFLINE="1") as variables:
        yield variables


def table(folder) -> dict[str, list[str]]:
    """Return the cells of each line of the table."""
    text = (folder / "exp/ABLATIONS_tiny.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {line[0]: line[1:] for line in cells}


@pytest.mark.slow
def test_rows_become_lines_of_the_table_and_a_rerun_resumes(
    tmp_path, environment, asterisk_dir, tiny_whisper, tiny_llm
):
    folder = clone(tmp_path, "mini_asterisk") / "mini_asterisk" / "speechllm1"
    for name in ("ablation", "ablation_ctc"):
        train_two_steps(folder / "conf" / f"{name}.yaml", tiny_whisper, tiny_llm)
    (folder / "conf/ablation_decode.yaml").write_text(yaml.safe_dump(DECODING))
    words = ["local/ablations.sh", "--tiny", "true"]
    words += ["--asterisk_dir", str(asterisk_dir)]
    words += ["--nj", "1", "--ngpu", "0"]
    done = run(folder, *words, "--rows", "conv removal_ctc", env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    found = table(folder)
    assert list(found)[:4] == ["ctc", "conv", "conv_ctc", "removal"]
    assert found["conv_ctc"][0] == "not run"

    # The second run was killed after 5 s, in the training of a row.
    killed = folder / "exp/ablations_tiny/llm_lora"
    killed.mkdir()
    (killed / "attempt").write_text("1000\n")
    before = (folder / "exp/ablations_tiny/conv/seconds").read_text()
    done = run(folder, *words, "--rows", " ".join(ROWS), env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "conv: finished" in done.stdout and "Stage 9" in done.stdout
    assert (folder / "exp/ablations_tiny/conv/seconds").read_text() == before
    assert len((killed / "seconds").read_text().split()) == 2
    assert not (killed / "attempt").exists()

    found = table(folder)
    settings = {row: cells[:5] for row, cells in found.items() if cells[0] != "not run"}
    top = "top 2 layers"
    assert settings == {
        "ctc": ["–", "yes", "–", top, "en"],
        "conv": ["convolution", "no", "fine-tuned", top, "en"],
        "removal_ctc": ["CTC removal", "yes", "fine-tuned", top, "en"],
        "llm_random": ["convolution", "no", "random", top, "en"],
        "llm_lora": ["convolution", "no", "LoRA", top, "en"],
        "encoder_frozen": ["convolution", "no", "fine-tuned", "frozen", "en"],
    }
    for row in ROWS:
        wer, cer, cer_ctc, p, texts, accuracy, minutes = found[row][5:]
        for cell in (wer, cer, cer_ctc):
            assert re.fullmatch(r"\d+\.\d+ ± \d+\.\d+", cell), (row, cell)
        assert p == "–" if row == "conv" else 0 < float(p) <= 1
        assert re.fullmatch(r"[1-9]\d* of [1-9]\d*", texts), (row, texts)
        assert re.fullmatch(r"\d+\.\d %", accuracy), (row, accuracy)
        assert float(minutes) > 0
    assert found["ctc"][10] == "–"  # no LLM, so no token accuracy
    config = read_yaml(folder / "exp/ablations_tiny/removal_ctc/config.yaml")
    assert config["bridge_conf"] == {"mode": "remove"}
    assert config["lr_scales"] == {"llm": 0.1, "encoder": 0.1}
    assert config["init_param"] == ["exp/ablations_tiny/ctc/valid.cer_ctc.ave.pth"]


def test_unknown_rows_are_named(tmp_path):
    folder = clone(tmp_path, "mini_asterisk") / "mini_asterisk" / "speechllm1"
    done = run(folder, "local/ablations.sh", "--rows", "conv x")
    assert done.returncode == 1
    assert "--rows: no row 'x'; there are: ctc conv" in done.stderr
    assert not (folder / "exp").exists()
