"""Resource estimates against published sizes, manual arithmetic and measured memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_models import write_tiny_parakeet, write_tiny_w2v_bert
from transformers import AutoConfig

from speechllm.cli import main
from speechllm.models.encoders import AutoEncoder
from speechllm.training import resource_estimate as e
from speechllm.training.memory_simulation import simulate_frame_rate
from speechllm.utils.errors import UserError, run_main

CONF = Path(__file__).parents[2] / "egs2" / "must_c" / "speechllm1" / "conf"
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
}
TOLERANCE = 0.15
LLM = {**SHAPE, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
WHISPER = {
    "d_model": 256,
    "encoder_layers": 4,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 1024,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
}
HUBERT = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
LORA = {"tuning": "lora", "lora": {"r": 8}}
FLOAT32, BFLOAT16 = {"autocast": "float32"}, {"autocast": "bfloat16"}
#: encoder, trained layers, bridge, LLM family, options of LLM and model
MEASURED = {
    "lora": ("whisper", 0, "stack", "llama", {**LORA, "dtype": "float32"}, FLOAT32),
    "lora, checkpointing": (
        "whisper",
        0,
        "stack",
        "llama",
        {**LORA, "dtype": "float32", "gradient_checkpointing": True},
        FLOAT32,
    ),
    "full, checkpointing": (
        "hubert",
        "all",
        "convolution",
        "gpt_neox",
        {"tuning": "full", "gradient_checkpointing": True},
        BFLOAT16,
    ),
    "frozen": (
        "hubert",
        "all",
        "convolution",
        "gpt_neox",
        {"tuning": "frozen", "dtype": "bfloat16"},
        BFLOAT16,
    ),
    "lora, gemma2": (
        "whisper",
        2,
        "qformer",
        "gemma2",
        {**LORA, "dtype": "bfloat16"},
        BFLOAT16,
    ),
}


@pytest.mark.parametrize(
    ("name", "millions"),
    [  # as counted by the hub
        ("google/gemma-2-9b-it", 9241.7),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8030.3),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1711.4),
    ],
)
def test_published_parameter_counts(name, millions):
    llm = e.build_llm({"tuning": "frozen"}, e.load_shape(name))
    assert e.count(llm) == (pytest.approx(millions * 1e6, rel=1e-4), 0)


def test_bytes_of_4_bit_and_full_weights():
    conf = {"tuning": "qlora", "lora": {"r": 2}}
    llm = e.build_llm(conf, AutoConfig.for_model("llama", **SHAPE))
    linear = 4 * (4 * 256 * 256 + 3 * 256 * 1024)
    rest = 2 * 8192 * 256 + 9 * 256  # embedding, head, norms
    adapters = 4 * 2 * (4 * (256 + 256) + 3 * (256 + 1024))
    assert e.count(llm) == (linear + rest + adapters, adapters)
    expected = linear * (4 + 8 / 64 + 32 / 16384) / 8 + 4 * (rest + adapters)
    assert e.llm_bytes(llm, conf) == pytest.approx(expected)
    halves = e.llm_bytes(llm, {"tuning": "lora", "dtype": "bfloat16"})
    assert halves == 2 * (linear + rest) + 4 * adapters


def write_shape(folder: Path, family: str, **shape) -> str:
    """Write a ``config.json``, and a smaller one next to it."""
    AutoConfig.for_model(family, **shape).save_pretrained(folder)
    small = {key: 2 for key in shape if key.endswith("layers")}
    if "vocab_size" in shape:
        small["vocab_size"] = 64
    AutoConfig.for_model(family, **(shape | small)).save_pretrained(f"{folder}_small")
    return str(folder)


def measured_config(name: str, folder: Path) -> dict:
    """Return a training config whose models are folders without weights."""
    encoder, layers, bridge, family, llm_conf, model_conf = MEASURED[name]
    shape = WHISPER if encoder == "whisper" else HUBERT
    return {
        "encoder": encoder,
        "encoder_conf": {
            "model": write_shape(folder / "encoder", encoder, **shape),
            "trainable_layers": layers,
        },
        "bridge": bridge,
        "llm_conf": {"model": write_shape(folder / "llm", family, **LLM), **llm_conf},
        "model_conf": model_conf,
        "optim": "adamw",
        "optim_conf": {"fused": True},
        "batch_type": "numel",
        "batch_bins": 4 * 160000,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_measured_peak_memory(name, tmp_path):
    """The estimate is close to the peak of resident memory."""
    config = measured_config(name, tmp_path)
    expected = e.estimate(config, attention="eager")
    # return freed memory to the system at once
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    script = Path(__file__).with_name("measure_step.py")
    done = subprocess.run(
        [sys.executable, script, json.dumps(config)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    measured = int(done.stdout)
    print(f"{name}: {expected.total / 2**20:.0f} MiB, measured {measured / 2**20:.0f}")
    assert expected.total == pytest.approx(measured, rel=TOLERANCE)


def read_config(name: str = "train_whisper_llama3_8b.yaml", **changes) -> dict:
    config = yaml.safe_load((CONF / name).read_text())
    config["llm_conf"] |= changes
    return config


def test_options_that_save_memory():
    qlora = e.estimate(read_config())
    lora = e.estimate(read_config(tuning="lora"))
    kept = e.estimate(read_config(gradient_checkpointing=False))
    assert qlora.weights < 0.7 * lora.weights
    assert qlora.trainable == lora.trainable < 0.02 * qlora.parameters
    assert qlora.optimizer == 2 * qlora.gradients == 8 * qlora.trainable
    assert kept.activations > 2 * qlora.activations
    assert kept.operations < qlora.operations


def test_command_line(capsys):
    config = str(CONF / "train_whisper_llama3_8b.yaml")
    assert main(["estimate", "--config", config, "--gpu", "80"]) == 0
    assert "fits into 80 GiB" in capsys.readouterr().out
    assert main(["estimate", "--config", config, "--gpu", "16"]) == 1
    text = capsys.readouterr().out
    assert "does not fit into 16 GiB" in text
    assert "this fits" in text and "of the batch and" in text
    assert main(["estimate", "--config", config, "--gpu", "8"]) == 1
    assert "take a smaller LLM" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm": None}, "no LLM"),
        ({"llm_conf": {}}, "cannot be built: 'model'"),
        ({"bridge": "rope"}, "bridge 'rope': one of stack"),
    ],
)
def test_invalid_configs(changes, message):
    with pytest.raises(UserError, match=message):
        e.estimate({**read_config(), **changes})


@pytest.mark.parametrize(
    ("recipe", "config", "gib"),
    [  # weights, gradients and AdamW's state of 3.9 billion parameters: 16 bytes each
        ("csj", "train_nue_asr.yaml", 16 * 3.9e9 / 2**30),
        ("csj", "train_ctc_averaging.yaml", 16 * 3.9e9 / 2**30),
        # HuBERT in float32, GPT-NeoX in bfloat16; adapters of 27 million parameters
        (
            "csj",
            "train_lora_adaptation.yaml",
            (4 * 95e6 + 2 * 3.6e9 + 16 * 27e6) / 2**30,
        ),
        ("must_c", "train_hubert_gemma2_9b.yaml", 9.5),
    ],
)
def test_flagship_configs_need_no_network(recipe, config, gib, monkeypatch):
    """Memory without activations is that of the parameters; activations are less."""
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("network"))
    path = CONF.parents[2] / recipe / "speechllm1" / "conf" / config
    found = e.estimate(yaml.safe_load(path.read_text()))
    fixed = found.weights + found.gradients + found.optimizer
    assert fixed / 2**30 == pytest.approx(gib, rel=0.03)
    assert found.activations < 20 * 2**30
    assert found.update == 0.0  # fused, or paged


ADAPTER = {"add_adapter": True, "output_hidden_size": 48}


def write_adapted_w2v_bert(folder: Path) -> Path:
    return write_tiny_w2v_bert(folder, num_adapter_layers=1, **ADAPTER)


def write_adapted_wav2vec2(folder: Path) -> Path:
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Wav2Vec2Config(
        **shape,
        **ADAPTER,
        intermediate_size=64,
        num_adapter_layers=3,
        num_conv_pos_embedding_groups=4,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("write", "rate"),
    [
        (write_tiny_w2v_bert, 50),
        (write_tiny_parakeet, 12.5),
        (write_adapted_w2v_bert, 25),
        (write_adapted_wav2vec2, 6.25),
    ],
)
def test_encoders_of_the_kind_auto(write, rate, tmp_path):
    """Count parameters and frames as the encoder itself has them."""
    folder = str(write(tmp_path / "encoder"))
    config = e.replace_shapes(read_config(), folder, None)
    assert config["encoder"] == "auto"
    config["encoder_conf"] = {"model": folder, "trainable_layers": "all"}
    encoder = AutoEncoder(folder, trainable_layers="all")
    built = e.build_encoder(config, e.load_shape(folder, "audio_encoder"))
    assert e.count(built) == e.count(encoder)
    assert built.output_size == encoder.output_size
    assert simulate_frame_rate(built) == encoder.num_frames_per_second == rate
    for path in Path(folder).iterdir():  # neither the weights nor the extractor
        if path.name != "config.json":
            path.unlink()
    found = e.estimate(config)
    frozen = {**config, "encoder_conf": {"model": folder, "trainable_layers": 0}}
    assert found.activations > e.estimate(frozen).activations > 0


def test_adamw_that_is_not_fused_takes_memory_for_its_update():
    fused = e.estimate(read_config(tuning="lora") | {"optim": "adamw"})
    assert fused.update == 4 * fused.trainable


def test_unknown_model_size(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="none/such: its config.json.*name a folder"):
        e.load_shape("none/such")


def test_out_of_memory_message(capsys):
    import torch

    def fill():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(SystemExit, match="1"):
        run_main(fill)
    text = capsys.readouterr().err
    assert text.startswith("error: the memory is full") and "Tried to allocate" in text
    assert "batch_bins" in text and "speechllm estimate" in text
    with pytest.raises(RuntimeError, match="a defect"):
        run_main(lambda: (_ for _ in ()).throw(RuntimeError("a defect")))


def test_the_time_of_a_whole_training(tmp_path, capsys):
    """600 batches of 400,000 samples are 25 s each, 4.17 h in all."""
    config = read_config()
    config |= {"batch_type": "numel", "batch_bins": 400000}
    config |= {"max_epoch": 2, "num_iters_per_epoch": 300}
    assert e.training_hours(config, 3.0) == pytest.approx(600 * 25 / 3600)
    del config["num_iters_per_epoch"]
    assert e.training_hours(config, 3.0) == 6.0
    operations = e.estimate(config).operations
    text, _ = e.report(config, None, 10.0, hours_of_speech=3.0)
    minutes = round(6.0 * operations / 10e12 / 60)
    line = next(line for line in text.splitlines() if line.startswith("this training"))
    assert line.split("  ")[-1].strip() == (
        f"6.0 h of speech, 2.0 times the training set; {minutes:,} min at that speed"
    )
    text, _ = e.report({**config, "llm": None, "bridge": None}, None, 10.0, 3.0)
    assert text.endswith("2.0 times the training set (CTC only: no estimate)")


def test_training_options_and_other_models_change_the_estimate(tmp_path, capsys):
    """60 batches of 400,000 samples are 25 s each: 0.4 h, whatever the config says."""
    config = read_config() | {"max_epoch": 2, "num_iters_per_epoch": 300}
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    command = ["estimate", "--config", str(path), "--hours", "0.2"]
    words = "--max_epoch 1 --num_iters_per_epoch 60 --batch_type numel"
    words += " --batch_bins 400000 --scheduler_conf max_steps=60"
    assert main([*command, f"--train_args={words}"]) == 0
    assert "0.4 h of speech, 2.1 times the training set" in capsys.readouterr().out
    with pytest.raises(UserError, match="max_epoch 0: at least 1"):
        main([*command, "--train_args=--max_epoch 0"])
    with pytest.raises(UserError, match="--train_args: No closing quotation in: 'x"):
        main([*command, "--train_args='x"])


def test_other_models_change_the_estimate(monkeypatch):
    """Only the shapes of the models are read."""
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("network"))
    config = read_config()
    encoder, llm = "facebook/hubert-large-ll60k", "HuggingFaceTB/SmolLM2-1.7B"
    found = e.replace_shapes(config, encoder, llm)
    assert found["encoder"] == "hubert"
    assert e.estimate(found).parameters == pytest.approx(1.71e9 + 0.316e9, rel=0.02)
    assert e.replace_shapes(config, None, None) == config
    config["encoder_conf"]["normalize"] = True  # of HuBERT only
    assert e.replace_shapes(config, encoder, llm) == found
    assert "llm_conf" not in e.replace_shapes({"llm": None}, None, llm)
