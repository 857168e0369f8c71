"""Recipes of Fish Fillets and Europarl-ST: generated corpora, tiny models."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import europarl_st_corpus
import fillets_corpus
import pytest
import torch
import yaml
from recipe_clone import TWO_STEPS, clone, conf, run
from tiny_models import write_tiny_hubert, write_tiny_llm, write_tokenizer
from warm_python import warm_python

RECIPES = ("europarl_st", "fillets")
DECODING = {"batch_size": 8, "tokens_per_second": 1.0, "extra_tokens": 2.0}
STUB = """#!/usr/bin/env bash
printf '%s\\n' "$@" > words
"""


def recipe_folder(root: Path, name: str) -> Path:
    """Return the folder of a recipe in a new clone, with what its configs link to."""
    return clone(root, name, "mini_asterisk") / name / "speechllm1"


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with warm_python(HF_HUB_OFFLINE="1") as variables:
        yield variables


def write_configs(folder: Path, whisper: Path, llm: Path, bridge: str) -> list[str]:
    """Write configs of tiny models; return the options that name them."""
    encoder = {"encoder": "whisper", "encoder_conf": {"model": str(whisper)}}
    warmup = {
        **encoder,
        **TWO_STEPS,
        "bridge": None,
        "llm": None,
        "model_conf": {"ctc_weight": 1.0},
        "best_model_criterion": [["valid", "cer_ctc", "min"]],
    }
    train = {
        **encoder,
        **TWO_STEPS,
        "bridge": bridge,
        "llm": "causal_lm",
        "llm_conf": {"model": str(llm), "tuning": "lora", "lora": {"r": 2}},
        "model_conf": {"ctc_weight": 0.0},
    }
    for name, content in (("warmup", warmup), ("train", train), ("decode", DECODING)):
        (folder / "conf" / f"{name}_x.yaml").write_text(yaml.safe_dump(content))
    return ["--train_config", "conf/train_x.yaml", "--ngpu", "0", "--nj", "1"] + [
        *("--inference_config", "conf/decode_x.yaml")
    ]


@pytest.mark.slow
def test_all_stages_of_fillets(tmp_path, environment, tiny_whisper, tiny_llm):
    folder = recipe_folder(tmp_path / "clone", "fillets")
    corpus = fillets_corpus.write_corpus(tmp_path / "corpus", keys=2)
    words = write_configs(folder, tiny_whisper, tiny_llm, "transcript")
    words += ["--warmup_config", "conf/warmup_x.yaml", "--tgt_lang", "en de"]
    words += ["--tiny", "true", "--fillets_dir", str(corpus)]
    done = run(folder, "./run.sh", *words, env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    for stage in range(1, 14):
        assert f"Stage {stage}: done in" in done.stdout
    exp = folder / "exp_tiny_cs_nl_en_de"
    rows = json.loads((exp / "RESULTS.json").read_text())
    assert {(r["task"], r["language"], r["target_language"]) for r in rows} == {
        ("asr_st", source, target) for source in ("cs", "nl") for target in ("en", "de")
    }
    assert {"wer", "cer", "bleu", "chrf"} <= {row["metric"] for row in rows}
    dump = folder / "dump_tiny_cs_nl_en_de"
    trained = (dump / "examples/train_sp/text").read_text("utf-8").splitlines()
    assert all(line.count("\t") == 1 for line in trained)
    # 12 utterances per language at three speeds, two of them without German
    assert len(trained) == 3 * (12 + 12 + 10 + 10)


@pytest.mark.slow
def test_all_stages_of_europarl_st(tmp_path, environment, tiny_whisper, tiny_llm):
    folder = recipe_folder(tmp_path / "clone", "europarl_st")
    corpus = europarl_st_corpus.write_pair(tmp_path / "corpus")
    words = write_configs(folder, tiny_whisper, tiny_llm, "convolution")
    words += ["--europarl_st_dir", str(corpus), "--noisy", "true"]
    done = run(folder, "./run.sh", *words, env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    for stage in (1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13):
        assert f"Stage {stage}: done in" in done.stdout
    rows = json.loads((folder / "exp/RESULTS.json").read_text())
    assert {(r["task"], r["language"], r["target_language"]) for r in rows} == {
        ("asr", "en", "en"),
        ("st", "en", "de"),
        ("asr_st", "en", "de"),
    }
    texts = (folder / "dump/examples/train/text").read_text("utf-8")
    assert "Noisy words." in texts and "Frau Präsidentin, danke." in texts


@pytest.mark.parametrize(
    ("name", "options", "tasks", "passed"),
    [
        (
            "fillets",
            [],
            "asr_st:cs:en asr_st:nl:en",
            ["--warmup_tasks", " asr:cs asr:nl", "--expdir", "exp"],
        ),
        (
            "fillets",
            ["--src_lang", "nl", "--tgt_lang", "cs nl", "--joint", "false"],
            "asr:nl st:nl:cs",
            ["--warmup_tasks", " asr:nl", "--dumpdir", "dump_nl_cs_nl_separate"],
        ),
        (
            "europarl_st",
            [],
            "asr:en st:en:de asr_st:en:de",
            ["--extra_train_sets", "", "--lang", "en_de"],
        ),
        (
            "europarl_st",
            ["--src_lang", "de fr", "--tgt_lang", "en fr", "--noisy", "true"],
            "asr:de st:de:en st:de:fr asr:fr st:fr:en asr_st:de:en asr_st:de:fr "
            "asr_st:fr:en",
            ["--extra_train_sets", "train-noisy", "--lang", "de_fr_en_fr_noisy"],
        ),
    ],
)
def test_languages_become_tasks(tmp_path, name, options, tasks, passed):
    folder = recipe_folder(tmp_path, name)
    (folder / "speechllm.sh").unlink()
    (folder / "speechllm.sh").write_text(STUB)
    (folder / "speechllm.sh").chmod(0o755)
    done = run(folder, "./run.sh", *options)
    assert done.returncode == 0, done.stderr
    words = (folder / "words").read_text().split("\n")
    assert words[words.index("--train_tasks") + 1].split() == tasks.split()
    for option, value in zip(passed[::2], passed[1::2], strict=True):
        assert words[words.index(option) + 1] == value


def test_a_missing_folder_is_named_with_the_download(tmp_path):
    folder = recipe_folder(tmp_path, "europarl_st")
    done = run(folder, "./run.sh", "--stop_stage", "1")
    assert done.returncode == 1
    assert f"EUROPARL_ST= in {folder}/db.sh is empty; write the folder" in done.stderr
    assert "or give --europarl_st_dir or --download true" in done.stderr


def test_a_download_stays_in_the_folder_of_the_recipe(tmp_path):
    """What is there is not downloaded again; no server can be reached here."""
    folder = recipe_folder(tmp_path, "europarl_st")
    europarl_st_corpus.write_pair(folder / "downloads")
    words = ["./run.sh", "--download", "true", "--stop_stage", "1"]
    words += ["--local_data_opts", "--url http://127.0.0.1:1/v1.1.tar.gz"]
    done = run(folder, *words, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (folder / "data/dev/wav.scp").read_text().splitlines()
    assert lines and all(f"{folder}/downloads/v1.1/en/audios" in one for one in lines)


def test_baselines_of_fillets_need_stage_5(tmp_path):
    done = run(recipe_folder(tmp_path, "fillets"), "local/baselines.sh")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "run ./run.sh --stop_stage 5 first" in done.stderr


@pytest.mark.parametrize("name", RECIPES)
def test_the_configs_have_valid_options_only(name):
    from speechllm.decoding.options import check_decoding_options
    from speechllm.models.bridge import BRIDGES
    from speechllm.models.encoder import SpeechEncoder
    from speechllm.models.encoders import ENCODERS
    from speechllm.models.llm import LanguageModel
    from speechllm.models.speech_llm import SpeechLLM
    from speechllm.text.prompts import read_prompts

    for path in [*conf(name).glob("train*.yaml"), *conf(name).glob("warmup.yaml")]:
        config = yaml.safe_load(path.read_text())
        options = {
            "encoder_conf": [ENCODERS[config["encoder"]], SpeechEncoder],
            "model_conf": [SpeechLLM],
        }
        if config["llm"]:
            options["bridge_conf"] = [BRIDGES[config["bridge"]]]
            options["llm_conf"] = [LanguageModel]
        for key, classes in options.items():
            known = {n for c in classes for n in inspect.signature(c).parameters}
            assert set(config[key]) <= known, (path.name, key)
    for path in conf(name).glob("decode*.yaml"):
        check_decoding_options(yaml.safe_load(path.read_text()), path.name)
    for path in conf(name).glob("prompts*.yaml"):
        assert set(read_prompts(path).tasks) == {"asr", "st", "asr_st"}


@pytest.fixture(scope="module")
def tiny_models_of(tmp_path_factory, tiny_whisper, smollm2) -> dict[str, Path]:
    """Return a tiny random model for each model name in the configs."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    root = tmp_path_factory.mktemp("sizes")
    llama = write_tiny_llm(root / "llama", smollm2, size=64)
    (root / "neox").mkdir()
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vocabulary = len(write_tokenizer(root / "neox"))
    config = GPTNeoXConfig(vocab_size=vocabulary, intermediate_size=64, **sizes)
    GPTNeoXForCausalLM(config).save_pretrained(root / "neox")
    return {
        "openai/whisper-base": tiny_whisper,
        "openai/whisper-small": tiny_whisper,
        "facebook/hubert-base-ls960": write_tiny_hubert(root / "hubert", "group"),
        "HuggingFaceTB/SmolLM2-135M-Instruct": llama,
        "Qwen/Qwen2.5-0.5B-Instruct": llama,
        "EleutherAI/pythia-2.8b": root / "neox",
    }


@pytest.mark.parametrize(
    "path",
    sorted(
        path
        for name in RECIPES
        for kind in ("train", "warmup")
        for path in conf(name).glob(f"{kind}*")
        if not path.is_symlink()
    ),
    ids=lambda path: f"{path.parts[-4]}-{path.stem}",
)
def test_each_config_takes_a_step(
    path: Path, tmp_path: Path, train: Callable, tiny_models_of: dict[str, Path]
):
    """Only the models' names and the sizes of batches are changed."""
    config = yaml.safe_load(path.read_text())
    parts = ["encoder_conf", *(["llm_conf"] if config["llm"] else [])]
    for part in parts:
        config[part]["model"] = str(tiny_models_of[config[part]["model"]])
    if config["encoder_conf"]["trainable_layers"] == 4:  # the tiny encoder has two
        config["encoder_conf"]["trainable_layers"] = 2
    small = {
        "max_epoch": 1,
        "num_iters_per_epoch": 1,
        "num_workers": 0,
        "use_tensorboard": False,
        "batch_bins": 100000,
        "accum_grad": 1,
    }
    kind = "_nue_asr" if "nue_asr" in path.name else ""
    prompts = path.with_name(f"prompts{kind}.yaml")
    train(tmp_path / "exp", "--prompts", str(prompts), **{**config, **small})
    state = torch.load(tmp_path / "exp" / "1epoch.pth", weights_only=True)
    found = {name.split(".")[0] for name in state}
    expected = {"encoder"} if config["encoder_conf"]["trainable_layers"] else set()
    expected |= {"ctc"} | ({"bridge", "llm"} if config["llm"] else set())
    assert found == expected
