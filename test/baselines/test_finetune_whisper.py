"""Test the fine-tuning of Whisper on a tiny random model and real speech."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import tiny_baselines
import torch
from safetensors.torch import load_file
from tiny_models import write_tiny_hubert

from speechllm.audio.io import load_audio
from speechllm.baselines import finetune_whisper as finetuning
from speechllm.baselines import whisper_trainer
from speechllm.baselines.finetune_whisper import (
    FinetuneOptions,
    collate_examples,
    finetune_whisper,
    read_examples,
)
from speechllm.baselines.runner import run_baseline
from speechllm.baselines.whisper import Whisper
from speechllm.baselines.whisper_trainer import Pace, set_positions
from speechllm.bin.finetune_whisper import main
from speechllm.data.kaldi_table import read_table, write_table
from speechllm.utils.errors import UserError

REQUESTS = {
    "a-asr-en": ("asr en en", "Please enter"),
    "b-asr-fr": ("asr fr fr", "votre  mot de passe"),
    "c-st-en": ("st fr en", "your password"),
    "d-asr_st-fr": ("asr_st en fr", "enter\tentrez"),
    "e-st-fr": ("st en fr", "entrez"),
}


@pytest.fixture(scope="module")
def speech(speech_file) -> np.ndarray:
    """Return 3 s of speech."""
    return load_audio(speech_file)


@pytest.fixture(scope="module")
def tiny_decoder(tmp_path_factory, whisper_base) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    return tiny_baselines.write_tiny_whisper_decoder(folder, whisper_base)


@pytest.fixture
def examples(tmp_path, speech) -> Path:
    """Return an example dir."""
    return write_examples(tmp_path, speech)


def write_examples(folder: Path, speech: np.ndarray) -> Path:
    """Write an example dir; the lengths are 0.8 s, 1.4 s, 2 s, …"""
    folder = folder / "examples"
    folder.mkdir()
    waves, samples = {}, {}
    for number, name in enumerate(REQUESTS):
        waves[name] = str(folder / f"{name}.wav")
        samples[name] = str(12800 + 9600 * number)
        soundfile.write(waves[name], speech[: int(samples[name])], 16000)
    write_table(folder / "utt2num_samples", samples)
    write_table(folder / "wav.scp", waves)
    write_table(folder / "utt2task", {n: task for n, (task, _) in REQUESTS.items()})
    write_table(folder / "text", {n: text for n, (_, text) in REQUESTS.items()})
    return folder


def plain_validation(
    folder: Path, waves: list[np.ndarray], labels: list[list[int]], seconds: int
) -> tuple[float, float]:
    """Return loss and token accuracy of a batch, computed with transformers alone."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(folder).float().eval()
    set_positions(model, 50 * seconds)
    processor = WhisperProcessor.from_pretrained(folder)
    features = processor(
        waves, sampling_rate=16000, max_length=16000 * seconds, return_tensors="pt"
    )
    rows = [torch.tensor(row) for row in labels]
    padded = torch.nn.utils.rnn.pad_sequence(rows, True, padding_value=-100)
    with torch.no_grad():
        output = model(features.input_features, labels=padded)
    hits = [
        tokens[: len(row)] == row for tokens, row in zip(output.logits.argmax(-1), rows)
    ]
    return output.loss.item(), torch.cat(hits).float().mean().item()


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_loss_falls_and_the_folder_is_decoded(tiny_decoder, examples, tmp_path, tuning):
    output = tmp_path / "model"
    arguments = ["--model", str(tiny_decoder), "--examples", str(examples)]
    arguments += ["--valid", str(examples), "--output", str(output), "--tuning", tuning]
    arguments += ["--epochs", "8", "--batch_size", "2", "--lr", "0.01"]
    main(arguments)
    record = json.loads((output / "finetuning.json").read_text())
    result, settings = record["result"], record["settings"]
    assert result["steps"] == 16  # 3 examples in batches of 2, 8 times
    first, *validations = result["validation"]
    best = max(validations, key=lambda entry: entry["accuracy"])
    assert best["step"] == result["best_step"]
    assert best["loss"] < first["loss"] - 0.5
    assert settings["lr"] == 0.01

    system, tuned = Whisper(tiny_decoder), Whisper(output)
    system.load()
    tuned.load()
    data = read_examples(examples, system, {})
    inputs = [e.wave() for e in data], [e.labels for e in data]
    loss, accuracy = plain_validation(output, *inputs, seconds=4)
    # the Trainer averages over examples of batches of two
    assert loss == pytest.approx(best["loss"], abs=0.3)
    assert accuracy == pytest.approx(best["accuracy"], abs=0.08)
    config = json.loads((output / "config.json").read_text())
    original = json.loads((tiny_decoder / "config.json").read_text())
    different = {key for key in config if config[key] != original.get(key)}
    assert different <= {"transformers_version", "dtype"}
    tables = [s.model.model.encoder.embed_positions.weight for s in (tuned, system)]
    assert torch.equal(tables[0], tables[1].half().float())  # not trained

    written = output.joinpath("model.safetensors").stat().st_mtime_ns
    main(arguments)  # nothing to do
    assert output.joinpath("model.safetensors").stat().st_mtime_ns == written
    tasks = {n: t for n, (t, _) in REQUESTS.items() if n in ("a-asr-en", "c-st-en")}
    write_table(examples / "utt2task", tasks)
    decoded = tmp_path / "decode"
    assert run_baseline(tuned, examples, decoded) == 2
    assert read_table(decoded / "text").keys() == tasks.keys()
    assert list(output.glob("tmp*")) == []


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_weights_are_averaged_with_the_pretrained_ones(
    tiny_decoder, examples, tmp_path, tuning
):
    """Compare with the weights of the same training, and with their validation."""
    weights, results = {}, {}
    for share in (0.0, 0.25):
        folder = tmp_path / f"share_{share}"
        options = FinetuneOptions(
            tuning, lr=0.01, epochs=8, batch_size=2, pretrained_share=share
        )
        results[share] = finetune_whisper(
            tiny_decoder, examples, examples, folder, options
        )
        weights[share] = load_file(folder / "model.safetensors")
    pretrained = load_file(tiny_decoder / "model.safetensors")
    changed = 0
    for name, tuned in weights[0.0].items():
        expected = 0.25 * pretrained[name].float() + 0.75 * tuned.float()
        torch.testing.assert_close(
            weights[0.25][name].float(),
            expected,
            rtol=2e-3,
            atol=1e-3,  # float16
        )
        changed += not torch.equal(weights[0.25][name], tuned)
    assert changed > 10
    assert "averaged" not in results[0.0]
    averaged = results[0.25]["averaged"]
    system = Whisper(tiny_decoder)
    system.load()
    data = read_examples(examples, system, {})
    inputs = [e.wave() for e in data], [e.labels for e in data]
    loss, accuracy = plain_validation(tmp_path / "share_0.25", *inputs, seconds=4)
    # the Trainer averages over examples of batches of two
    assert loss == pytest.approx(averaged["loss"], abs=0.3)
    assert accuracy == pytest.approx(averaged["accuracy"], abs=0.08)


def test_audio_is_read_once_however_many_examples_it_has(
    tiny_decoder, examples, monkeypatch
):
    waves = read_table(examples / "wav.scp")
    write_table(examples / "wav.scp", {**waves, "c-st-en": waves["a-asr-en"]})
    system, loaded = Whisper(tiny_decoder), []
    system.load()

    def counted(source, **options):
        loaded.append(source)
        return load_audio(source, **options)

    monkeypatch.setattr(finetuning, "load_audio", counted)
    found = read_examples(examples, system, {})
    assert sorted(loaded) == [waves["a-asr-en"], waves["b-asr-fr"]]
    assert [example.samples for example in found] == [12800, 22400, 12800]
    assert len(found[2].wave()) == 12800


def test_labels_are_those_of_pretraining(tiny_decoder, examples):
    system = Whisper(tiny_decoder)
    system.load()
    found = read_examples(examples, system, {})
    decode = system.processor.tokenizer.decode
    assert [decode(example.labels) for example in found] == [
        "<|en|><|transcribe|><|notimestamps|> Please enter<|endoftext|>",
        "<|fr|><|transcribe|><|notimestamps|> votre mot de passe<|endoftext|>",
        "<|fr|><|translate|><|notimestamps|> your password<|endoftext|>",
    ]
    batch = collate_examples(system.processor, found)
    assert batch["input_features"].shape == (3, 80, 400)  # 2 s of speech, and padding
    assert (batch["labels"] == -100).sum() == sum(
        batch["labels"].shape[1] - len(example.labels) for example in found
    )


def test_fewer_positions_equal_a_model_of_that_size(tiny_decoder, speech):
    """Compare with a model whose configuration has 100 positions."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    system = Whisper(tiny_decoder)
    system.load()
    weights = dict(system.model.state_dict())
    name = "model.encoder.embed_positions.weight"
    weights[name] = weights[name][:100]
    config = WhisperConfig.from_pretrained(tiny_decoder, max_source_positions=100)
    small = WhisperForConditionalGeneration(config).eval()
    small.load_state_dict(weights)
    features = system.processor(
        speech, sampling_rate=16000, max_length=32000, return_tensors="pt"
    ).input_features
    labels = torch.tensor([[50259, 50359, 50363, 1000, 50257]])
    set_positions(system.model, 100)
    with torch.no_grad():
        cut, built = (m(features, labels=labels).logits for m in (system.model, small))
    assert torch.equal(cut, built)


def test_training_ends_with_the_time(tiny_decoder, examples, tmp_path, monkeypatch):
    """Use a clock that advances by half a second whenever it is read."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 2)
    for module in (finetuning, whisper_trainer):
        monkeypatch.setattr(module, "time", clock)
    options = FinetuneOptions(epochs=100_000, max_minutes=2, batch_size=4)
    result = finetune_whisper(tiny_decoder, examples, examples, tmp_path / "m", options)
    assert 100 < result["seconds"] < 125
    validation = result["validation"]
    assert len(validation) == whisper_trainer.EVALUATIONS + 1
    gaps = np.diff([entry["seconds"] for entry in validation])
    assert gaps.max() < 2 * gaps.min()


@pytest.mark.parametrize(
    ("seconds", "step", "expected"),
    # warm-up to a tenth; by time (1000 s), or by steps (1000) if they are further
    [(0, 0, 0.01), (50, 200, 0.51), (550, 200, 0.5), (10, 550, 0.5), (1000, 300, 0)],
)
def test_learning_rate_decays_over_time_or_steps(monkeypatch, seconds, step, expected):
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(whisper_trainer, "time", clock)
    pace = Pace(0.0, 1000 / 60)
    factor = pace.lr_factor(1000)
    now[0] = float(seconds)
    if (seconds, step) == (50, 200):
        step = 50
    assert factor(step) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("first_step", [2.0, 100.0])
def test_learning_rate_reaches_its_peak_within_the_time(monkeypatch, first_step):
    """1000 s for 400 or 360 of 100,000 steps; the first step may be slow."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(whisper_trainer, "time", clock)
    pace = Pace(0.0, 1000 / 60)
    factor, rates = pace.lr_factor(100_000), []
    while pace.done(len(rates), 100_000) < 1:
        rates.append(factor(len(rates)))
        now[0] += 2.5 if rates[1:] else first_step
    assert max(rates) > 0.95
    assert rates[:10] == sorted(rates[:10]) and rates[4] <= 0.5
    assert rates[len(rates) // 2] == pytest.approx(0.5 / 0.9, abs=0.06)


@pytest.mark.parametrize("steps", [50, 324, 5000])
def test_learning_rate_without_a_time_limit_depends_on_steps_only(steps):
    factor = Pace(0.0, None).lr_factor(steps)
    for step in range(steps):
        rise = min((step + 1) / (0.1 * steps), step / (0.1 * steps) + 0.01)
        expected = min(rise, (1 - step / steps) / 0.9)
        assert factor(step) == pytest.approx(expected)


def test_unusable_examples_are_listed(tiny_decoder, examples, tmp_path, speech, capsys):
    waves = read_table(examples / "wav.scp")
    Path(waves["a-asr-en"]).write_bytes(b"no audio")
    soundfile.write(waves["b-asr-fr"], np.tile(speech, 12), 16000)
    output = tmp_path / "model"
    options = FinetuneOptions(epochs=1)
    result = finetune_whisper(tiny_decoder, examples, examples, output, options)
    assert (result["examples"], result["left_out"]) == (1, 2)
    lines = (output / "left_out.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["a-asr-en", "b-asr-fr"]
    assert "longer than 30 s" in lines[1]
    assert "2 examples left out" in capsys.readouterr().err
    for name in ("b-asr-fr", "c-st-en"):
        Path(waves[name]).write_bytes(b"no audio")
    with pytest.raises(UserError, match=r"no example to train .*the last one: "):
        finetune_whisper(tiny_decoder, examples, examples, tmp_path / "x", options)
    assert not (tmp_path / "x").exists()


def test_examples_without_a_task_of_whisper_are_an_error(
    tiny_decoder, examples, tmp_path
):
    write_table(examples / "utt2task", {"e-st-fr": "st en fr"})
    with pytest.raises(UserError, match="it takes asr examples and st examples into"):
        finetune_whisper(
            tiny_decoder, examples, examples, tmp_path / "x", FinetuneOptions()
        )
    write_table(examples / "utt2task", {"a-asr-en": "asr xx xx"})
    with pytest.raises(UserError, match="asr from xx: .* supports"):
        finetune_whisper(
            tiny_decoder, examples, examples, tmp_path / "x", FinetuneOptions()
        )


def test_diverging_loss_is_an_error(tiny_decoder, examples, tmp_path):
    options = FinetuneOptions(lr=1e38, epochs=2)
    with pytest.raises(UserError, match=r"not finite with --lr 1e\+38"):
        finetune_whisper(tiny_decoder, examples, examples, tmp_path / "x", options)
    assert not (tmp_path / "x").exists()


def test_folder_of_the_user_is_not_changed(tiny_decoder, examples, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    for output in (tmp_path / "mine", examples):
        with pytest.raises(UserError, match="not changed|so it is not written"):
            finetune_whisper(
                tiny_decoder, examples, examples, output, FinetuneOptions()
            )


def test_options_come_from_a_file_and_the_model_from_a_training_config(
    tiny_decoder, examples, tmp_path, capsys
):
    config, training = tmp_path / "first_pass.yaml", tmp_path / "train.yaml"
    config.write_text("epochs: 2\nbatch_size: 3\nlr: 6e-4\n")
    training.write_text(f"encoder_conf: {{model: {tiny_decoder}}}\n")
    arguments = ["--model", str(training), "--examples", str(examples)]
    arguments += ["--valid", str(examples), "--output", str(tmp_path / "model")]
    config.write_text(config.read_text() + "pretrained_share: 0.3\n")
    main([*arguments, "--config", str(config), "--epochs", "1"])
    assert "averaged with the pretrained weights" in capsys.readouterr().out
    settings = json.loads((tmp_path / "model/finetuning.json").read_text())["settings"]
    assert (settings["epochs"], settings["batch_size"]) == (1, 3)
    assert settings["lr"] == 6e-4
    hubert = write_tiny_hubert(tmp_path / "hubert", "group")
    with pytest.raises(UserError, match="hubert: not Whisper .*--first_pass_config"):
        main([*arguments, "--model", str(hubert)])
    config.write_text("window: 17\n")
    with pytest.raises(UserError, match="unknown option 'window'"):
        main([*arguments, "--config", str(config)])
