"""The recipes of MuST-C and CoVoST 2 on generated corpora, with tiny models."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from covost2_corpus import write_corpus
from must_c_corpus import CORPUS, ENGLISH, GERMAN, write_language
from recipe_clone import ROOT, TWO_STEPS, clone, conf
from tiny_models import write_tiny_hubert, write_tiny_llm

from speechllm.training import lightning_task

TRAINING = {
    "bridge": "convolution",
    "llm": "causal_lm",
    "model_conf": {"ctc_weight": 0.0},
    **TWO_STEPS,
}


def write_must_c(root: Path) -> list[str]:
    write_language(root, "de", CORPUS, ENGLISH, GERMAN)
    return ["--must_c_dir", str(root), "--tgt_lang", "de"]


def write_covost2(root: Path) -> list[str]:
    write_corpus(root)
    options = ["--covost2_dir", str(root), "--src_lang", "en fr", "--tgt_lang", "de en"]
    return [*options, "--local_data_opts", "--min_share 0.5"]  # of dev, en


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "groups"),
    [
        (
            "must_c",
            write_must_c,
            {("asr", "en", "en"), ("st", "en", "de"), ("asr_st", "en", "de")},
        ),
        (
            "covost2",
            write_covost2,
            {
                ("asr", "en", "en"),
                ("asr", "fr", "fr"),
                ("st", "en", "de"),
                ("st", "fr", "en"),
                ("asr_st", "en", "de"),
                ("asr_st", "fr", "en"),
            },
        ),
    ],
)
def test_all_stages_end_in_a_table(
    tmp_path, name, write, groups, tiny_whisper, tiny_llm
):
    folder = clone(tmp_path / "clone", name) / name / "speechllm1"
    arguments = write(tmp_path / "corpus")
    encoder = {"encoder": "whisper", "encoder_conf": {"model": str(tiny_whisper)}}
    llm = {"model": str(tiny_llm), "tuning": "lora", "lora": {"r": 2}}
    config = {**encoder, **TRAINING, "llm_conf": llm}
    (folder / "conf" / "tiny.yaml").write_text(yaml.safe_dump(config))
    decoding = {"batch_size": 4, "tokens_per_second": 1.0, "extra_tokens": 2.0}
    (folder / "conf" / "decode_tiny.yaml").write_text(yaml.safe_dump(decoding))
    arguments += ["--train_config", "conf/tiny.yaml", "--ngpu", "0", "--nj", "1"]
    arguments += ["--inference_config", "conf/decode_tiny.yaml"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["./run.sh", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=2400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    for stage in (1, 3, 4, 5, 6, 7, 9, 11, 12, 13):
        assert f"Stage {stage}: done in" in done.stdout
    rows = json.loads((folder / "exp" / "RESULTS.json").read_text())
    found = {(r["task"], r["language"], r["target_language"]) for r in rows}
    assert found == groups
    table = (folder / "dump" / "STATISTICS.md").read_text("utf-8")
    assert "| train | → de |" in table and table in done.stdout
    assert (folder / "dump" / "STATISTICS.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("name", "line"), [("must_c", "MUST_C"), ("covost2", "COVOST2")]
)
def test_a_missing_line_in_db_sh(tmp_path, name, line):
    folder = clone(tmp_path, name) / name / "speechllm1"
    done = subprocess.run(
        ["./run.sh", "--stop_stage", "1"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"{line}= in {folder}/db.sh is empty; write the folder" in done.stderr


def test_options_of_stage_1_are_combined_with_the_languages(tmp_path):
    folder = clone(tmp_path / "clone", "covost2") / "covost2" / "speechllm1"
    corpus = write_corpus(tmp_path / "corpus")
    voices = tmp_path / "voices"
    voices.mkdir()
    for language in ("en", "fr"):
        (corpus / language).rename(voices / language)
    done = subprocess.run(
        ["./run.sh", "--stop_stage", "1", "--covost2_dir", str(corpus)]
        + ["--src_lang", "fr", "--tgt_lang", "en"]
        + ["--local_data_opts", f"--common_voice_dir {voices}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    clips = (folder / "data" / "train" / "wav.scp").read_text()
    assert clips.endswith(f"{voices}/fr/clips/common_voice_fr_1.mp3\n")
    assert (folder / "data" / "train" / "text.en").read_text().endswith(" Hello.\n")


@pytest.mark.parametrize(("name", "count"), [("must_c", 6), ("TEMPLATE", 1)])
def test_the_configs_have_valid_options_only(name, count):
    import inspect

    from speechllm.decoding.options import check_decoding_options
    from speechllm.models.bridge import BRIDGES
    from speechllm.models.encoder import SpeechEncoder
    from speechllm.models.encoders import ENCODERS
    from speechllm.models.llm import LanguageModel
    from speechllm.models.speech_llm import SpeechLLM
    from speechllm.text.prompts import read_prompts

    conf = ROOT / "egs2" / name / "speechllm1" / "conf"
    configs = sorted(conf.glob("train*.yaml"))
    assert len(configs) == count
    for path in configs:
        config = yaml.safe_load(path.read_text())
        options = {
            "encoder_conf": [ENCODERS[config["encoder"]], SpeechEncoder],
            "bridge_conf": [BRIDGES[config["bridge"]]],
            "llm_conf": [LanguageModel],
            "model_conf": [SpeechLLM],
        }
        for key, classes in options.items():
            known = {n for c in classes for n in inspect.signature(c).parameters}
            assert set(config[key]) <= known, (path.name, key)
    decoding = yaml.safe_load((conf / "decode.yaml").read_text())
    check_decoding_options(decoding, "decode.yaml")
    prompts = read_prompts(conf / "prompts.yaml")
    assert set(prompts.tasks) == {"asr", "st", "asr_st"}


@pytest.mark.parametrize(
    "config", sorted(p.name for p in conf("must_c").glob("train*"))
)
def test_the_command_for_fsdp_in_the_readme_is_accepted(tmp_path, monkeypatch, config):
    monkeypatch.setattr(lightning_task, "find_spec", lambda name: name)
    monkeypatch.setattr(lightning_task, "quantization_obstacle", lambda: "")
    readme = (conf("must_c").parent / "README.md").read_text("utf-8")
    options = re.search('--strategy fsdp --train_args "(.*)"', readme)[1].split()
    words = ["--strategy", "fsdp", "--output_dir", str(tmp_path), *options]
    words += ["--config", str(conf("must_c") / config)]
    args = lightning_task.LightningTask.parse(words)
    lightning_task.check_lightning(args)
    assert args.llm_conf["lora"]["r"] == 16


def test_both_corpora_have_the_same_configs():
    names = []
    for path in sorted((ROOT / "egs2/must_c/speechllm1/conf").glob("train_*.yaml")):
        other = ROOT / "egs2/covost2/speechllm1/conf" / path.name
        assert path.read_text() == other.read_text()
        names.append(path.name)
    assert len(names) == 6


@pytest.fixture(scope="module")
def tiny_models_of(tmp_path_factory, tiny_whisper, smollm2) -> dict[str, Path]:
    """Return a tiny random model for each model name in the configs."""
    from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

    root = tmp_path_factory.mktemp("sizes")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    config = Gemma2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=len(tokenizer),
    )
    Gemma2ForCausalLM(config).save_pretrained(root / "gemma")
    tokenizer.save_pretrained(root / "gemma")
    llama = write_tiny_llm(root / "llama", smollm2, size=64)
    return {
        "openai/whisper-large-v3": tiny_whisper,
        "facebook/hubert-large-ll60k": write_tiny_hubert(root / "hubert", "layer"),
        "google/gemma-2-9b-it": root / "gemma",
        "meta-llama/Meta-Llama-3-8B-Instruct": llama,
        "HuggingFaceTB/SmolLM2-1.7B-Instruct": llama,
    }


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "egs2/must_c/speechllm1/conf").glob("train_*.yaml")),
    ids=lambda path: path.stem,
)
def test_each_config_takes_a_step(path, tmp_path, train, tiny_models_of):
    """Only the models' names and the batch size are changed."""
    config = yaml.safe_load(path.read_text())
    for part in ("encoder_conf", "llm_conf"):
        config[part]["model"] = str(tiny_models_of[config[part]["model"]])
    small = {
        "max_epoch": 1,
        "num_iters_per_epoch": 1,
        "num_workers": 0,
        "use_tensorboard": False,
    }
    prompts = path.with_name("prompts.yaml")
    train(
        tmp_path / "exp",
        "--prompts",
        str(prompts),
        **{**config, **small, "batch_bins": 100000, "accum_grad": 1},
    )
    trained = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())
    assert trained["llm_conf"]["tuning"] == config["llm_conf"]["tuning"]
    state = torch.load(tmp_path / "exp" / "1epoch.pth", weights_only=True)
    parts = {name.split(".")[0] for name in state}
    assert parts == {"bridge", "llm", "ctc"}
    assert any(value.any() for name, value in state.items() if "lora_B" in name)
