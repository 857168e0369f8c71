"""Export in Nue-ASR's released format."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from nue_asr_reference import Reference, check, ids
from safetensors.torch import load_file, save_file

from speechllm import SpeechToText, cli
from speechllm.export.nue_asr_format import save_nue_asr
from speechllm.models.speech_llm import build_speech_llm
from speechllm.utils.errors import UserError


def test_round_trip(tmp_path, nue_reference, nue_waves, nue_tokens):
    folder = tmp_path / "saved"
    model = SpeechToText.from_pretrained(nue_reference.folder)
    save_nue_asr(model, folder, license="apache-2.0")
    check(SpeechToText.from_pretrained(folder), nue_reference, nue_waves, nue_tokens, 4)
    written, given = load_file(folder / "model.safetensors"), nue_reference.state(False)
    assert set(written) == set(given)
    assert all(torch.equal(written[k], given[k]) for k in given)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "nue_asr"
    assert config["llm_config"]["use_cache"]
    assert config["llm_config"]["rotary_pct"] == 0.5  # for transformers before 5
    assert config["llm_config"]["rotary_emb_base"] == 5000
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "T5Tokenizer"
    assert tokenizer["extra_ids"] == 0
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card and "language: ja" in card


def test_export_of_a_trained_model_merges_adapters(tmp_path, nue_reference, nue_waves):
    """HuBERT and GPT-NeoX from folders, with LoRA."""
    nue_reference.hubert.save_pretrained(tmp_path / "hubert")
    nue_reference.llm.save_pretrained(tmp_path / "llm")
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(nue_reference.folder / name, tmp_path / "llm" / name)
    config = {
        "encoder": "hubert",
        "encoder_conf": {"model": str(tmp_path / "hubert"), "normalize": False},
        "bridge": "convolution",
        "bridge_conf": {},
        "llm": "causal_lm",
        "llm_conf": {"model": str(tmp_path / "llm"), "dtype": "float32"},
        "model_conf": {"ctc_weight": 0.3},
    }
    labels = ["<blank>", "<unk>", "あ", "<sos/eos>"]
    trained = build_speech_llm({**config, "token_list": labels})
    torch.manual_seed(1)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    ours = tmp_path / "ours"
    ours.mkdir()
    save_file(trained.state_dict(), ours / "model.safetensors")
    (ours / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    (ours / "tokens.txt").write_text("\n".join(labels) + "\n", "utf-8")
    prompt = 'languages: {ja: Japanese}\ntasks: {asr: "<s>{speech}[SEP]"}\n'
    (ours / "prompts.yaml").write_text(prompt)

    model = SpeechToText.from_pretrained(ours)
    save_nue_asr(model, tmp_path / "theirs")
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    assert set(state) == set(nue_reference.state(old_names=False))
    other = SpeechToText.from_pretrained(tmp_path / "theirs")
    found = [ids(other, r) for r in other.transcribe(nue_waves)]
    released = {"min_tokens": 2, "tokens_per_second": 4.0}  # limits of the format
    assert found == [ids(model, r) for r in model.transcribe(nue_waves, **released)]
    plain = SpeechToText.from_pretrained(nue_reference.folder)
    assert found != [
        ids(plain, r) for r in plain.transcribe(nue_waves)
    ]  # the adapters matter


def test_unsupported_models_are_refused(tmp_path, nue_reference):
    recognizer = SpeechToText.from_pretrained(nue_reference.folder)
    prompts = recognizer.prompts
    recognizer.prompts = replace(prompts, tasks={"asr": "{speech}今日"})
    with pytest.raises(UserError, match="one prompt"):
        save_nue_asr(recognizer, tmp_path / "out")
    recognizer.prompts = prompts
    recognizer.model.bridge = torch.nn.Identity()
    with pytest.raises(UserError, match="ConvolutionBridge.*Identity"):
        save_nue_asr(recognizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def copy(tmp_path) -> Path:
    """Folder of a tiny model in the released format."""
    return Reference(tmp_path / "copy", "group", seed=10).folder


def test_only_models_are_replaced(tmp_path, copy):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("mine")
    for name, message in (
        ("home", "is not replaced"),
        ("file", "is not replaced"),
        ("file/below", "cannot be written"),
    ):
        command = ["to_nue_asr", "--model", str(copy)]
        with pytest.raises(UserError, match=message):
            cli.main([*command, "--output", str(tmp_path / name)])
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(UserError, match="did not write"):
        cli.main([*command, "--output", str(copy)])  # released by someone else
    for _ in range(2):
        cli.main([*command, "--output", str(tmp_path / "new")])


def test_to_nue_asr_command(capsys, tmp_path, copy, nue_waves):
    folder = tmp_path / "new" / "folder"
    command = ["to_nue_asr", "--model", str(copy), "--output", str(folder)]
    assert cli.main([*command, "--license", "mit"]) == 0
    assert str(folder) in capsys.readouterr().out
    assert "license: mit" in (folder / "README.md").read_text()
    texts = [r.text for r in SpeechToText.from_pretrained(folder).transcribe(nue_waves)]
    model = SpeechToText.from_pretrained(copy)
    assert texts == [r.text for r in model.transcribe(nue_waves)]
