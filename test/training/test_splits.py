"""Training tables in splits: each example once an epoch, progress, resumed epochs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from espnet2.bin.split_scps import main as split_scps
from espnet2.train.distributed_utils import DistributedOption
from fixtures_training import UTTERANCES

from speechllm.bin.speechllm_train import main
from speechllm.training import load_task
from speechllm.training.preprocessor import ExamplePreprocessor
from speechllm.utils.errors import UserError

SPLITS = 3  # of 3, 3 and 2 examples
NAMES = {f"u{i}" for i in range(UTTERANCES)}


@pytest.fixture
def arguments(training_arguments, examples, tmp_path):
    """Return the function that gives the arguments of a training on splits."""
    tables = ("wav.scp", "text", "text_ctc", "utt2task", "utt2num_samples")
    splits = tmp_path / "splits"
    words = ["--scps", *(str(examples / table) for table in tables)]
    split_scps([*words, "--num_splits", str(SPLITS), "--output_dir", str(splits)])

    def build(output: Path, **options) -> list[str]:
        given = training_arguments(output, **options)
        for index, (flag, value) in enumerate(itertools.pairwise(given), 1):
            if flag.startswith("--train_"):
                given[index] = value.replace(str(examples), str(splits))
        return [*given, "--multiple_iterator", "true"]

    return build


def draw(arguments: list[str], epoch: int, option: DistributedOption) -> list[list]:
    """Return the ids of the batches of an epoch."""
    task = load_task()
    factory = task.build_multiple_iter_factory(task.parse(arguments), option, "train")
    return [ids for ids, _ in factory.build_iter(epoch)]


def draw_as_rank(rank: int, arguments: list[str], folder: Path) -> None:
    """Write the ids that a process of two gets in two epochs."""
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2
    )
    option = DistributedOption(distributed=True, dist_rank=rank)
    found = [draw(arguments, epoch, option) for epoch in (1, 2)]
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_two_processes_get_each_example_once_an_epoch(arguments, tmp_path):
    given = arguments(tmp_path / "exp", num_workers=0)
    torch.multiprocessing.spawn(draw_as_rank, (given, tmp_path), nprocs=2)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for epoch in zip(*ranks, strict=True):
        assert len(epoch[0]) == len(epoch[1]) >= SPLITS  # steps
        drawn = [name for batches in epoch for batch in batches for name in batch]
        assert sorted(drawn) == sorted(NAMES)
    assert ranks[0][0] != ranks[0][1]  # another order in the second epoch


def test_epochs_without_batches_of_some_splits_are_refused(arguments, tmp_path):
    option = DistributedOption()
    for count in (SPLITS, SPLITS + 1):
        given = arguments(tmp_path / "exp", num_workers=0, num_iters_per_epoch=count)
        assert len(draw(given, 1, option)) == count
    given = arguments(tmp_path / "exp", num_workers=0, num_iters_per_epoch=SPLITS - 1)
    with pytest.raises(UserError, match="num_iters_per_epoch 2: at least 3, a batch"):
        draw(given, 1, option)


def test_left_out_batches_are_not_read(arguments, tmp_path, monkeypatch):
    task = load_task()
    args = task.parse(arguments(tmp_path / "exp", num_workers=0, batch_size=1))
    factory = task.build_multiple_iter_factory(args, DistributedOption(), "train")
    read = []
    preprocess = ExamplePreprocessor.__call__
    monkeypatch.setattr(
        ExamplePreprocessor,
        "__call__",
        lambda self, uid, data: (read.append(uid), preprocess(self, uid, data))[1],
    )
    splits = factory.factory
    batches = [ids for ids, _ in splits.build_iter(1)]
    assert len(batches) == UTTERANCES
    assert sorted(read) == sorted(NAMES)
    for count in range(UTTERANCES + 2):
        read.clear()
        left = [ids for ids, _ in splits.build_iter(1).after(count)]
        assert left == batches[count:]
        assert read == [name for ids in left for name in ids]


def test_training_resumes_with_the_same_weights(arguments, tmp_path, capsys):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    main(arguments(whole, max_epoch=2))
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("progress: ")
    ]
    assert lines and all("% of the epoch), about " in line for line in lines)
    main(arguments(resumed, max_epoch=1))
    main(arguments(resumed, max_epoch=2))
    states = [torch.load(folder / "2epoch.pth") for folder in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
