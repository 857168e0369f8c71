"""Copies of recipes for tests, and what their tests share."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
#: What recipes that ran in this checkout have written (.gitignore); not to be copied.
OUTPUTS = shutil.ignore_patterns(
    *("data", "dump", "exp", "data_*", "dump_*", "exp_*", "downloads", "models")
)
#: A training of two steps, without the models.
TWO_STEPS = {
    "optim": "adamw",
    "optim_conf": {"lr": 1e-3},
    "max_epoch": 1,
    "num_iters_per_epoch": 2,
    "batch_type": "numel",
    "batch_bins": 400000,
    "num_workers": 0,
    "best_model_criterion": [["valid", "acc", "max"]],
    "keep_nbest_models": 1,
    "num_att_plot": 0,
}


def clone(root: Path, *names: str) -> Path:
    """Copy these recipes, and what they link to; return the new ``egs2``."""
    for name in {"TEMPLATE", "mini_asterisk", "must_c", "reazonspeech", *names}:
        source, target = ROOT / "egs2" / name, root / "egs2" / name
        shutil.copytree(source / "speechllm1", target / "speechllm1", True, OUTPUTS)
    for shared in ("speechllm", "tools"):
        (root / shared).symlink_to(ROOT / shared)
    return root / "egs2"


def conf(recipe: str) -> Path:
    """Return the folder of a recipe's configs."""
    return ROOT / "egs2" / recipe / "speechllm1" / "conf"


def train_two_steps(path: Path, encoder: Path, llm: Path) -> None:
    """Make a training config one of two steps with these models, in place."""
    config = yaml.safe_load(path.read_text()) | TWO_STEPS
    config["encoder_conf"]["model"] = str(encoder)
    if config["llm"]:
        config["llm_conf"]["model"] = str(llm)
    else:
        config["best_model_criterion"] = [["valid", "cer_ctc", "min"]]
    config["scheduler_conf"]["max_steps"] = 2
    path.write_text(yaml.safe_dump(config))


def run(folder: Path, *words: str, **options: object) -> subprocess.CompletedProcess:
    """Run a command in a folder, without standard input."""
    return subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=1200,
        check=False,
        **options,
    )
