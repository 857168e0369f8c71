"""Comparison of trainings with different learning rates, from TensorBoard files."""

from __future__ import annotations

import struct

import pytest
import yaml
from training_log import log_training

from speechllm.bin.compare_trainings import main
from speechllm.evaluation.compare_trainings import read_training
from speechllm.utils.errors import UserError


def write_training(folder, rate, valid, criterion="acc", mode="max"):
    """Log a training as ESPnet does, two batches an epoch.

    Args:
        folder: of the training.
        rate: learning rate.
        valid: {"loss": per epoch, criterion: per epoch}.
    """
    folder.mkdir(parents=True)
    config = {
        "optim_conf": {"lr": rate},
        "best_model_criterion": [["valid", criterion, mode]],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    epochs = range(1, len(valid["loss"]) + 1)
    train = [
        [
            {"loss": 8.0 / epoch, "grad_norm": norm * epoch, "clip": clip}
            for norm, clip in ((2.0, 0.0), (4.0, 100.0))
        ]
        for epoch in epochs
    ]
    after = [{name: of[epoch - 1] for name, of in valid.items()} for epoch in epochs]
    log_training(folder / "tensorboard", train, after)


def test_table_and_picture_by_learning_rate(tmp_path, capsys):
    folders = [tmp_path / name / "speechllm_train" for name in ("a", "b")]
    folders.append(tmp_path / "a" / "speechllm_warmup")
    write_training(folders[0], 6e-4, {"loss": [2.0, 1.5, 1.7], "acc": [0.5, 0.7, 0.6]})
    write_training(folders[1], 2e-4, {"loss": [2.5, 2.25], "acc": [0.4, 0.45]})
    valid = {"loss": [1.0, 0.5], "cer_ctc": [0.2, 0.3]}
    write_training(folders[2], 8e-4, valid, "cer_ctc", "min")
    output = tmp_path / "RATES"
    main(["--exp_dirs", *map(str, folders), "--output", str(output)])
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
    ]
    # the loss is 8/epoch, the norms 2 and 4 times the epoch, one batch of two clipped
    assert table[2:] == [
        ["speechllm_train", "0.0002", "2", "4.000", "2.250", "acc 45.0 %",
         "3.0", "6.0", "50.0", "50.0"],
        ["speechllm_train", "0.0006", "3", "2.667", "1.700", "acc 70.0 %",
         "3.0", "9.0", "50.0", "50.0"],
        ["speechllm_warmup", "0.0008", "2", "4.000", "0.500", "cer_ctc 20.0 %",
         "3.0", "6.0", "50.0", "50.0"],
    ]  # fmt: skip
    assert "![curves](RATES.png)" in (tmp_path / "RATES.md").read_text()
    content = (tmp_path / "RATES.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 800 and height > 300


def test_folder_without_a_training_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("optim_conf:\n  lr: 1.0e-4\n")
    with pytest.raises(UserError, match="config.yaml: no optim_conf.lr or best_model"):
        read_training(tmp_path)
    write_training(tmp_path / "exp", 1e-4, {"loss": [], "acc": []})
    with pytest.raises(UserError, match="exp: no complete epoch"):
        read_training(tmp_path / "exp")
