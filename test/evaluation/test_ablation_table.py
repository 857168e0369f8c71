"""The table of ablations from small experiment folders."""

from __future__ import annotations

import pytest
import yaml
from training_log import log_training

from speechllm.bin.ablation_table import main
from speechllm.evaluation.ablation_table import describe, minutes
from speechllm.evaluation.score import score_decode_dir
from speechllm.utils.errors import UserError


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"bridge": "convolution", "model_conf": {"ctc_weight": 0.0},
             "llm": "causal_lm", "llm_conf": {"tuning": "full", "random_init": False}},
            ["convolution", "no", "fine-tuned", "trained"],
        ),
        (
            {"bridge": "ctc_compression", "bridge_conf": {"mode": "average"},
             "model_conf": {"ctc_weight": 0.3}, "llm": "causal_lm",
             "llm_conf": {"tuning": "full", "random_init": True},
             "encoder_conf": {"trainable_layers": 0}},
            ["CTC averaging", "yes", "random", "frozen"],
        ),
        (
            {"bridge": None, "model_conf": {"ctc_weight": 1.0}, "llm": None,
             "encoder_conf": {"trainable_layers": 2}},
            ["–", "yes", "–", "top 2 layers"],
        ),
    ],
)  # fmt: skip
def test_settings_are_read_from_the_configuration(config, expected):
    assert describe(config) == expected


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key} {value}\n" for key, value in table.items()))


def test_lines_have_scores_p_values_accuracies_and_minutes(tmp_path):
    names = [f"u{number:02}-asr-nl" for number in range(20)]
    examples = tmp_path / "examples"
    write(examples / "text", dict.fromkeys(names, "een twee drie vier"))
    write(examples / "utt2task", dict.fromkeys(names, "asr nl nl"))
    for system, wrong in (("conv", 2), ("other", 18)):
        folder = tmp_path / "exp" / system / "decode" / "test"
        texts = {
            name: "een twee drie " + ("vijf" if number < wrong else "vier")
            for number, name in enumerate(names)
        }
        write(folder / "text", texts)
        score_decode_dir(examples, folder)
        config = {"bridge": "convolution", "llm": "causal_lm", "model_conf": {}}
        (tmp_path / "exp" / system / "config.yaml").write_text(yaml.safe_dump(config))
    accuracies = [{"acc": value} for value in (0.25, 0.375, 0.3125)]
    log_training(tmp_path / "exp/other/tensorboard", [[{"loss": 1.0}]] * 3, accuracies)
    (tmp_path / "exp" / "other" / "seconds").write_text("90\n60\n")
    output = tmp_path / "ABLATIONS.md"
    main([
        "--exp_root", str(tmp_path / "exp"), "--systems", "conv", "none", "other",
        "--compare_with", "conv", "--output", str(output),
    ])  # fmt: skip
    lines = output.read_text().splitlines()
    assert lines[2].endswith(
        "| CTC CER | p of WER (conv) | different texts | dev accuracy | minutes |"
    )
    assert lines[4].startswith("| conv | convolution | no | LoRA | trained | nl | 2.5")
    assert lines[4].endswith(" | – | – | 2 of 20 | – | – |")
    assert lines[5].startswith("| none | not run | – |")
    assert lines[6].startswith("| other | ") and " | 22.5 ± " in lines[6]
    assert lines[6].endswith(" | – | 0.001 | 2 of 20 | 37.5 % | 2.5 |")
    assert "20 utterances, 80 reference words" in lines[8]


def test_missing_scores_and_damaged_times_are_errors(tmp_path):
    (tmp_path / "seconds").write_text("ten\n")
    with pytest.raises(UserError, match="seconds: not a number per line; remove it"):
        minutes(tmp_path / "seconds")
    assert minutes(tmp_path / "none") == "–"
