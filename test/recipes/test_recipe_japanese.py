"""The Japanese recipes on generated corpora: all stages, with tiny random models."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from csj_corpus import write_corpus
from file_server import serve
from recipe_clone import ROOT, clone
from tiny_models import write_tiny_hubert

RECIPES = ("csj", "reazonspeech", "jsut", "common_voice")
LINES = ("CSJ", "REAZONSPEECH", "JSUT", "COMMONVOICE")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        arguments,
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=2400,
    )


def write_tiny_neox(folder: Path) -> Path:
    """Write a two-layer GPT-NeoX with byte tokens and rinna's special tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(5)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>", "[SEP]", "[PAD]"]
    vocabulary = {token: n for n, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="[SEP]",
        pad_token="[PAD]",
    ).save_pretrained(folder)
    config = GPTNeoXConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    return folder


def write_jsut(root: Path, others: tuple[str, ...] = ()) -> Path:
    """Write three and other utterances of JSUT basic5000, with noise as audio."""
    folder = root / "jsut_ver1.1" / "basic5000"
    (folder / "wav").mkdir(parents=True)
    noise = np.random.default_rng(1).normal(0, 0.01, 72000)
    lines = []
    sentences = [f"第{number}の文です。" for number in (1, 2, 3)]
    for number, sentence in enumerate([*sentences, *others], 1):
        lines.append(f"BASIC5000_{number:04d}:{sentence}\n")
        soundfile.write(folder / "wav" / f"BASIC5000_{number:04d}.wav", noise, 48000)
    (folder / "transcript_utf8.txt").write_text("".join(lines), "utf-8")
    return folder.parent


def shrink(config: Path, models: Path) -> Path:
    """Write a copy of a config with tiny models and one short epoch."""
    options = yaml.safe_load(config.read_text("utf-8"))
    options["encoder_conf"]["model"] = str(models / "hubert")
    options["llm_conf"]["model"] = str(models / "neox")
    options |= {"max_epoch": 1, "num_iters_per_epoch": 3, "accum_grad": 1}
    options |= {"batch_bins": 500000, "num_workers": 0, "keep_nbest_models": 1}
    target = config.with_name("tiny.yaml")
    target.write_text(yaml.safe_dump(options), "utf-8")
    return target


@pytest.mark.slow
def test_csj_from_corpus_to_table_and_its_model_on_jsut(tmp_path):
    recipes = clone(tmp_path / "clone", "csj", "jsut", "reazonspeech")
    models = tmp_path / "models"
    write_tiny_hubert(models / "hubert", "group")
    write_tiny_neox(models / "neox")
    corpus = write_corpus(tmp_path / "CSJ")
    csj = recipes / "csj" / "speechllm1"
    config = shrink(csj / "conf" / "train_nue_asr.yaml", models)
    inference = ["--inference_args", "--batch_size 4"]
    done = run(
        csj,
        *("./run.sh", "--local_data_opts", f"--csj_dir {corpus} --style fluent"),
        *("--train_config", f"conf/{config.name}", "--ngpu", "0", "--nj", "1"),
        *inference,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    for stage in (1, 3, 4, 5, 6, 7, 9, 11, 12, 13):
        assert f"Stage {stage}: done in" in done.stdout
    rows = json.loads((csj / "exp" / "RESULTS.json").read_text("utf-8"))
    assert {row["set"] for row in rows} == {"eval1", "eval2", "eval3"}
    assert {row["language"] for row in rows} == {"ja"}
    assert any(row["metric"].upper().startswith("CER") for row in rows)

    jsut = recipes / "jsut" / "speechllm1"
    db = (jsut / "db.sh").read_text()
    line = f"JSUT={write_jsut(tmp_path)}\n"
    (jsut / "db.sh").write_text(db.replace("JSUT=\n", line))
    model = "../../csj/speechllm1/exp/speechllm_tiny/model"
    done = run(
        jsut, "./run.sh", "--model", model, "--ngpu", "0", "--nj", "1", *inference
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    rows = json.loads((jsut / "exp" / "RESULTS.json").read_text("utf-8"))
    assert {row["set"] for row in rows} == {"jsut_basic5000"}
    assert {row["utterances"] for row in rows} == {3}


def test_jsut_without_a_model_prepares_data(tmp_path):
    recipes = clone(tmp_path / "clone", "jsut", "reazonspeech")
    corpus = write_jsut(tmp_path, ("♪ ♪",))  # normalises to nothing
    options = ["--local_data_opts", f"--jsut_dir {corpus}", "--nj", "1"]
    jsut = recipes / "jsut" / "speechllm1"
    done = run(jsut, "./run.sh", *options)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    text = (jsut / "dump/examples/jsut_basic5000/text").read_text("utf-8")
    assert text.splitlines()[0] == "BASIC5000_0001-asr-ja 第1の文です。"
    assert text.splitlines()[3] == "BASIC5000_0004-asr-ja ♪ ♪"
    assert not (jsut / "exp").exists() or not list((jsut / "exp").glob("speechllm_*"))
    done = run(jsut, "./run.sh", "--model", "nowhere")
    assert done.returncode == 1 and "--model: no folder 'nowhere'" in done.stderr


def test_reazonspeech_prepares_the_other_test_sets(tmp_path):
    recipe = clone(tmp_path / "clone", "reazonspeech") / "reazonspeech" / "speechllm1"
    root = tmp_path / "rs"
    (root / "000").mkdir(parents=True)
    lines = []
    for name in "abcd":
        soundfile.write(root / "000" / f"{name}.flac", np.zeros(1600), 16000)
        lines.append(f"000/{name}.flac\tこれは{name}です。\n")
    (root / "all.tsv").write_text("".join(lines), "utf-8")
    voices = tmp_path / "cv" / "ja"
    (voices / "clips").mkdir(parents=True)
    (voices / "clips" / "common_voice_ja_1.mp3").write_bytes(b"")
    header = "client_id\tpath\tsentence\n"
    row = f"{'a' * 128}\tcommon_voice_ja_1.mp3\tはい。\n"
    (voices / "test.tsv").write_text(header + row, "utf-8")
    (recipe / "db.sh").write_text(
        f"JSUT={write_jsut(tmp_path)}\nCOMMONVOICE={voices.parent}\n"
        f"REAZONSPEECH={root}\n"
    )
    sizes = ["--dev_utterances", "1", "--test_utterances", "1"]
    splits = ["--common_voice_split_dir", str(tmp_path / "cv8")]
    (tmp_path / "cv8").mkdir()
    (voices / "test.tsv").rename(tmp_path / "cv8" / "test.tsv")
    done = run(recipe, "local/data.sh", *sizes, *splits)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.name for path in (recipe / "data").iterdir()}
    assert made == {"train", "dev", "test", "jsut_basic5000", "common_voice_ja_test"}


def test_stage_1_downloads_reazonspeech(tmp_path):
    recipe = clone(tmp_path / "clone", "reazonspeech") / "reazonspeech" / "speechllm1"
    stream, content = io.BytesIO(), io.BytesIO()
    soundfile.write(content, np.zeros(1600), 16000, format="FLAC")
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in "abcd":
            member = tarfile.TarInfo(f"000/{name}.flac")
            member.size = len(content.getvalue())
            archive.addfile(member, io.BytesIO(content.getvalue()))
    rows = "".join(f"000/{name}.flac\tこれは{name}です。\n" for name in "abcd")
    files = {
        "/reazonspeech-v1/tsv/small.tsv": rows.encode(),
        "/reazonspeech-v1/data/000.tar": stream.getvalue(),
    }
    options = ["--download", "true", "--size", "small-v1", "--dev_utterances", "1"]
    with serve(files) as server:
        options += ["--test_utterances", "1", "--url", server.url]
        done = run(recipe, "local/data.sh", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    shard = recipe.resolve() / "downloads/reazonspeech-v1/data/000.tar"
    lines = (recipe / "data/train/wav.scp").read_text().splitlines()
    assert [line.partition("+")[0].rpartition(":")[0] for line in lines] == [
        f"rs-000_{name} {shard}" for name in "cd"
    ]


@pytest.mark.parametrize(("name", "line"), list(zip(RECIPES, LINES, strict=True)))
def test_a_missing_line_in_db_sh(tmp_path, name, line):
    recipes = clone(tmp_path / "clone", *{name, "reazonspeech"})
    folder = recipes / name / "speechllm1"
    done = run(folder, "./run.sh", "--stop_stage", "1")
    assert done.returncode == 1
    assert f"{line}= in {folder}/db.sh is empty; write the folder" in done.stderr


@pytest.mark.parametrize("name", ["csj", "reazonspeech"])
def test_the_configs_have_valid_options_only(name):
    import inspect

    from speechllm.decoding.options import check_decoding_options
    from speechllm.inference.backends import ENGINES
    from speechllm.models.bridge import BRIDGES
    from speechllm.models.encoder import SpeechEncoder
    from speechllm.models.encoders import ENCODERS
    from speechllm.models.llm import LanguageModel
    from speechllm.models.speech_llm import SpeechLLM
    from speechllm.text.prompts import read_prompts
    from speechllm.training.task import SpeechLLMTask

    conf = ROOT / "egs2" / name / "speechllm1" / "conf"
    arguments = {action.dest for action in SpeechLLMTask.get_parser()._actions}
    for path in conf.glob("train_*.yaml"):
        config = yaml.safe_load(path.read_text("utf-8"))
        assert set(config) <= arguments
        for part, kinds in (
            ("encoder", (ENCODERS[config["encoder"]], SpeechEncoder)),
            ("bridge", (BRIDGES.get(config["bridge"]),)),
            ("llm", (LanguageModel,)),
            ("model", (SpeechLLM,)),
        ):
            options = set(config.get(f"{part}_conf", {}))
            for kind in filter(None, kinds):
                options -= set(inspect.signature(kind).parameters)
            assert not options, f"{path}: {options}"
    for path in conf.glob("decode_*.yaml"):
        options = yaml.safe_load(path.read_text("utf-8"))
        assert options.pop("batch_size") >= 1
        assert options.pop("engine", "auto") in ENGINES
        check_decoding_options(options, path.name)
    assert read_prompts(conf / "prompts.yaml").text("asr", "ja", "ja") == (
        "<s>{speech}[SEP]"
    )
