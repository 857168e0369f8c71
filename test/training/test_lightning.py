"""Lightning: DDP, FSDP and DeepSpeed in two processes on a CPU, against ESPnet."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import write_tiny_llm
from torch.distributed.checkpoint import save
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from speechllm import SpeechToText
from speechllm.bin import speechllm_train
from speechllm.evaluation.training_curves import epoch_curves
from speechllm.export.exported_model import export_model
from speechllm.pretrained.checkpoint import load_tensors
from speechllm.training.signals import StopRequest
from speechllm.utils.errors import UserError

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
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    run = subprocess.run(
        [sys.executable, ROWS, file, str(processes)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-6000:]


def losses(output: Path) -> list[float]:
    """Return training and validation loss of each epoch."""
    curves = epoch_curves(output / "tensorboard")
    return [v for split in ("train", "valid") for v in curves[split]["loss"].values()]


def tensors_differ(first: dict, second: dict) -> float:
    """Return the largest difference of tensors; their names must be the same."""
    assert first.keys() == second.keys() and first
    return max(float((first[k] - second[k]).abs().max()) for k in first)


@needs_lightning
@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp", pytest.param("deepspeed", marks=needs_deepspeed)]
)
def test_a_strategy_trains_every_combination_as_espnet_does(row, tmp_path, strategy):
    """Two processes with half of each batch have the loss curve of ESPnet's trainer.

    CTC, whose loss is a mean over the labels of each process, is left out.
    """
    rows = {}
    for tuning, precision, checkpointing in COMBINATIONS:
        name = f"{tuning}_{precision}" + "_checkpointing" * checkpointing
        model = {"ctc_weight": 0.0, "autocast": precision}
        rows[name] = row(name, tuning, precision, checkpointing, model_conf=model)
    run_rows(tmp_path, [[*words, "--strategy", strategy] for words in rows.values()])
    for tuning, precision in itertools.product(TUNINGS, PRECISIONS):
        name = f"espnet_{tuning}_{precision}"
        model = {"ctc_weight": 0.0, "autocast": precision}
        # bfloat16 rounds by the shape of a batch: ESPnet's own losses in one process
        # differ from those in two by 0.01, with a frozen LLM by 0.2, so two are used.
        # Trained weights are float32 everywhere. FSDP and DeepSpeed add gradients in
        # another order, so that the last bit of a weight may round an activation to
        # another number (measured: 0.0013, and 1e-6 with DDP).
        number = {"float32": "1", "bfloat16": "2"}[precision]
        exact = precision == "float32" or strategy == "ddp"
        words = row(name, tuning, precision, model_conf=model)
        speechllm_train.main([*words, "--num_processes", number])
        for end in ("", "_checkpointing"):
            found = losses(tmp_path / f"{tuning}_{precision}{end}")
            expected = losses(tmp_path / name)
            assert found == pytest.approx(expected, abs=1e-4 if exact else 5e-3)
        if precision == "bfloat16":
            continue
        trained = load_tensors(tmp_path / name / "valid.loss.best.pth")
        for path in (tmp_path / f"{tuning}_float32").glob("*.best.pth"):
            assert tensors_differ(load_tensors(path), trained) < 1e-4


@needs_lightning
@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp", pytest.param("deepspeed", marks=needs_deepspeed)]
)
def test_training_resumes_and_every_checkpoint_can_be_exported(row, tmp_path, strategy):
    """Resumed after an epoch, dropout, CTC and accumulation are as without a stop.

    So is the learning rate, which a threshold of 1 lowers after each epoch.
    """
    options = {
        "model_conf": {"ctc_weight": 0.3, "feature_dropout": 0.5},
        "accum_grad": 2,
        "scheduler": "reducelronplateau",
        "scheduler_conf": {"patience": 0, "threshold": 1.0},
    }
    whole, resumed = row("whole", **options), row("resumed", **options)
    rows = [whole, [*resumed, "--max_epoch", "1"], resumed]
    run_rows(tmp_path, [[*words, "--strategy", strategy] for words in rows])
    states = [load_tensors(tmp_path / n / "last.ckpt") for n in ("whole", "resumed")]
    assert tensors_differ(*states) == 0
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")

    folder = tmp_path / "resumed"
    epochs = [load_tensors(path) for path in folder.glob("epoch*.ckpt")]
    mean = {name: (epochs[0][name] + epochs[1][name]) / 2 for name in states[0]}
    average = load_tensors(folder / "valid.loss.ave.pth")
    assert tensors_differ(average, mean) < 1e-6
    assert (folder / "valid.loss.ave.pth").readlink().name == "valid.loss.ave_2best.pth"
    exports = {"valid.loss.ave.pth": average, "last.ckpt": states[0]}
    for checkpoint, state in exports.items():
        export_model(folder, checkpoint, tmp_path / "model")
        assert tensors_differ(load_tensors(tmp_path / "model"), state) == 0
    model = SpeechToText.from_pretrained(tmp_path / "model")
    model.transcribe([np.zeros(8000, dtype=np.float32)], language="en")


@needs_lightning
def test_the_model_is_built_on_the_gpu_of_its_process(monkeypatch):
    """transformers quantises on the current GPU."""
    from speechllm.training import lightning

    devices: list[int] = []

    def build_model(args):
        raise UserError(f"built on {devices}")

    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(lightning, "build_model", build_model)
    for ngpu, message in ((0, r"built on \[\]"), (4, r"built on \[3\]")):
        with pytest.raises(UserError, match=message):
            lightning.fit(SimpleNamespace(ngpu=ngpu), StopRequest())


@needs_lightning
@pytest.mark.slow
def test_patience_ends_a_training_once_and_as_in_espnet(row, tmp_path):
    """The falling loss never improves if the highest is the best."""
    options = {
        "patience": 1,
        "early_stopping_criterion": ["valid", "loss", "max"],
        "max_epoch": 5,
    }
    words = [*row("lightning", **options), "--strategy", "ddp"]
    run_rows(tmp_path, [words])
    last = tmp_path / "lightning" / "last.ckpt"
    before = last.stat().st_mtime_ns
    run_rows(tmp_path, [words])
    assert last.stat().st_mtime_ns == before
    speechllm_train.main(row("espnet", **options))
    found, expected = losses(tmp_path / "lightning"), losses(tmp_path / "espnet")
    assert len(found) == len(expected) == 2 * 3


@needs_lightning
@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp", pytest.param("deepspeed", marks=needs_deepspeed)]
)
def test_two_machines_train_as_two_processes(row, tmp_path, strategy):
    """Two launches on the loopback play the machines, as srun starts them."""
    rows = {name: [*row(name), "--strategy", strategy] for name in ("two", "nodes")}
    run_rows(tmp_path, [rows["two"]])
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\nprintf '127.0.0.1\\nb\\n'\n")
    scontrol.chmod(0o755)
    nodes = tmp_path / "nodes.json"
    nodes.write_text(json.dumps([rows["nodes"]]))
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "a,b",
        "SLURM_JOB_ID": str(os.getpid()),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    machines = [
        subprocess.Popen(
            [sys.executable, ROWS, nodes, "1", "2"],
            env={**environment, "SLURM_NODEID": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    for machine in machines:
        _, errors = machine.communicate(timeout=1800)
        assert machine.returncode == 0, errors[-6000:]
    states = [load_tensors(tmp_path / n / "last.ckpt") for n in rows]
    assert tensors_differ(*states) == 0
    assert losses(tmp_path / "nodes") == losses(tmp_path / "two")


@needs_lightning
@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["ddp", pytest.param("deepspeed", marks=needs_deepspeed)]
)
def test_4_bit_weights_are_trained_exported_and_decoded(
    row, tmp_path, smollm2, strategy
):
    """As ESPnet's trainer does, and FSDP, which cannot, refuses before the first step.

    On a CPU 4-bit layers need a multiple of 64 inputs. SGD shows the scale of gradients
    that are accumulated.
    """
    llm = {
        "model": str(write_tiny_llm(tmp_path / "llm", smollm2, size=64)),
        "tuning": "qlora",
        "lora": {"r": 2, "lora_dropout": 0.0},
    }
    options = {
        "llm_conf": llm,
        "model_conf": {"ctc_weight": 0.0},
        "accum_grad": 2,
        "optim": "sgd",
        "optim_conf": {"lr": 0.1},
        "scheduler": None,
    }
    fsdp = [*row("fsdp", **options), "--strategy", "fsdp"]
    rows = [[*row("lightning", **options), "--strategy", strategy], fsdp]
    run_rows(tmp_path, rows)
    assert set((tmp_path / "fsdp" / "error.txt").read_text().splitlines()) == {
        "--strategy fsdp cannot shard 4-bit weights (llm_conf tuning: qlora); use "
        "--strategy ddp or deepspeed, or tuning: lora"
    }
    assert not (tmp_path / "fsdp" / "config.yaml").exists()
    folder = tmp_path / "lightning"
    speechllm_train.main(row("espnet", **options))
    first, last, _, _ = losses(folder)
    assert first - last > 0.02
    # 4-bit layers compute in bfloat16, which rounds by the shape of a batch; measured:
    # 0.4 % with DDP, 0.8 % with DeepSpeed
    assert losses(folder) == pytest.approx(losses(tmp_path / "espnet"), rel=0.02)
    export_model(folder, "valid.loss.ave.pth", tmp_path / "model")
    for dtype in ("float32", "4bit"):
        model = SpeechToText.from_pretrained(tmp_path / "model", dtype=dtype)
        model.transcribe([np.zeros(8000, dtype=np.float32)], language="en")


@needs_lightning
@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp", pytest.param("deepspeed", marks=needs_deepspeed)]
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_resumes_where_it_was_stopped(row, tmp_path, strategy, processes):
    """Stopped by a signal in an epoch and in a validation, then killed in an epoch.

    An epoch has four batches: an optimizer step after three and one after the last.
    """
    options = {
        "model_conf": {"ctc_weight": 0.3, "feature_dropout": 0.5},
        "accum_grad": 3,
        "batch_type": "unsorted",
        "batch_size": 2,
        "save_every": "none",
    }
    whole, stopped = row("whole", **options), row("stopped", **options)
    often = [*stopped, "--save_every", "1 steps"]
    stops = [
        f"stop=SIGUSR1,1,{processes - 1}",
        f"stop=SIGTERM,valid,{processes - 1}",
        "stop=crash,2",
        "stop=crash,10",
    ]
    rows = [[*(often if "crash" in stop else stopped), stop] for stop in stops]
    rows = [[*words[:-1], "--strategy", strategy, words[-1]] for words in rows]
    run_rows(tmp_path, [*rows, [*whole, "--strategy", strategy]], processes)
    folder = tmp_path / "stopped"
    where = ", where the same command resumes"
    assert (folder / "error.txt").read_text().splitlines() == [
        f"stopped by SIGUSR1; saved after batch 3 of epoch 1{where}",
        f"stopped by SIGTERM; saved after batch 4 of epoch 1{where}",
    ]
    (folder / "error.txt").unlink()
    states = [load_tensors(tmp_path / n / "last.ckpt") for n in ("whole", "stopped")]
    assert tensors_differ(*states) == 0
    assert losses(folder) == losses(tmp_path / "whole")
    names = [
        {path.name for path in (tmp_path / n).iterdir()} for n in ("whole", "stopped")
    ]
    assert names[0] == names[1]


class Attack:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def plant(checkpoint: Path, name: str, attack: Attack) -> None:
    """Replace a file of a checkpoint, or an optimizer's options in FSDP's shards."""
    if name != "options":
        (file,) = checkpoint.rglob(name) if checkpoint.is_dir() else [checkpoint]
        with open(file, "wb") as stream:
            (pickle.dump if name == ".metadata" else torch.save)(attack, stream)
        return
    with open(checkpoint / ".metadata", "rb") as stream:
        metadata = pickle.load(stream)
    state = {
        key: torch.zeros(entry.size, dtype=entry.properties.dtype)
        if isinstance(entry, TensorStorageMetadata)
        else attack
        for key, entry in metadata.state_dict_metadata.items()
    }
    assert attack in state.values()
    shutil.rmtree(checkpoint)
    save(state, checkpoint_id=checkpoint, no_dist=True)
    torch.save({}, checkpoint / "meta.pt")


@needs_lightning
@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "names"),
    [
        ("ddp", ["last.ckpt"]),
        ("fsdp", [".metadata", "meta.pt", "options"]),
        pytest.param(
            "deepspeed",
            ["*_model_states.pt", "*_optim_states.pt"],
            marks=needs_deepspeed,
        ),
    ],
)
def test_a_resumed_training_runs_no_code(row, tmp_path, strategy, names):
    """Each file of a checkpoint that is unpickled, replaced by an attack."""
    words = [*row("first", max_epoch=1), "--strategy", strategy]
    run_rows(tmp_path, [words], processes=1)
    resumed = []
    for number, name in enumerate(names):
        folder = tmp_path / f"resumed{number}"
        shutil.copytree(tmp_path / "first", folder)
        plant((folder / "last.ckpt").resolve(), name, Attack(tmp_path / "made"))
        resumed.append([*row(folder.name), "--strategy", strategy])
    run_rows(tmp_path, resumed, processes=1)
    for number in range(len(names)):
        error = (tmp_path / f"resumed{number}" / "error.txt").read_text()
        assert "not a checkpoint of this training, or damaged; it is not" in error
    assert not (tmp_path / "made").exists()


@needs_lightning
@pytest.mark.slow
def test_a_resumed_training_removes_no_file_of_the_user(row, tmp_path):
    """A planted checkpoint names a folder as one that was saved before."""
    run_rows(tmp_path, [row("exp", max_epoch=1)], processes=1)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notes.txt").write_text("years of work")
    last = (tmp_path / "exp" / "last.ckpt").resolve()
    state = torch.load(last, weights_only=True)
    for saved in state["callbacks"].values():
        if "best_model_path" in saved:
            saved["best_model_path"] = f"local://{tmp_path}/home"
    torch.save(state, last)
    run_rows(tmp_path, [row("exp")], processes=1)
    assert (tmp_path / "home" / "notes.txt").exists()
    assert "could be removed" in (tmp_path / "exp" / "error.txt").read_text()


@needs_lightning
@pytest.mark.gpu
@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp", pytest.param("deepspeed", marks=needs_deepspeed)]
)
def test_a_strategy_trains_every_tuning_on_gpus(row, tmp_path, strategy):
    tunings = TUNINGS if strategy == "fsdp" else (*TUNINGS, "qlora")
    number = str(min(2, torch.cuda.device_count()))
    rows = []
    for tuning in tunings:
        words = row(tuning, tuning, "bfloat16", checkpointing=True)
        words[words.index("--ngpu") + 1] = number
        rows.append([*words, "--strategy", strategy])
    run_rows(tmp_path, rows, int(number))
    for tuning in tunings:
        train_first, train_last, valid_first, valid_last = losses(tmp_path / tuning)
        assert train_last < train_first and valid_last < valid_first
        load_tensors(tmp_path / tuning / "last.ckpt")
