"""All stages of a generated corpus, with tiny models and spaces in every path.

The recipe has a second training on other data and tasks, and Kaldi archives of FLAC.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import yaml
from processes import wait_until
from recipe_clone import clone
from sentencepiece import SentencePieceProcessor
from tiny_models import PROMPTS, TRAINING
from warm_python import warm_python

from speechllm.data.kaldi_table import read_table

SETS = {"train": 6, "more": 4, "dev": 2, "test": 3}
WORDS = "good morning evening all of you here and there".split()
DATA = """#!/usr/bin/env bash
# Copy the data dirs of the corpus.
set -euo pipefail
datadir=data
corpus=
help_message="none"
. utils/parse_options.sh
mkdir -p "${datadir}"
cp -r "${corpus}"/tables/* "${datadir}"
"""


class Recipe:
    """Recipe in a folder with spaces, run with one warm interpreter."""

    def __init__(self, root: Path, environment: dict[str, str], models: dict) -> None:
        self.folder = clone(root / "my clone") / "TEMPLATE" / "speechllm1"
        self.environment = environment
        self.corpus = write_corpus(root / "my corpus")
        (self.folder / "local/data.sh").write_text(DATA)
        conf = self.folder / "my conf"
        conf.mkdir()
        (conf / "my prompts.yaml").write_text(
            PROMPTS.replace("fr: French", "de: German")
        )
        first = {
            "encoder": "whisper",
            "encoder_conf": {"model": str(models["whisper"])},
            "bridge": "convolution",
            "llm": "causal_lm",
            "llm_conf": {"model": str(models["llm"]), "lora": {"r": 2}},
            "model_conf": {"ctc_weight": 0.3},
            "max_epoch": 2,
            "keep_nbest_models": 2,
            **TRAINING,
            "batch_size": 2,
            "best_model_criterion": [["valid", "acc", "max"], ["valid", "loss", "min"]],
            "seed": 1,
        }
        # With so low a learning rate, the second keeps the weights that it starts from.
        second = first | {"optim_conf": {"lr": 1e-30}, "max_epoch": 1, "seed": 2}
        (conf / "my train.yaml").write_text(yaml.safe_dump(first))
        (conf / "my second.yaml").write_text(yaml.safe_dump(second))
        decoding = {"batch_size": 2, "tokens_per_second": 1.0, "extra_tokens": 2.0}
        (conf / "my decode.yaml").write_text(yaml.safe_dump(decoding))

    def command(self, *arguments: str, expdir: str = "my exp") -> dict:
        """Return the arguments of subprocess that run the recipe."""
        options = {
            "datadir": "my data",
            "dumpdir": "my dump",
            "expdir": expdir,
            "local_data_opts": f"--corpus '{self.corpus}'",
            "prompts": "my conf/my prompts.yaml",
            "train_config": "my conf/my train.yaml",
            "second_config": "my conf/my second.yaml",
            "second_tasks": "st:en:de*2",
            "second_set": "more",
            "second_init_model": "valid.loss.ave.pth",
            "train_tasks": "asr:en",
            "test_tasks": "asr:en st:en:de",
            "audio_format": "flac.ark",
            "token_type": "bpe",
            "bpemode": "unigram",
            "nbpe": "20",
            "num_splits_speechllm": "2",
            "inference_config": "my conf/my decode.yaml",
            "inference_args": "--no-guard",
            "ngpu": "0",
            "nj": "1",
        }
        words = [word for k, v in options.items() for word in (f"--{k}", v)]
        return {
            "args": ["./run.sh", *words, *arguments],
            "cwd": self.folder,
            "env": self.environment,
            "text": True,
            "stdin": subprocess.DEVNULL,
        }

    def run(self, *arguments: str, expdir: str = "my exp") -> str:
        """Run the recipe; return its output."""
        command = self.command(*arguments, expdir=expdir)
        done = subprocess.run(**command, check=False, capture_output=True, timeout=2400)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout


def write_corpus(root: Path) -> Path:
    """Write data dirs of noise with English text and German translations."""
    generator = np.random.default_rng(1)
    (root / "my audio").mkdir(parents=True)
    for name, count in SETS.items():
        tables: dict[str, list[str]] = {}
        for number in range(count):
            utterance = f"s-{name}-{number}"
            path = root / "my audio" / f"{utterance}.wav"
            samples = generator.normal(0, 0.05, 9600 + 800 * number)
            soundfile.write(path, samples, 16000)
            words = generator.choice(WORDS, 4)
            for table, value in (
                ("wav.scp", path),
                ("text", " ".join(words)),
                ("text.de", " ".join(words[::-1])),
                ("utt2spk", "s"),
                ("utt2lang", "en"),
            ):
                tables.setdefault(table, []).append(f"{utterance} {value}\n")
        folder = root / "tables" / name
        folder.mkdir(parents=True)
        for table, lines in tables.items():
            (folder / table).write_text("".join(lines))
        ids = [line.split()[0] for line in tables["text"]]
        (folder / "spk2utt").write_text(f"s {' '.join(ids)}\n")
    return root


SBATCH = """#!/usr/bin/env bash
# Fake sbatch: runs a single job.
for word in "$@"; do
    case ${word} in --output=*) output=${word#*=} ;; esac
    script=${word}
done
echo 77
SLURM_JOB_ID=77 exec bash "${script}" > "${output}" 2>&1
"""
SQUEUE = """#!/usr/bin/env bash
echo "N/A|COMPLETED|None"
"""
SRUN = """#!/usr/bin/env bash
# Fake srun: two nodes with a task each, on this machine.
shift  # --export=ALL
export SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST=a,b SLURM_LOCALID=0
SLURM_PROCID=0 SLURM_NODEID=0 "$@" &
SLURM_PROCID=1 SLURM_NODEID=1 "$@"
wait $!
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_whisper, tiny_llm):
    models = {"whisper": tiny_whisper, "llm": tiny_llm}
    root = tmp_path_factory.mktemp("whole")
    variables = {"HF_HUB_CACHE": str(root / "hub"), "HF_HUB_OFFLINE": "1"}
    with warm_python(**variables) as environment:
        made = Recipe(root, environment, models)
        (made.folder / "output").write_text(made.run())
        yield made


@pytest.fixture
def first(recipe) -> Path:
    return recipe.folder / "my exp/speechllm_my train"


@pytest.fixture
def second(recipe) -> Path:
    return recipe.folder / "my exp/speechllm_my train_my second"


def test_all_stages_take_paths_with_spaces(recipe):
    output = (recipe.folder / "output").read_text()
    for stage in (1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13):
        assert f"Stage {stage}: done in" in output
    made = {path.name for path in recipe.folder.iterdir()}
    assert {"my data", "my dump", "my exp"} <= made
    assert not made & {"my", "data", "dump", "exp"}
    assert (recipe.folder / "my data/token_list/bpe_unigram20/tokens.txt").is_file()


def test_examples_are_positions_in_archives(recipe, monkeypatch):
    monkeypatch.chdir(recipe.folder)
    scp = "my dump/examples/train/wav.scp"
    loaded = kaldiio.load_scp(scp)
    assert len(loaded) == SETS["train"]
    for number, name in enumerate(sorted(loaded)):
        assert re.search(r"\.ark:[0-9]+$", read_table(scp)[name])
        rate, samples = loaded[name]
        assert (rate, len(samples)) == (16000, 9600 + 800 * number)


def test_second_training_has_its_own_data_and_tasks(recipe, second):
    used = yaml.safe_load((second / "config.yaml").read_text("utf-8"))
    files = {path for path, _, _ in used["train_data_path_and_name_and_type"]}
    folder = "my exp/speechllm_stats_second/splits2"
    assert files == {
        f"{folder}/{n}" for n in ("wav.scp", "text", "text_ctc", "utt2task")
    }
    examples = recipe.folder / "my dump/examples"
    tasks = read_table(examples / "more_second/utt2task")
    splits = [recipe.folder / folder / f"utt2task/split.{number}" for number in (0, 1)]
    assert read_table(splits[0]) | read_table(splits[1]) == tasks
    assert set(tasks.values()) == {"st en de"} and len(tasks) == 2 * SETS["more"]
    assert len(read_table(examples / "dev_second/utt2task")) == SETS["dev"]
    log = (second / "train.log").read_text()
    assert "my exp/speechllm_my train/valid.loss.ave.pth" in log


def test_second_training_starts_from_the_weights_of_the_first(first, second):
    start = torch.load(first / "valid.loss.ave.pth", weights_only=True)
    after = torch.load(second / "1epoch.pth", weights_only=True)
    assert start.keys() == after.keys()
    for name, value in start.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)


def test_the_second_model_is_exported_decoded_and_scored(recipe, first, second):
    assert not (first / "model").exists()
    assert (second / "model/model.safetensors").is_file()
    hypotheses = read_table(second / "decode_my decode/test/text")
    assert len(hypotheses) == 2 * SETS["test"]
    rows = json.loads((recipe.folder / "my exp/RESULTS.json").read_text("utf-8"))
    assert {row["system"] for row in rows} == {second.name}
    assert {(row["task"], row["set"]) for row in rows} == {
        ("asr", "test"),
        ("st", "test"),
    }


def test_a_trained_model_is_decoded_instead_of_a_training(recipe, second):
    """ESPnet's --download_model, with a folder and a hub id."""
    hypotheses = (second / "decode_my decode/test/text").read_text()
    folders = ["--datadir", "new data", "--dumpdir", "new dump"]
    more = ["--eval_valid_set", "true", "--score_opts", ""]
    output = recipe.run(
        "--download_model", str(second / "model"), *folders, *more, expdir="new exp"
    )
    stages = re.findall(r"Stage (\d+): done", output)
    assert stages == ["1", "3", "4", "5", "12", "13"]
    assert "no CTC vocabulary" in output
    sets = {path.name for path in (recipe.folder / "new dump/examples").iterdir()}
    assert sets == {"test", "dev"}
    (system,) = (recipe.folder / "new exp").glob("speechllm_*")
    assert system.name == f"speechllm_{second.name}"
    assert (system / "model").resolve() == second / "model"
    assert (system / "decode_my decode/test/text").read_text() == hypotheses
    rows = json.loads((recipe.folder / "new exp/RESULTS.json").read_text("utf-8"))
    assert {row["set"] for row in rows} == {"test", "dev"}

    commit = "0" * 40
    hub = Path(recipe.environment["HF_HUB_CACHE"]) / "models--me--tiny"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs/main").write_text(commit)
    (hub / "snapshots").mkdir()
    (hub / "snapshots" / commit).symlink_to(second / "model")
    skipped = ["--skip_data_prep", "true", "--skip_train", "true"]
    output = recipe.run(
        "--download_model", "me/tiny", *folders, *skipped, expdir="new exp"
    )
    assert re.findall(r"Stage (\d+): done", output) == ["12", "13"]
    system = recipe.folder / "new exp/speechllm_me--tiny"
    assert (system / "decode_my decode/test/text").read_text() == hypotheses


def test_the_folders_of_a_training_can_be_chosen(recipe, second):
    """--speechllm_exp and --speechllm_stats_dir, with the second training's names."""
    folders = ["--speechllm_exp", "elsewhere/my run", "--speechllm_stats_dir", "stats"]
    output = recipe.run(*folders, "--stage", "7", expdir="third exp")
    assert "Stage 13: done" in output
    made = {path.name for path in (recipe.folder / "elsewhere").iterdir()}
    assert made == {"my run", "my run_my second"}
    assert (recipe.folder / "stats/.done").is_file()
    assert (recipe.folder / "stats_second/.done").is_file()
    text = Path("decode_my decode/test/text")
    again = recipe.folder / "elsewhere/my run_my second" / text
    assert again.read_text() == (second / text).read_text()
    rows = json.loads((recipe.folder / "third exp/RESULTS.json").read_text("utf-8"))
    assert {row["system"] for row in rows} == {"my run_my second"}


def test_a_second_training_on_the_same_set_keeps_the_vocabulary(recipe):
    """It can be added to a finished recipe. BPE pieces depend on counts of words."""
    for name in ("data", "dump"):
        folder = recipe.folder / f"vocabulary {name}"
        shutil.copytree(recipe.folder / f"my {name}", folder)
    words = ["--datadir", "vocabulary data", "--dumpdir", "vocabulary dump"]
    words += ["--warmup_config", "my conf/my train.yaml", "--warmup_set", "more"]
    words += ["--stage", "5", "--stop_stage", "5"]
    pieces = []
    for more in (
        ["--second_config", ""],
        ["--second_set", "train", "--second_tasks", "asr:en"],
        ["--second_set", "more", "--second_tasks", "asr:en"],
    ):
        recipe.run(*words, *more, expdir="vocabulary exp")
        path = recipe.folder / "vocabulary data/token_list/bpe_unigram20/bpe.model"
        model = SentencePieceProcessor(model_file=str(path))
        pieces.append({model.id_to_piece(i): model.get_score(i) for i in range(20)})
    assert pieces[0] == pieces[1]
    assert pieces[0] != pieces[2]  # other texts


@pytest.fixture(scope="module")
def two_processes(recipe) -> Path:
    """Folder of a training in two processes, with a warm-up; stages 5 to 9."""
    conf = recipe.folder / "my conf"
    config = yaml.safe_load((conf / "my train.yaml").read_text())
    config |= {"llm": None, "bridge": None, "model_conf": {"ctc_weight": 1.0}}
    config |= {"best_model_criterion": [["valid", "cer_ctc", "min"]]}
    (conf / "my warmup.yaml").write_text(yaml.safe_dump(config))
    words = ["--warmup_config", "my conf/my warmup.yaml", "--second_config", ""]
    words += ["--warmup_model", "valid.cer_ctc.ave.pth", "--num_processes", "2"]
    output = recipe.run(*words, "--stage", "5", "--stop_stage", "9", expdir="two exp")
    assert re.findall(r"Stage (\d+): done", output) == ["5", "6", "7", "8", "9"]
    return recipe.folder / "two exp/speechllm_my train"


def test_stages_8_and_9_in_two_processes(two_processes):
    """They share the checkpoints, the log and the curves, which rank 0 writes."""
    for folder in (two_processes, two_processes.with_name("speechllm_my warmup")):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert (config["dist_world_size"], config["dist_rank"]) == (2, 0)
        assert {"1epoch.pth", "2epoch.pth"} <= {p.name for p in folder.iterdir()}
        log = (folder / "train.log").read_text()
        assert log.count("progress: epoch 2/2, batch 1 (50 % of the epoch)") == 1
        assert "The training was finished at 2 epochs" in log


def test_training_on_two_machines(recipe, two_processes, tmp_path, monkeypatch):
    """ESPnet's launcher with slurm.pl and srun: the weights of two processes here."""
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{recipe.environment['PATH']}"
    monkeypatch.setattr(
        recipe,
        "environment",
        recipe.environment | {"PATH": path, "cmd_backend": "slurm"},
    )
    exp = recipe.folder / "nodes exp"
    exp.mkdir()
    start = two_processes.with_name("speechllm_my warmup") / "valid.cer_ctc.ave.pth"
    words = ["--init_param", str(start), "--second_config", "", "--num_nodes", "2"]
    words += ["--stage", "9", "--stop_stage", "9"]
    words += ["--speechllm_stats_dir", "two exp/speechllm_stats_train"]
    recipe.run(*words, expdir=exp.name)
    found, expected = (
        torch.load(folder / "2epoch.pth", weights_only=True)
        for folder in (exp / "speechllm_my train", two_processes)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_kill_of_run_sh_saves_within_an_epoch(recipe, two_processes):
    """SIGTERM reaches the launcher, the job runner and both training processes."""
    words = ["--second_config", "", "--num_processes", "2"]
    words += ["--stage", "9", "--stop_stage", "9"]
    words += ["--speechllm_stats_dir", "two exp/speechllm_stats_train"]
    options = ["--train_args", "--max_epoch 500"]
    command = recipe.command(*words, *options, expdir="killed exp")
    command["env"] = {k: v for k, v in command["env"].items() if "BASH_FUNC" not in k}
    process = subprocess.Popen(  # a warm Python's forks would not be children of run.sh
        **command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = recipe.folder / "killed exp/speechllm_my train/train.log"
    wait_until(lambda: log.exists() and "progress: epoch 2/" in log.read_text(), 300)
    process.terminate()
    process.wait()
    wait_until(lambda: "# Ended (code 1)" in log.read_text(), 60)
    saved = (
        r"error: stopped by SIGTERM; saved after batch (\d) of epoch (\d+), where the"
    )
    found = re.search(saved, log.read_text())
    assert found, log.read_text()
    options = ["--train_args", f"--max_epoch {found[2]}"]
    recipe.run(*words, *options, expdir="killed exp")
    assert f"resumed after batch {found[1]} with" in log.read_text()
    assert (log.parent / f"{found[2]}epoch.pth").exists()
