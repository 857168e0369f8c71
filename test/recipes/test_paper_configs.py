"""The paper's comparisons: every config runs with its command in the README.

Models of a few thousand random weights replace the real ones in the hub's cache, and
eSpeak NG speaks a few Japanese sentences. Only sizes and the number of steps are
changed, on the command line.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from csj_corpus import write_talk
from recipe_clone import ROOT, clone
from safetensors.torch import load_file
from tiny_models import (
    BOS,
    EOS,
    write_tiny_hubert,
    write_tiny_whisper,
    write_tokenizer,
)
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from warm_python import warm_python

from speechllm.corpora._espeak import Voice, speak

RECIPES = ("csj", "reazonspeech")
SENTENCES = (
    "きょうは よい てんきです",
    "あしたは あめが ふるでしょう",
    "でんしゃが おくれています",
    "かいぎは さんじからです",
    "ありがとう ございます",
    "おんせいを にんしきします",
    "こえで かいてみましょう",
    "とうきょうと おおさかの あいだ",
)
SIZES = (
    "--max_epoch 1 --num_iters_per_epoch 2 --accum_grad 1 --batch_bins 100000 "
    "--num_workers 0 --keep_nbest_models 1 --use_tensorboard false"
)


def conf(recipe: str) -> Path:
    return ROOT / "egs2" / recipe / "speechllm1" / "conf"


def files(kind: str) -> list:
    """Return test parameters (recipe, file) of all configs of a kind."""
    found = [(r, f.name) for r in RECIPES for f in sorted(conf(r).glob(f"{kind}_*"))]
    return [pytest.param(*pair, id="-".join(pair)) for pair in found]


def command(recipe: str, config: str) -> list[str]:
    """Return the words of the README's command for a config."""
    readme = (conf(recipe).parent / "README.md").read_text("utf-8")
    tables = readme.partition("<!-- paper_tables.py")[2].partition("<!-- end -->")[0]
    lines = {  # several tables may have the same command
        line
        for line in tables.splitlines()
        if line.startswith("./run.sh ") and f"conf/{config}" in line.split()
    }
    assert len(lines) == 1, f"{config} has no command, or several, in {recipe}'s README"
    return shlex.split(lines.pop())[1:]


def synthesise(number: int) -> np.ndarray:
    """Return the speech of a sentence, (samples,) at 16 kHz."""
    return speak(SENTENCES[number], Voice("ja", words_per_minute=220))


def write_csj(root: Path) -> Path:
    """Write two training talks, one for validation, one of each evaluation set."""
    talks = {"A02F0001": (0, 1, 2, 6), "S01F0003": (3, 4, 5), "A01M0264": (6, 7)}
    talks |= {"A01M0110": (6,), "A01M0056": (7,), "S00M0112": (0,)}  # evaluation
    for talk, numbers in talks.items():
        segments, pieces, time = [], [], 0.0
        for number in numbers:
            wave = synthesise(number)
            end = time + len(wave) / 16000
            segments.append((time, end, "L", SENTENCES[number].split()))
            pieces += [wave, np.zeros(16000, np.float32)]
            time = end + 1.0
        write_talk(root, talk, segments, "noncore", editions=("sdb",))
        path = root / "WAV" / "noncore" / f"{talk}.wav"
        soundfile.write(path, np.concatenate(pieces), 16000)
    return root


def write_reazonspeech(root: Path) -> Path:
    """Write eight recordings with captions."""
    (root / "000").mkdir(parents=True)
    lines = []
    for number, sentence in enumerate(SENTENCES):
        soundfile.write(root / f"000/{number}.flac", synthesise(number), 16000)
        lines.append(f"000/{number}.flac\t{sentence.replace(' ', '')}\n")
    (root / "all.tsv").write_text("".join(lines), "utf-8")
    return root


def write_gpt(folder: Path) -> None:
    """Write a two-layer GPT-NeoX with a tokenizer like rinna's."""
    folder.mkdir(parents=True)
    vocabulary = len(write_tokenizer(folder))
    torch.manual_seed(5)
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        use_parallel_residual=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)


def snapshot(hub: Path, name: str) -> Path:
    """Return the folder of a model in the hub's cache."""
    folder = hub / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40)
    return folder / "snapshots" / ("0" * 40)


class Recipes:
    """A clone with both corpora prepared; runs are cached."""

    def __init__(self, root: Path, environment: dict[str, str]):
        self.environment = environment
        self.folder = clone(root / "clone", *RECIPES)
        self.hub = Path(environment["HF_HUB_CACHE"])
        self.row = cache(self.row)
        hubert = write_tiny_hubert(
            snapshot(self.hub, "yky-h/japanese-hubert-base"), "group"
        )
        (hubert / "preprocessor_config.json").write_text('{"do_normalize": true}')
        write_gpt(snapshot(self.hub, "rinna/bilingual-gpt-neox-4b"))
        csj = f"--csj_dir {write_csj(root / 'CSJ')}"
        reazonspeech = f"--reazonspeech_dir {write_reazonspeech(root / 'RS')} "
        reazonspeech += "--dev_utterances 1 --test_utterances 1"
        for recipe, options in zip(RECIPES, (csj, reazonspeech), strict=True):
            done = self.run(
                recipe, "--stop_stage", "5", "--local_data_opts", options, "--nj", "1"
            )
            assert [n for n in range(6) if f"Stage {n}: done" in done] == [1, 3, 4, 5]

    def run(self, recipe: str, *arguments: str) -> str:
        """Run a recipe; return its output."""
        done = subprocess.run(
            ["./run.sh", *arguments],
            check=False,
            cwd=self.folder / recipe / "speechllm1",
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=2400,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def row(self, recipe: str, config: str) -> str:
        """Run a README's command with small sizes from stage 6; return its output."""
        words = command(recipe, config)
        arguments = ["--ngpu", "0", "--nj", "1", *words]
        if recipe == "csj":  # one of its three sets is enough here
            arguments += ["--test_sets", "eval1"]
        if "--stage" not in words:
            arguments += ["--stage", "6", "--train_args", SIZES]
        return self.run(recipe, *arguments)

    def experiment(self, recipe: str, config: str) -> Path:
        """Return the experiment folder of a config."""
        name = f"speechllm_{Path(config).stem}"
        return self.folder / recipe / "speechllm1" / "exp" / name

    def release(self) -> Path:
        """Store a model trained by the recipe as yky-h/nue-asr in the hub's cache."""
        folder = snapshot(self.hub, "yky-h/nue-asr")
        self.row("reazonspeech", "train_nue_asr.yaml")
        model = self.experiment("reazonspeech", "train_nue_asr") / "model"
        words = ["to_nue_asr", "--model", str(model), "--output", str(folder)]
        line = shlex.join(["python3", "-m", "speechllm.cli", *words])
        subprocess.run(["bash", "-c", line], check=True, env=self.environment)
        return folder


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> Recipes:
    root = tmp_path_factory.mktemp("paper")
    variables = {"HF_HUB_CACHE": str(root / "hub"), "HF_HUB_OFFLINE": "1"}
    with warm_python(**variables, SPEECHLLM_CACHE=str(root / "cache")) as environment:
        yield Recipes(root, environment)


@pytest.fixture(scope="module")
def released(recipes) -> Path:
    return recipes.release()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_file_has_a_test(recipe):
    tested = {p.values for kind in ("train", "decode") for p in files(kind)}
    for path in conf(recipe).iterdir():
        assert (recipe, path.name) in tested or path.name == "prompts.yaml"


@pytest.mark.parametrize(("recipe", "config"), files("train") + files("decode"))
def test_every_value_has_its_source(recipe, config):
    text = (conf(recipe) / config).read_text("utf-8")
    lines = text.partition("from here to the end")[0].splitlines()
    values = [line for line in lines if re.match(r" *\w+: +[^# ]", line)]
    assert values
    for line in values:
        assert re.search(" # (paper|released|ours)\\b", line), line


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "config"), files("train"))
def test_a_training_runs_all_stages(recipes, released, recipe, config):
    done = recipes.row(recipe, config)
    for stage in (6, 7, 9, 11, 12, 13):
        assert f"Stage {stage}: done in" in done
    experiment = recipes.experiment(recipe, config)
    given = yaml.safe_load((conf(recipe) / config).read_text("utf-8"))
    used = yaml.safe_load((experiment / "config.yaml").read_text("utf-8"))
    for part in ("encoder", "bridge", "llm"):
        assert used[part] == given[part]
        wanted = given.get(f"{part}_conf", {})
        assert wanted.items() <= (used.get(f"{part}_conf") or {}).items()
    results = experiment.parent / "RESULTS.json"
    rows = [
        r for r in json.loads(results.read_text()) if r["system"] == experiment.name
    ]
    assert rows and {row["language"] for row in rows} == {"ja"}


def state(recipes, recipe: str, config: str) -> dict[str, torch.Tensor]:
    """Return the weights of a config's exported model."""
    recipes.row(recipe, f"{config}.yaml")
    folder = recipes.experiment(recipe, config) / "model"
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_rows_differ_in_the_compared_part(recipes, recipe):
    parts = {
        config: {name.split(".")[0] for name in state(recipes, recipe, config)}
        for config in ("train_nue_asr", "train_gpt_frozen", "train_hubert_ctc")
    }
    assert parts == {
        "train_nue_asr": {"encoder", "bridge", "llm", "ctc"},
        "train_gpt_frozen": {"encoder", "bridge", "ctc"},
        "train_hubert_ctc": {"encoder", "ctc"},
    }
    adapted = state(recipes, recipe, "train_gpt_lora")
    names = [name for name in adapted if name.startswith("llm.")]
    assert names and all(".lora_" in name for name in names)

    gpt = snapshot(recipes.hub, "rinna/bilingual-gpt-neox-4b")
    pretrained = load_file(gpt / "model.safetensors")
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    for config, near in (("train_nue_asr", True), ("train_gpt_random", False)):
        trained = state(recipes, recipe, config)[f"llm.causal_lm.{name}"]
        change = (trained - pretrained[name]).abs().max().item()
        assert (0 < change < 0.01) == near

    losses = {}
    for config in ("train_nue_asr", "train_nue_asr_ctc_loss", "train_ctc_removal"):
        state(recipes, recipe, config)
        log = (recipes.experiment(recipe, config) / "train.log").read_text("utf-8")
        (results,) = re.findall(r"epoch results: \[train\] (.*?) \[valid\]", log)
        losses[config] = "loss_ctc=" in results
    assert list(losses.values()) == [False, True, True]


@pytest.mark.slow
def test_adaptation_is_initialised_from_the_released_model(recipes, released):
    """The bridge is trained further; encoder and GPT are the released ones."""
    adapted = state(recipes, "csj", "train_lora_adaptation")
    start = load_file(released / "model.safetensors")
    assert {name.split(".")[0] for name in adapted} == {"bridge", "llm", "ctc"}
    names = [name for name in adapted if name.startswith("llm.")]
    assert names and all(".lora_" in name for name in names)
    assert any(".lora_B." in name and adapted[name].any() for name in names)
    change = adapted["bridge.projection.weight"] - start["bridge_proj.weight"]
    assert 0 < change.abs().max() < 0.01
    folder = recipes.experiment("csj", "train_lora_adaptation") / "model"
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    assert list(config["stands_on"]) == ["yky-h/nue-asr"]


@pytest.mark.slow
def test_adaptation_is_initialised_from_an_own_training(recipes, released):
    """Run the README's command; the CTC labels of the two corpora differ."""
    recipes.row("reazonspeech", "train_nue_asr.yaml")
    readme = (conf("csj").parent / "README.md").read_text("utf-8")
    text = readme.partition("<!-- end -->")[2]  # after the tables and their commands
    (found,) = re.findall(r"```sh\n\./run\.sh (.*?)```", text, re.DOTALL)
    *words, options = shlex.split(found.replace("\\\n", " "))
    assert words[-1] == "--train_args"
    small = ["--stage", "6", "--stop_stage", "11", "--ngpu", "0", "--nj", "1"]
    recipes.run("csj", *words, f"{options} {SIZES}", *small)
    tag, llm = (words[words.index(option) + 1] for option in ("--train_tag", "--llm"))
    own = recipes.experiment("csj", f"{tag}_llm_{llm.replace('/', '_')}.yaml")
    adapted = load_file(own / "model" / "model.safetensors")
    start = state(recipes, "reazonspeech", "train_nue_asr")
    encoder = [name for name in start if name.startswith("encoder.")]
    assert encoder and all(torch.equal(adapted[n], start[n]) for n in encoder)
    size = {n: len(s["ctc.ctc_lo.bias"]) for n, s in (("a", adapted), ("s", start))}
    assert size["a"] != size["s"]


@pytest.mark.slow
def test_models_are_replaced_by_options(recipes, released, tmp_path):
    """All stages use the same models; the experiment has a folder of its own."""
    recipes.row("reazonspeech", "train_nue_asr.yaml")
    encoder = tmp_path / "Whisper tiny"
    write_tiny_whisper(encoder)
    models = ["--encoder", str(encoder), "--llm", "rinna/nue-asr"]
    small = ["--ngpu", "0", "--nj", "1", "--train_args", SIZES]
    done = recipes.run("reazonspeech", *models, *small, "--stage", "6")
    assert f"encoder {encoder} (whisper) in place of yky-h/japanese-hubert" in done
    assert "LLM rinna/nue-asr in place of rinna/bilingual-gpt-neox-4b" in done
    default = recipes.experiment("reazonspeech", "train_nue_asr")
    tag = str(encoder).replace("/", "_").replace(" ", "_")
    own = default.with_name(f"{default.name}_encoder_{tag}_llm_rinna_nue-asr")
    used = yaml.safe_load((own / "config.yaml").read_text("utf-8"))
    before = yaml.safe_load((default / "config.yaml").read_text("utf-8"))
    assert used["encoder"] == "whisper" and before["encoder"] == "hubert"
    assert used["encoder_conf"]["model"] == str(encoder)
    assert used["llm_conf"] == {**before["llm_conf"], "model": "rinna/nue-asr"}
    config = yaml.safe_load((own / "model" / "config.yaml").read_text("utf-8"))
    assert set(config["stands_on"]) == {str(encoder), "rinna/nue-asr"}
    systems = json.loads((own.parent / "RESULTS.json").read_text())
    assert {own.name, default.name} <= {row["system"] for row in systems}
    # one stage alone finds the same experiment
    done = recipes.run("reazonspeech", *models, *small, "--stage", "9")
    assert f"training: exp/{own.name};" in done
    shapes = own.with_name(own.name.replace("train_nue_asr", "stats_train"))
    assert (shapes / "train" / "text_shape").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "config"), files("decode"))
def test_a_decoding_runs(recipes, recipe, config):
    recipes.row(recipe, "train_nue_asr.yaml")
    done = recipes.row(recipe, config)
    assert "Stage 12: done in" in done and "Stage 13: done in" in done
    experiment = recipes.experiment(recipe, "train_nue_asr")
    name = {"csj": "eval1", "reazonspeech": "test"}[recipe]
    text = (experiment / Path(config).stem / name / "text").read_text("utf-8")
    assert len(text.splitlines()) == 1
    if config == "decode_one_by_one.yaml":
        greedy = experiment / "decode_greedy" / name / "text"
        assert text == greedy.read_text("utf-8")
