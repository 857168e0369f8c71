"""Lightning: DDP, FSDP and DeepSpeed in two processes on a CPU, against ESPnet."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from speechllm.evaluation.training_curves import epoch_curves
from speechllm.pretrained.checkpoint import load_tensors

ROWS = Path(__file__).with_name("lightning_rows.py")
TUNINGS = ("full", "lora", "frozen")
PRECISIONS = ("float32", "bfloat16")
COMBINATIONS = [*itertools.product(TUNINGS, PRECISIONS, (False, True))]

needs_lightning = pytest.mark.skipif(
    find_spec("lightning") is None or find_spec("espnet2.bin.lightning_train") is None,
    reason="needs ESPnet 202611 (Python 3.12 or later) and Lightning",
)
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="needs DeepSpeed"
)


@pytest.fixture
def row(training_arguments, tiny_llm, tmp_path):
    """Return the function that gives the arguments of a training of the table."""

    def arguments(
        name: str, tuning="lora", precision="float32", checkpointing=False, **changes
    ) -> list[str]:
        output = tmp_path / name
        llm = {
            "model": str(tiny_llm),
            "tuning": tuning,
            "dtype": precision,
            "gradient_checkpointing": checkpointing,
        }
        if tuning == "lora":
            llm["lora"] = {"r": 2, "lora_dropout": 0.0}
        options = {
            "llm_conf": llm,
            "model_conf": {"ctc_weight": 0.3, "autocast": precision},
            "use_tensorboard": True,
            "optim_conf": {"lr": 0.01},
            **changes,
        }
        words = training_arguments(output, **options)
        config = output.with_suffix(".yaml")
        config.write_text((tmp_path / "config.yaml").read_text())
        words[words.index("--config") + 1] = str(config)
        return words

    return arguments


def run_rows(folder: Path, rows: list[list[str]], processes: int = 2) -> None:
    """Train rows in the processes of one launch."""
    file = folder / "rows.json"
    file.write_text(json.dumps(rows))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    run = subprocess.run(
        [sys.executable, ROWS, file, str(processes)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-6000:]


def losses(output: Path) -> list[float]:
    """Return training and validation loss of each epoch."""
    curves = epoch_curves(output / "tensorboard")
    return [v for split in ("train", "valid") for v in curves[split]["loss"].values()]
