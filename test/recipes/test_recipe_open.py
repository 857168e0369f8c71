"""The recipes of LibriSpeech and FLEURS on generated corpora, with tiny models."""

from __future__ import annotations

import inspect
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fleurs_corpus
import librispeech_corpus
import pytest
import torch
import yaml
from recipe_clone import ROOT, TWO_STEPS, clone, conf, run
from tiny_models import write_tiny_hubert, write_tiny_llm, write_tokenizer
from warm_python import warm_python

RECIPES = ("librispeech", "fleurs")
TRAINING = {
    "bridge": "convolution",
    "llm": "causal_lm",
    "model_conf": {"ctc_weight": 0.3},
    **TWO_STEPS,
}


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with warm_python(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1") as variables:
        yield variables


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "options", "sets", "groups"),
    [
        pytest.param(
            "librispeech",
            librispeech_corpus.write_corpus,
            "--train_set train_clean_100 --local_data_opts|--allow_partial true",
            {"dev_clean", "dev_other", "test_clean", "test_other"},
            {("asr", "en", "en")},
            id="librispeech",
        ),
        pytest.param(
            "fleurs",
            fleurs_corpus.write_corpus,
            "",
            {"test"},
            {("asr", "en", "en"), ("st", "en", "de"), ("asr_st", "en", "de")},
            id="fleurs",
        ),
        pytest.param(
            "fleurs",
            fleurs_corpus.write_corpus,
            "--lang ja",
            {"test"},
            {("asr", "ja", "ja")},
            id="fleurs-ja",
        ),
    ],
)
def test_all_stages_end_in_a_table(
    tmp_path: Path,
    environment: dict[str, str],
    tiny_whisper: Path,
    tiny_llm: Path,
    name: str,
    write: Callable[[Path], Path],
    options: str,
    sets: set[str],
    groups: set[tuple[str, str, str]],
) -> None:
    folder = clone(tmp_path / "clone", name) / name / "speechllm1"
    words, _, last = options.partition("|")
    arguments = [f"--{name}_dir", str(write(tmp_path / "corpus")), *words.split()]
    arguments += [last] if last else []
    encoder = {"encoder": "whisper", "encoder_conf": {"model": str(tiny_whisper)}}
    llm = {"model": str(tiny_llm), "tuning": "lora", "lora": {"r": 2}}
    config = {**encoder, **TRAINING, "llm_conf": llm}
    (folder / "conf" / "tiny.yaml").write_text(yaml.safe_dump(config))
    decoding = {"batch_size": 4, "tokens_per_second": 1.0, "extra_tokens": 2.0}
    (folder / "conf" / "decode_tiny.yaml").write_text(yaml.safe_dump(decoding))
    arguments += ["--train_config", "conf/tiny.yaml", "--ngpu", "0", "--nj", "1"]
    arguments += ["--inference_config", "conf/decode_tiny.yaml"]
    done = run(folder, "./run.sh", *arguments, env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    for stage in (1, 3, 4, 5, 6, 7, 9, 11, 12, 13):
        assert f"Stage {stage}: done in" in done.stdout
    rows = json.loads((folder / "exp" / "RESULTS.json").read_text())
    found = {(r["task"], r["language"], r["target_language"]) for r in rows}
    assert found == groups
    assert {row["set"] for row in rows} == sets


@pytest.mark.parametrize("name", RECIPES)
def test_a_missing_folder_is_named_with_the_download(tmp_path: Path, name: str) -> None:
    folder = clone(tmp_path, name) / name / "speechllm1"
    done = run(folder, "./run.sh", "--stop_stage", "1")
    assert done.returncode == 1
    line = f"{name.upper()}= in {folder}/db.sh is empty; write the folder"
    assert line in done.stderr
    assert f"or give --{name}_dir or --download true" in done.stderr


@pytest.mark.parametrize(
    ("name", "write", "options", "place"),
    [
        (
            "librispeech",
            librispeech_corpus.write_corpus,
            ["--local_data_opts", "--allow_partial true --url nowhere"],
            "downloads",
        ),
        ("fleurs", fleurs_corpus.write_corpus, [], "downloads/fleurs"),
    ],
)
def test_downloads_stay_in_a_folder_of_the_recipe(
    tmp_path: Path,
    environment: dict[str, str],
    name: str,
    write: Callable,
    options: list[str],
    place: str,
) -> None:
    """What is there is not downloaded again; no server can be reached here."""
    folder = clone(tmp_path, name) / name / "speechllm1"
    write(folder / place)
    for archive in folder.rglob("*.tar.gz"):
        with tarfile.open(archive) as tar:
            tar.extractall(archive.parent, filter="data")
        archive.unlink()
    words = ["./run.sh", "--download", "true", "--stop_stage", "1", *options]
    done = run(folder, *words, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (folder / "data" / "dev" / "wav.scp").read_text().splitlines()
    assert lines and all(str(folder / place) in line for line in lines)
    (next((folder / place).rglob("dev*")) / "gone").parent.rename(tmp_path / "gone")
    done = run(folder, *words, env=environment)
    assert done.returncode == 1


def test_an_unknown_training_set_is_refused() -> None:
    folder = ROOT / "egs2" / "librispeech" / "speechllm1"
    done = run(folder, "./run.sh", "--train_set", "train_100")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "--train_set takes train_960, train_clean_460 or train_clean_100" in (
        done.stderr
    )


STUB = """#!/usr/bin/env bash
printf '%s\\n' "$@" > words
"""


@pytest.mark.parametrize(
    ("options", "tasks", "suffix", "data"),
    [
        ([], "asr:en st:en:de asr_st:en:de", "en_de", "--src_lang en --tgt_lang de"),
        (["--lang", "ja"], "asr:ja", "ja", "--src_lang ja"),
        (
            ["--src_lang", "de_de cmn_hans_cn", "--tgt_lang", "zh en"],
            "asr:de st:de:zh st:de:en asr:zh st:zh:en asr_st:de:zh asr_st:de:en "
            "asr_st:zh:en",
            "de_zh_zh_en",
            "--src_lang de_de,cmn_hans_cn --tgt_lang zh,en",
        ),
    ],
)
def test_languages_of_fleurs_become_tasks(
    tmp_path: Path, options: list[str], tasks: str, suffix: str, data: str
) -> None:
    folder = clone(tmp_path, "fleurs") / "fleurs" / "speechllm1"
    (folder / "speechllm.sh").unlink()
    (folder / "speechllm.sh").write_text(STUB)
    (folder / "speechllm.sh").chmod(0o755)
    done = run(folder, "./run.sh", *options)
    assert done.returncode == 0, done.stderr
    words = (folder / "words").read_text().splitlines()
    assert words[words.index("--train_tasks") + 1].split() == tasks.split()
    assert words[words.index("--lang") + 1] == suffix
    passed = words[words.index("--local_data_opts") + 1]
    assert passed.split() == f"{data} --download false".split()


@pytest.mark.parametrize("name", RECIPES)
def test_the_configs_have_valid_options_only(name: str) -> None:
    from speechllm.decoding.options import check_decoding_options
    from speechllm.models.bridge import BRIDGES
    from speechllm.models.encoder import SpeechEncoder
    from speechllm.models.encoders import ENCODERS
    from speechllm.models.llm import LanguageModel
    from speechllm.models.speech_llm import SpeechLLM
    from speechllm.text.prompts import read_prompts

    for path in conf(name).glob("train*.yaml"):
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
    for path in conf(name).glob("decode*.yaml"):
        decoding = yaml.safe_load(path.read_text())
        for option in ("batch_size", "dtype", "engine"):
            decoding.pop(option, None)
        check_decoding_options(decoding, path.name)
    for path in conf(name).glob("prompts*.yaml"):
        assert "asr" in read_prompts(path).tasks


@pytest.mark.parametrize("name", ["train_nue_asr", "train_ctc_averaging"])
def test_every_value_of_nue_asr_has_its_source(name: str) -> None:
    text = (conf("librispeech") / f"{name}.yaml").read_text("utf-8")
    lines = text.partition("from here to the end")[0].splitlines()
    values = [line for line in lines if re.match(r" *\w+: +[^# ]", line)]
    assert len(values) > 8
    for line in values:
        assert re.search(" # (paper|released|ours)\\b", line), line


@pytest.fixture(scope="module")
def tiny_models_of(
    tmp_path_factory: pytest.TempPathFactory, tiny_whisper: Path, smollm2: Path
) -> dict[str, Path]:
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
    hubert = {norm: write_tiny_hubert(root / norm, norm) for norm in ("group", "layer")}
    return {
        "openai/whisper-small": tiny_whisper,
        "openai/whisper-large-v3": tiny_whisper,
        "facebook/hubert-base-ls960": hubert["group"],
        "facebook/hubert-large-ll60k": hubert["layer"],
        "google/gemma-2-9b-it": llama,
        "HuggingFaceTB/SmolLM2-360M-Instruct": llama,
        "Qwen/Qwen2.5-0.5B-Instruct": llama,
        "EleutherAI/pythia-2.8b": root / "neox",
    }


@pytest.mark.parametrize(
    "path",
    sorted(p for n in RECIPES for p in conf(n).glob("train*") if not p.is_symlink()),
    ids=lambda path: f"{path.parts[-4]}-{path.stem}",
)
def test_each_config_takes_a_step(
    path: Path, tmp_path: Path, train: Callable, tiny_models_of: dict[str, Path]
) -> None:
    """Only the models' names and the sizes of batches are changed."""
    config = yaml.safe_load(path.read_text())
    for part in ("encoder_conf", "llm_conf"):
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
    kind = "_nue_asr" if config["llm_conf"]["tuning"] == "full" else ""
    prompts = path.with_name(f"prompts{kind}.yaml")
    train(tmp_path / "exp", "--prompts", str(prompts), **{**config, **small})
    state = torch.load(tmp_path / "exp" / "1epoch.pth", weights_only=True)
    parts = {name.split(".")[0] for name in state}
    trained = {"encoder"} if config["encoder_conf"]["trainable_layers"] else set()
    assert parts == {"bridge", "llm", "ctc"} | trained
