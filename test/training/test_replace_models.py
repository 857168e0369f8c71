"""Replacement of the models of a training config: --encoder and --llm of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_models import (
    write_tiny_conformer,
    write_tiny_hubert,
    write_tiny_w2v_bert,
    write_tiny_wavlm,
    write_tiny_whisper,
)

from speechllm.bin.replace_models import main
from speechllm.training.replace_models import replace_models
from speechllm.utils.errors import UserError

CONFIG = {
    "encoder": "whisper",
    "encoder_conf": {
        "model": "openai/whisper-base",
        "layer": 2,
        "trainable_layers": 1,
        "specaug": {"apply_time_mask": False},
    },
    "bridge": "stack",
    "llm": "causal_lm",
    "llm_conf": {"model": "some/llm", "tuning": "lora", "lora": {"r": 4}},
    "max_epoch": 2,
}
HUBERT = {
    **CONFIG,
    "encoder": "hubert",
    "encoder_conf": {"model": "some/hubert", "normalize": False, "layer": "last"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_tiny_whisper(root / "whisper")
    write_tiny_hubert(root / "hubert", "group")
    write_tiny_hubert(root / "wav2vec2", "layer", "wav2vec2")
    write_tiny_wavlm(root / "wavlm")
    write_tiny_w2v_bert(root / "w2v_bert")
    write_tiny_conformer(root / "conformer")
    (root / "llm").mkdir()
    (root / "llm" / "config.json").write_text('{"model_type": "llama"}')
    (root / "llm" / "model.safetensors").write_bytes(b"")
    return root


@pytest.mark.parametrize(
    ("name", "kind", "log_mel"),
    [
        ("whisper", "whisper", True),
        ("hubert", "hubert", False),
        ("wav2vec2", "hubert", False),
        ("wavlm", "hubert", False),
        ("w2v_bert", "auto", True),
        ("conformer", "auto", False),
    ],
)
def test_the_kind_of_an_encoder_follows_from_its_config(models, name, kind, log_mel):
    """The config builds the model; what the new encoder cannot have is left out."""
    from speechllm.models.encoders import ENCODERS

    path = str(models / name)
    new, (line,) = replace_models(CONFIG, encoder=path)
    expected = {"model": path, "layer": 2, "trainable_layers": 1}
    if log_mel:
        expected["specaug"] = {"apply_time_mask": False}
    assert new == {**CONFIG, "encoder": kind, "encoder_conf": expected}
    assert line.startswith(f"encoder {path} ({kind}) in place of openai/whisper-base")
    assert line.endswith(", without its specaug") == (not log_mel)
    ENCODERS[new["encoder"]](**new["encoder_conf"])
    new, _ = replace_models(HUBERT, encoder=path)  # follows the model's own settings
    assert new["encoder_conf"] == {"model": path, "layer": "last"}
    assert CONFIG["encoder"] == "whisper" and "normalize" in HUBERT["encoder_conf"]


def test_another_name_of_the_same_encoder_keeps_all_options(models, monkeypatch):
    monkeypatch.setattr(
        "speechllm.training.replace_models.resolve_model", lambda _: models / "hubert"
    )
    config = {**HUBERT, "encoder_conf": {**HUBERT["encoder_conf"]}}
    config["encoder_conf"]["model"] = "yky-h/japanese-hubert-base"
    new, _ = replace_models(config, encoder="rinna/japanese-hubert-base")
    assert new["encoder_conf"]["normalize"] is False


def test_the_llm_is_replaced(models):
    new, (line,) = replace_models(CONFIG, llm=str(models / "llm"))
    conf = {**CONFIG["llm_conf"], "model": str(models / "llm")}
    assert new == {**CONFIG, "llm_conf": conf}
    assert line == f"LLM {models / 'llm'} in place of some/llm"
    without = {**CONFIG, "llm": None}
    assert replace_models(without, llm=str(models / "llm")) == (without, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "llm"}, "type 'llama', not a speech encoder.*--llm names the LLM"),
        ({"llm": "whisper"}, r"a speech encoder \(whisper\), not an LLM.*--encoder"),
        ({"encoder": "none"}, "no model folder"),
        ({"encoder": "broken"}, r"has no model_type"),
        ({"encoder": "bare"}, "has no preprocessor_config.json.*add the one of"),
    ],
)
def test_unsuitable_models_are_errors(models, options, message):
    for name, content in (("broken", {}), ("bare", {"model_type": "sew"})):
        (models / name).mkdir(exist_ok=True)
        (models / name / "config.json").write_text(json.dumps(content))
        (models / name / "model.safetensors").write_bytes(b"")
    options = {key: str(models / value) for key, value in options.items()}
    with pytest.raises(UserError, match=message):
        replace_models(CONFIG, **options)


def test_too_few_layers_are_an_error(models):
    config = {**CONFIG, "encoder_conf": {"model": "a/b", "layer": 9}}
    with pytest.raises(
        UserError, match=r"has 2 layers.*layer of the config is 9.*last"
    ):
        replace_models(config, encoder=str(models / "hubert"))


def test_the_command_writes_all_configs(models, tmp_path, capsys):
    for name, config in (("warmup", {**CONFIG, "llm": None}), ("train", CONFIG)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    pairs = []
    for name in ("warmup", "train"):
        output = tmp_path / f"exp_{name}" / "train_config.yaml"
        pairs += ["--config", str(tmp_path / f"{name}.yaml"), str(output)]
    main([*pairs, "--encoder", str(models / "wavlm"), "--llm", str(models / "llm")])
    warmup, train = (
        yaml.safe_load((tmp_path / f"exp_{name}/train_config.yaml").read_text())
        for name in ("warmup", "train")
    )
    assert warmup["encoder"] == train["encoder"] == "hubert"
    assert warmup["llm"] is None and warmup["llm_conf"] == CONFIG["llm_conf"]
    assert train["llm_conf"]["model"] == str(models / "llm")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["encoder", "encoder", "LLM"]
    with pytest.raises(UserError, match=r"no LLM in \S+warmup.yaml; leave the option"):
        main([*pairs[:3], "--llm", str(models / "llm")])
