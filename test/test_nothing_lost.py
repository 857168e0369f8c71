"""Commands whose output is chosen badly: nothing that the user has is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import soundfile

from speechllm.audio import SAMPLING_RATE, load_audio
from speechllm.bin import build_vocabulary, data_dir, decode, format_audio
from speechllm.bin import make_examples as examples_command
from speechllm.data.data_dir import select_utterances, split_table, write_data_dir
from speechllm.data.kaldi_table import write_table
from speechllm.export.exported_model import export_model
from speechllm.utils.errors import UserError
from speechllm.utils.folders import MARKER, claim_directory


@pytest.fixture
def corpus(tmp_path, speech_file) -> Path:
    """A user's folder: a data dir, its audio and notes."""
    root = tmp_path / "corpus"
    (root / "audio").mkdir(parents=True)
    samples = load_audio(speech_file)[: 2 * SAMPLING_RATE]
    for name in "ab":
        soundfile.write(root / f"audio/{name}.wav", samples, SAMPLING_RATE)
    keys = ("s-a", "s-b")
    tables = {
        "wav.scp": {key: str(root / f"audio/{key[-1]}.wav") for key in keys},
        "utt2spk": dict.fromkeys(keys, "s"),
        "utt2lang": dict.fromkeys(keys, "en"),
        "utt2dur": dict.fromkeys(keys, "1.0"),
        "text": dict.fromkeys(keys, "hello you"),
    }
    write_data_dir(root / "data/train", tables)
    (root / "data/train" / MARKER).unlink()  # the user made it
    (root / "data/train/dropped.tsv").unlink()
    shutil.copytree(root / "data/train", root / "data/dev")
    for name, value in (("utt2task", "asr en en"), ("utt2num_samples", "16000")):
        write_table(root / "data/train" / name, dict.fromkeys(keys, value))
    (root / "notes.md").write_text("months of work")
    return root


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()
    }


COMMANDS = {
    "filter": (data_dir, "filter --input {train} --output"),
    "perturb_speed": (data_dir, "perturb_speed --input {train} --output"),
    "combine": (data_dir, "combine --input {train} --output"),
    "subset": (data_dir, "subset --input {train} --count 1 --output"),
    "format_audio": (format_audio, "--input {train} --output"),
    "make_examples": (examples_command, "--input {train} --tasks asr:en --output"),
    "build_vocabulary": (build_vocabulary, "--text {train}/text --output"),
    "decode": (decode, "--model {root} --examples {train} --output_dir"),
}
OUTPUTS = (".", "data", "data/train", "data/dev", "audio", "notes.md")


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_users_folder_is_refused_and_unchanged(corpus, name, output):
    module, line = COMMANDS[name]
    arguments = [
        a.format(train=corpus / "data/train", root=corpus) for a in line.split()
    ]
    before = snapshot(corpus)
    reason = "is or contains the input|did not write|is a file"
    with pytest.raises(UserError, match=reason):
        module.main([*arguments, str(corpus / output)])
    assert snapshot(corpus) == before


def test_split_does_not_replace_its_table(corpus):
    table = corpus / "data/train/text"
    with pytest.raises(UserError, match="is the table to split"):
        split_table(table, [table, corpus / "other"])
    assert table.read_text() == "s-a hello you\ns-b hello you\n"


def test_hypotheses_do_not_replace_references(corpus, tiny_model, tmp_path):
    references = tmp_path / "dump/test"
    select_utterances(corpus / "data/train", references, lambda key: True)
    for name in ("utt2task", "utt2num_samples"):
        shutil.copy(corpus / "data/train" / name, references)
    before = snapshot(references)
    for output in (references, references.parent):
        line = ["--model", tiny_model, "--examples", references, "--output_dir", output]
        with pytest.raises(UserError, match="is or contains the input|did not write"):
            decode.main([*map(str, line)])
    assert snapshot(references) == before


def test_training_does_not_replace_a_users_files(train, tmp_path):
    exp = tmp_path / "thesis"
    exp.mkdir()
    for name in ("config.yaml", "1epoch.pth", "notes.txt"):
        before = {name: b"years of work"}
        (exp / name).write_bytes(before[name])
        with pytest.raises(UserError, match="thesis: has content that this project"):
            train(exp, max_epoch=1)
        assert snapshot(exp) == before
        (exp / name).unlink()
    for name in ("train.log", "train_config.yaml", ".lock", "attempt"):
        (exp / name).write_text("of the recipe")
    train(exp, max_epoch=1)
    (exp / "notes.txt").write_text("mine")
    (exp / MARKER).unlink()  # as earlier releases left it
    train(exp, max_epoch=2)
    assert (exp / "2epoch.pth").exists() and (exp / "notes.txt").read_text() == "mine"


def test_second_export_keeps_what_was_added_to_the_model(train, tmp_path):
    exp = train(tmp_path / "exp", max_epoch=1)
    export_model(exp, "1epoch.pth", exp / "model")
    first = snapshot(exp / "model")
    added = {
        "guard.yaml": b"clarity: 1\n",
        "confidence.json": b"{}",
        "README.md": b"my own model card",
        "notes/today.md": b"mine",
    }
    for name, content in added.items():
        (exp / "model" / name).parent.mkdir(exist_ok=True)
        (exp / "model" / name).write_bytes(content)
    export_model(exp, "1epoch.pth", exp / "model")
    assert snapshot(exp / "model") == first | added
    with pytest.raises(UserError, match="is or contains the input"):
        export_model(exp, "1epoch.pth", exp)
    with pytest.raises(UserError, match="is or contains the input"):
        export_model(exp, "1epoch.pth", exp.parent)


def test_formatting_again_keeps_what_was_added(corpus, tmp_path):
    target = tmp_path / "dump/raw/train"
    format_audio_to(corpus, target)
    tables = snapshot(target)
    (target / "text.fr").write_text("s-a bonjour\n")
    (target / "audio/mine.wav").write_bytes(b"mine")
    format_audio_to(corpus, target)
    added = {"text.fr": b"s-a bonjour\n", "audio/mine.wav": b"mine"}
    assert snapshot(target) == tables | added


def test_training_begins_in_a_folder_with_files_of_its_job(tmp_path):
    """Those of run.pl, slurm.pl and of an earlier job that failed before it."""
    from speechllm.training.initialization import TRAINING

    for name in ("train.log", "train.log.previous", "q/train.sh", ".dist_init_1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("kept")
    claim_directory(tmp_path, TRAINING)
    assert (tmp_path / "train.log.previous").read_text() == "kept"
    assert (tmp_path / MARKER).exists()


def test_formatting_refuses_tables_and_keeps_audio_of_the_user(corpus, tmp_path):
    target = tmp_path / "dump/raw/train"
    format_audio_to(corpus, target)
    (target / "text.fr").write_text("s-a mine\n")
    (target / "audio/notes.tsv").write_text("mine")
    (target / "audio/notes").mkdir()
    (target / "audio/notes/a.txt").write_text("mine")
    (corpus / "data/train/text.fr").write_text("s-a bonjour\n")
    before = snapshot(target)
    with pytest.raises(UserError, match=r"text\.fr: not written by this project"):
        format_audio_to(corpus, target)
    assert snapshot(target) == before
    (target / "text.fr").unlink()
    format_audio_to(corpus, target)
    assert (target / "audio/notes/a.txt").read_text() == "mine"
    assert (target / "text.fr").read_text() == "s-a bonjour\n"


def test_folder_with_a_list_of_audio_is_not_taken_for_a_formatted_one(corpus):
    (corpus / "data/dev/audio").mkdir()
    (corpus / "data/dev/audio/train.tsv").write_text("mine")
    before = snapshot(corpus)
    with pytest.raises(UserError, match="did not write"):
        format_audio_to(corpus, corpus / "data/dev")
    assert snapshot(corpus) == before


def format_audio_to(corpus: Path, target: Path) -> None:
    format_audio.main(["--input", str(corpus / "data/train"), "--output", str(target)])
