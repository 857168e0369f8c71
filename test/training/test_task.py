"""ESPnet task: training, resuming after a kill, initialisation, invalid settings."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from fixtures_training import UTTERANCES
from safetensors.torch import save_file
from tiny_models import LABELS

from speechllm.bin.speechllm_train import main
from speechllm.text.ctc_labels import CTCTokenizer
from speechllm.text.prompts import read_prompts
from speechllm.training import load_task
from speechllm.training.initialization import (
    load_init_param,
    repair_checkpoint,
    safe_checkpoints,
)
from speechllm.training.options import read_training_config
from speechllm.training.preprocessor import ExamplePreprocessor, collate
from speechllm.utils.errors import UserError


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def assert_same(one: Path, other: Path) -> None:
    first, second = tensors(one), tensors(other)
    assert set(first) == set(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture
def whole(train, tmp_path) -> Path:
    """Folder of an uninterrupted training of two epochs."""
    return train(tmp_path / "whole")


def test_training_writes_small_checkpoints(whole):
    for name in ("1epoch.pth", "2epoch.pth", "valid.loss.ave.pth"):
        state = tensors(whole / name)
        assert {key.split(".")[0] for key in state} == {"bridge", "ctc", "llm"}
        assert all(torch.isfinite(value).all() for value in state.values())
    first, last = tensors(whole / "1epoch.pth"), tensors(whole / "2epoch.pth")
    assert all(not torch.equal(first[k], last[k]) for k in first if "lora_B" in k)
    config = yaml.safe_load((whole / "config.yaml").read_text())
    assert config["ctc_token_list"] == LABELS
    reporter = torch.load(whole / "checkpoint.pth", weights_only=False)["reporter"]
    losses = [reporter["stats"][epoch]["valid"]["loss"] for epoch in (1, 2)]
    assert np.isfinite(losses).all()
    assert losses[1] < losses[0]  # eight equal texts are learnt fast


def test_averaged_model_is_the_mean_of_the_epochs(whole):
    average = tensors(whole / "valid.loss.ave_2best.pth")
    epochs = [tensors(whole / f"{epoch}epoch.pth") for epoch in (1, 2)]
    for name, value in average.items():
        torch.testing.assert_close(value, (epochs[0][name] + epochs[1][name]) / 2)


def test_resuming_after_an_epoch_gives_the_same_model(train, whole, tmp_path):
    killed = train(tmp_path / "killed", max_epoch=1)
    train(killed)
    for name in ("2epoch.pth", "valid.loss.ave.pth"):
        assert_same(killed / name, whole / name)


def test_a_training_that_ran_out_of_patience_is_not_continued(train, tmp_path):
    options = {
        "patience": 0,
        "early_stopping_criterion": ["valid", "loss", "max"],  # it falls
        "max_epoch": 4,
    }
    stopped = train(tmp_path / "stopped", **options)
    before = (stopped / "checkpoint.pth").stat().st_mtime_ns
    train(stopped, **options)
    assert (stopped / "checkpoint.pth").stat().st_mtime_ns == before
    assert not (stopped / "3epoch.pth").exists()
    train(stopped, **{**options, "patience": 1})
    assert (stopped / "3epoch.pth").exists()


@pytest.mark.parametrize("lost", ["1epoch.pth", "links"])
def test_resuming_after_a_kill_behind_the_checkpoint(train, whole, tmp_path, lost):
    """checkpoint.pth is written, the model and the links are not."""
    killed = train(tmp_path / "killed", max_epoch=1)
    for name in ("latest.pth", "valid.loss.best.pth", "valid.loss.ave.pth"):
        (killed / name).unlink()
    if lost == "1epoch.pth":
        (killed / lost).unlink()
    train(killed)
    for name in ("1epoch.pth", "2epoch.pth", "valid.loss.ave.pth"):
        assert_same(killed / name, whole / name)
    best = (whole / "valid.loss.best.pth").readlink()
    assert (killed / "valid.loss.best.pth").readlink() == best


def test_resuming_after_a_kill_behind_the_last_checkpoint(train, whole, tmp_path):
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed, symlinks=True)
    for name in ("2epoch.pth", "latest.pth", "valid.loss.best.pth"):
        (killed / name).unlink()
    (killed / "valid.loss.best.pth").symlink_to("1epoch.pth")
    train(killed)
    for name in ("2epoch.pth", "latest.pth", "valid.loss.best.pth"):
        assert_same(killed / name, whole / name)


def test_repairing_a_complete_checkpoint_changes_nothing(whole):
    def state() -> dict:
        return {
            p.name: p.readlink() if p.is_symlink() else p.read_bytes()
            for p in whole.iterdir()
        }

    before = state()
    repair_checkpoint(whole, [("valid", "loss", "min"), ("valid", "nothing", "max")])
    assert state() == before
    repair_checkpoint(whole / "nothing here")


def test_checkpoints_are_written_atomically(tmp_path):
    path = tmp_path / "model.pth"

    class Killed:
        def __reduce__(self):
            raise KeyboardInterrupt

    with safe_checkpoints():
        torch.save({"a": torch.ones(2)}, path)
        with pytest.raises(KeyboardInterrupt):
            torch.save({"a": torch.zeros(2), "b": Killed()}, path)
    assert tensors(path)["a"].tolist() == [1.0, 1.0]
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


def test_checkpoints_are_mapped_into_memory(tmp_path):
    """All processes of a resumed training read it, and share the pages of the file."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"a": torch.arange(100_000)}, path)
    with safe_checkpoints():
        found = torch.load(path, map_location="cpu", weights_only=False)
        assert str(path) in Path("/proc/self/maps").read_text()
        torch.save({"a": torch.zeros(3)}, path)  # the next epoch's
    found["a"] += 1
    assert found["a"].tolist() == list(range(1, 100_001))


class Planted:
    """An object whose unpickling runs a command."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["reporter", "model", "optimizers"])
def test_resuming_runs_no_code_of_a_checkpoint(train, whole, tmp_path, place):
    states = torch.load(whole / "checkpoint.pth", weights_only=False)
    states[place] = Planted(tmp_path / "planted")
    torch.save(states, whole / "checkpoint.pth")
    before = (whole / "checkpoint.pth").read_bytes()
    with pytest.raises(UserError, match=r"checkpoint\.pth: not a checkpoint of this"):
        train(whole, max_epoch=3)
    assert not (tmp_path / "planted").exists()
    assert (whole / "checkpoint.pth").read_bytes() == before


def test_espnet_itself_runs_no_code_of_a_checkpoint(whole, tmp_path):
    from espnet2.train.trainer import Trainer

    torch.save({"model": Planted(tmp_path / "planted")}, tmp_path / "planted.pth")
    with safe_checkpoints(), pytest.raises(UserError, match=r"planted\.pth"):
        Trainer.resume(tmp_path / "planted.pth", None, None, [], [], None)
    with safe_checkpoints():  # as averaging does
        assert torch.load(whole / "2epoch.pth", weights_only=False)
    assert not (tmp_path / "planted").exists()


def test_only_rank_0_repairs_links(train, whole, monkeypatch):
    from espnet2.tasks.abs_task import AbsTask

    (whole / "latest.pth").unlink()
    monkeypatch.setenv("RANK", "1")
    with monkeypatch.context() as patch:
        patch.setattr(AbsTask, "main_worker", classmethod(lambda cls, args: None))
        train(whole)
        assert not (whole / "latest.pth").exists()
        patch.setenv("RANK", "0")
        train(whole)
    assert (whole / "latest.pth").exists()


def test_collect_stats(train, examples, tmp_path):
    ids = tmp_path / "ids"
    ids.write_text("".join(f"u{i} x\n" for i in range(UTTERANCES)))
    output = train(
        tmp_path / "stats",
        *("--collect_stats", "true"),
        *("--train_shape_file", str(ids), "--valid_shape_file", str(ids)),
        batch_type="unsorted",
    )
    lines = (output / "train" / "speech_shape").read_text().splitlines()
    assert "u3 11000" in lines
    assert (output / "train" / "text_shape").exists()


def test_warm_up_without_an_llm(train, tmp_path, tiny_whisper):
    output = train(
        tmp_path / "warm",
        llm=None,
        bridge=None,
        encoder_conf={"model": str(tiny_whisper), "trainable_layers": 1},
        model_conf={"ctc_weight": 1.0},
        lr_scales={"encoder": 0.1},
    )
    parts = {key.split(".")[0] for key in tensors(output / "2epoch.pth")}
    assert parts == {"encoder", "ctc"}
    optimizer = torch.load(output / "checkpoint.pth", weights_only=False)["optimizers"]
    rates = [group["lr"] for group in optimizer[0]["param_groups"]]
    assert sorted(r / max(rates) for r in rates) == pytest.approx([0.1, 1.0])


# Initialisation


@pytest.fixture(scope="module")
def warm_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        "ctc.ctc_lo.weight": torch.randn(len(LABELS), 32, generator=generator),
        "ctc.ctc_lo.bias": torch.randn(len(LABELS), generator=generator),
    }


@pytest.mark.parametrize("form", ["file.safetensors", "model.safetensors", "file.pth"])
def test_initialisation_from_another_training(train, tmp_path, warm_state, form):
    """A safetensors file, a folder that holds one, a torch file."""
    path = tmp_path / "warm" / form
    path.parent.mkdir()
    (torch.save if path.suffix == ".pth" else save_file)(warm_state, path)
    start = path.parent if form == "model.safetensors" else path
    output = train(
        tmp_path / "exp",
        *("--init_param", str(start)),
        model_conf={"ctc_weight": 0.0},
        max_epoch=1,
    )
    state = tensors(output / "1epoch.pth")
    for name, value in warm_state.items():
        assert torch.equal(state[name], value)


class Holder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.ctc = torch.nn.Linear(2, 3)
        self.other = torch.nn.Linear(2, 2)


def test_initialisation_with_a_prefix(tmp_path):
    state = Holder().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    model = Holder()
    before = model.other.weight.clone()
    load_init_param(f"{tmp_path / 'a.safetensors'}:ctc", model, False, "cpu")
    assert torch.equal(model.ctc.weight, state["ctc.weight"])
    assert torch.equal(model.other.weight, before)
    with pytest.raises(UserError, match="no such tensors"):
        load_init_param(f"{tmp_path / 'a.safetensors'}:llm", model, False, "cpu")


def test_mismatched_checkpoint(tmp_path):
    state = {**Holder().state_dict(), "ctc.weight": torch.zeros(9, 9)}
    path = tmp_path / "a.pth"
    torch.save(state, path)
    model = Holder()
    with pytest.raises(UserError, match="1 tensors do not fit .* ctc.weight"):
        load_init_param(str(path), model, False, "cpu")
    load_init_param(str(path), model, True, "cpu")
    assert torch.equal(model.other.weight, state["other.weight"])


def test_checkpoint_with_other_labels(tmp_path):
    """The same number of labels in another order would load without an error."""
    torch.save(Holder().state_dict(), tmp_path / "a.pth")
    labels = "ctc_token_list: ['<blank>', e, t]\n"
    (tmp_path / "config.yaml").write_text(labels)
    model = Holder()
    model.token_list = ["<blank>", "e", "t"]
    load_init_param(str(tmp_path / "a.pth"), model, False, "cpu")
    model.token_list = ["<blank>", "t", "e"]
    before = model.ctc.weight.clone()
    with pytest.raises(UserError, match="number 1 is 'e' there and 't' here"):
        load_init_param(f"{tmp_path / 'a.pth'}:ctc", model, False, "cpu")
    assert torch.equal(model.ctc.weight, before)
    start = Holder()
    torch.save(start.state_dict(), tmp_path / "a.pth")
    load_init_param(str(tmp_path / "a.pth"), model, True, "cpu")
    assert torch.equal(model.ctc.weight, before)
    assert torch.equal(model.other.weight, start.other.weight)


def test_invalid_checkpoint_files(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    with pytest.raises(UserError, match="no such checkpoint"):
        load_init_param(str(tmp_path / "none.pth"), Holder(), False, "cpu")
    torch.save({"ctc.weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    for name in ("evil.pth", "cut.safetensors"):
        with pytest.raises(UserError, match=f"{name}: not a checkpoint of tensors"):
            load_init_param(str(tmp_path / name), Holder(), False, "cpu")


# Invalid settings


def test_unknown_key_in_the_config(train, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "exp", colour="red")
    assert caught.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "unrecognized arguments: colour" in last and "config.yaml" in last


def test_errors_name_the_command(monkeypatch, capsys):
    """A command is named as it is called, also by a task with another program."""
    monkeypatch.setattr(sys, "argv", ["/a/speechllm/bin/lightning_train.py"])
    with pytest.raises(SystemExit):
        load_task().parse(["no-such"])
    program, _, last = capsys.readouterr().err.splitlines()[-1].partition(": ")
    assert program == "python -m speechllm.bin.lightning_train"
    assert last == "error: unrecognized arguments: no-such"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "ear"}, "encoder 'ear': one of whisper, hubert"),
        ({"bridge": "london"}, "bridge 'london': one of stack, convolution"),
        ({"optim": "best"}, "optim 'best': one of .*adamw"),
        ({"scheduler": "late"}, "scheduler 'late': one of .*warmuplr"),
        ({"encoder_conf": {"modle": "x"}}, "cannot be built.*modle"),
        ({"bridge_conf": {"width": 3}}, "cannot be built.*width"),
        ({"llm_conf": {"model": "no/such/folder"}}, "no/such/folder"),
        ({"model_conf": {"ctc_weight": 2.0}}, "ctc_weight 2.0: from 0 to 1"),
        ({"optim_conf": {"rate": 1}}, "optim_conf: unknown option 'rate'"),
        ({"scheduler_conf": {"steps": 1}}, "scheduler_conf: unknown option 'steps'"),
        ({"lr_scales": {"decoder": 0.1}}, "no trained parameter begins with dec"),
        ({"hotword_conf": {"words": 3}}, "hotword_conf: unknown option 'words'"),
        ({"hotword_conf": {"without": 2}}, "hotword_conf.without 2: from 0 to 1"),
        (
            {"hotword_conf": {"without": 0.5}},
            r"prompts.yaml: hotword_conf needs a prompt with \{hotwords\}",
        ),
        ({"accum_grad": 0}, "config.yaml: accum_grad 0: at least 1"),
        ({"batch_size": 0}, "batch_size 0: at least 1"),
        ({"batch_bins": 1.5}, "batch_bins 1.5: expected an integer"),
        ({"max_epoch": "two"}, "max_epoch 'two': expected an integer"),
        ({"grad_clip": float("nan")}, "grad_clip nan: expected a finite number"),
        ({"grad_clip": -1}, "grad_clip -1: above 0"),
        ({"train_dtype": "foo"}, "train_dtype 'foo': one of float16, float32"),
        ({"llm": "foo"}, "llm 'foo': one of causal_lm"),
        ({"optim_conf": {"lr": "fast"}}, "optim_conf.lr 'fast': expected a number"),
        ({"optim_conf": {"lr": -1.0}}, "optim_conf.lr -1.0: above 0"),
        ({"optim_conf": {"lr": 1e-3, "eps": float("nan")}}, "optim_conf .*eps is nan"),
        ({"lr_scales": {"ctc": "x"}}, "lr_scales .*ctc is 'x': expected a number"),
        ({"optim_conf": [1]}, r"optim_conf \[1\]: expected a mapping of names"),
        ({"bridge_conf": 5}, "bridge_conf 5: expected a mapping of names"),
        ({"llm_conf": {"model": 5}}, "llm_conf.model 5: expected a text"),
        (
            {"llm_conf": {"model": "a", "lora": 5}},
            "llm_conf.lora 5: expected a mapping of names",
        ),
        ({"encoder": ["whisper"]}, r"encoder \['whisper'\]: one of whisper, hubert"),
        ({"optim": []}, r"optim \[\]: expected a text"),
        ({"scheduler": []}, r"scheduler \[\]: expected a text"),
        ({"encoder_conf": {}}, "encoder_conf names no model"),
        ({"llm_conf": {}}, "llm_conf names no model"),
        (
            {"ctc_conf": {"dropout_rate": 7}},
            "ctc_conf.dropout_rate 7: at least 0 and below 1",
        ),
        ({"ctc_conf": {"ctc_type": "gtnctc"}}, "ctc_type 'gtnctc': only 'builtin'"),
        ({"num_att_plot": 3}, "num_att_plot 3: only 0"),
        ({"use_adapter": True}, "use_adapter True: only false; name LoRA"),
        ({"init_param": ["a.pth"]}, "--init_param a.pth: a.pth: no such checkpoint"),
        ({"init_param": "a.pth"}, "init_param 'a.pth': expected a list"),
        (
            {"best_model_criterion": [["foo", "loss", "min"]]},
            r"best_model_criterion .*: expected \[train or valid, a name, min or max\]",
        ),
        ({"best_model_criterion": [["valid", "loss"]]}, "best_model_criterion"),
    ],
)
def test_invalid_settings(train, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "exp", **changes)


def test_errors_of_the_command_line_do_not_name_the_config(tmp_path):
    path = tmp_path / "train.yaml"
    words = ["--config", str(path), "--output_dir", str(tmp_path)]
    path.write_text("max_epoch: 0\n")
    with pytest.raises(UserError, match=f"^{path}: max_epoch 0: at least 1"):
        load_task().parse(words)
    path.write_text("max_epoch: 1\n")
    with pytest.raises(UserError, match="^command line: max_epoch 0: at least 1"):
        load_task().parse([*words, "--max_epoch", "0"])


def test_tabs_in_the_config_are_one_line_of_error(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("optim_conf:\n\tlr: 1\n")
    with pytest.raises(UserError, match="train.yaml: cannot be read as YAML.*line 2"):
        main(["--config", str(path), "--output_dir", str(tmp_path / "exp")])
    assert not (tmp_path / "exp").exists()


def test_rates_without_a_point_are_numbers(tmp_path):
    """YAML 1.1 reads 6e-4 as text."""
    path = tmp_path / "train.yaml"
    path.write_text("optim_conf:\n  lr: 6e-4\n  betas: [0.9, 0.98]\n")
    found = read_training_config(path)["optim_conf"]
    assert found == {"lr": 0.0006, "betas": [0.9, 0.98]}


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "egs2").glob("*/*/conf/**/*train*.yaml")),
    ids=str,
)
def test_configs_of_the_recipes_pass(path):
    content = yaml.safe_load(path.read_text("utf-8"))
    assert read_training_config(path) == content


def test_missing_prompts_or_token_list(train, tmp_path):
    with pytest.raises(UserError, match="no such prompts file"):
        train(tmp_path / "exp", "--prompts", str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="no such token list; run stage 5"):
        train(tmp_path / "exp", "--ctc_token_list", str(tmp_path / "none.txt"))
    (tmp_path / "tokens.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="tokens.txt, line 1: expected <blank>"):
        train(tmp_path / "exp", "--ctc_token_list", str(tmp_path / "tokens.txt"))


@pytest.mark.parametrize("workers", [0, 1])
def test_utterance_too_long_for_the_encoder(train, tmp_path, examples, workers):
    """The message is one sentence, also from a worker process."""
    folder = tmp_path / "long"
    shutil.copytree(examples, folder)
    soundfile.write(folder / "long.wav", np.zeros(31 * 16000), 16000)
    lines = (folder / "wav.scp").read_text().splitlines()
    lines[3] = f"u3 {folder / 'long.wav'}"
    (folder / "wav.scp").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError) as caught:
        train(tmp_path / "exp", data=folder, num_workers=workers)
    assert str(caught.value) == (
        "utterance u3: 31.0 s, the encoder takes 30 s; lower --max_wav_duration"
    )


# Preprocessing


class Tokenizer:
    """Minimal tokenizer for the preprocessor; a token is the length of a word."""

    bos_token_id = None
    eos_token_id = 0

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [len(word) for word in text.split()]}


@pytest.fixture
def preprocessor(examples) -> ExamplePreprocessor:
    prompts = read_prompts(examples / "prompts.yaml")
    return ExamplePreprocessor(CTCTokenizer(LABELS), Tokenizer(), prompts, 16000)


def example(**changes) -> dict:
    return {
        "speech": np.zeros(9, dtype=np.float64),
        "text": "Hi there.",
        "text_ctc": "hi é",
        "task": "asr en en",
        **changes,
    }


def test_preprocessing_of_an_example(preprocessor):
    found = preprocessor("u", example())
    assert found["speech"].dtype == np.float32
    assert found["text"].tolist() == [2, 6, 0]
    assert found["prompt_prefix"].tolist() == []
    assert found["prompt_suffix"].tolist() == [2, 8]  # in English:
    assert [LABELS[k] for k in found["text_ctc"]] == ["h", "i", "<space>", "<unk>"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speech": np.zeros(0)}, "utterance u: no samples"),
        ({"speech": np.zeros(16001)}, "utterance u: 1.0 s, the encoder takes 1 s"),
        ({"task": "asr en"}, "example u: expected '<task> <source language>"),
        ({"task": "tts en en"}, "no prompt for task 'tts'"),
        ({"task": "asr de de"}, "language 'de' has no name"),
    ],
)
def test_invalid_examples(preprocessor, changes, message):
    with pytest.raises(UserError, match=message):
        preprocessor("u", example(**changes))


def test_padding():
    rows = [
        ("a", {"speech": np.ones(2, np.float32), "text": np.array([1, 2, 3])}),
        ("b", {"speech": np.ones(3, np.float32), "text": np.array([4])}),
    ]
    ids, batch = collate(rows)
    assert ids == ["a", "b"]
    assert batch["speech"].tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    assert batch["text"].tolist() == [[1, 2, 3], [4, -1, -1]]
    assert batch["text_lengths"].tolist() == [3, 1]
