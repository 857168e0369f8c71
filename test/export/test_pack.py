"""Packing, unpacking, model cards and uploads."""

from __future__ import annotations

import json
import random
import zipfile

import pytest
import yaml

from speechllm.bin.pack import main
from speechllm.export.hub import (
    CARD_MARK,
    model_card,
    read_results,
    upload,
    write_model_card,
)
from speechllm.export.pack import MANIFEST, model_files, pack, unpack
from speechllm.pretrained.push import push_folder
from speechllm.utils.errors import UserError
from speechllm.utils.io import file_sha256

ROWS = [
    {"set": "test", "task": "asr", "language": "en", "target_language": "en",
     "metric": "wer", "value": 9.87, "utterances": 50, "hypotheses_file": "x",
     "system": "joint", "decode": "decode", "reference_words": 300,
     "substitutions": 20, "deletions": 8, "insertions": 2},
    {"set": "test", "task": "st", "language": "en", "target_language": "fr",
     "metric": "bleu", "value": 31.4, "utterances": 50, "hypotheses_file": "x",
     "system": "joint", "decode": "decode", "signature": "nrefs:1"},
]  # fmt: skip


@pytest.fixture
def model_dir(tmp_path):
    folder = tmp_path / "model"
    (folder / "llm").mkdir(parents=True)
    config = {
        "encoder_conf": {"model": "openai/whisper-base"},
        "llm_conf": {"model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "llm" / "tokenizer.json").write_text('{"été": 1}', encoding="utf-8")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "token").write_text("secret")
    return folder


def rewrite(path, changes, drop=()):
    """Rewrite the zip with entries changed, added or dropped."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries |= changes
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            if name not in drop:
                archive.writestr(name, content)


# Zip


def test_unpacked_files_equal_packed_files(model_dir, tmp_path, capsys):
    results = tmp_path / "RESULTS.md"
    results.write_text("# RESULTS\n")
    output, copy = tmp_path / "model.zip", tmp_path / "copy"
    main(
        ["--model", str(model_dir), "--output", str(output), "--include", str(results)]
    )
    main(["--unpack", str(output), "--output", str(copy)])
    files = sorted(
        p.relative_to(copy).as_posix() for p in copy.rglob("[!.]*") if p.is_file()
    )
    assert files == [
        "RESULTS.md", "config.yaml", "llm/tokenizer.json", "meta.yaml",
        "model.safetensors",
    ]  # fmt: skip
    for name in ("config.yaml", "llm/tokenizer.json", "model.safetensors"):
        assert (copy / name).read_bytes() == (model_dir / name).read_bytes()
    meta = yaml.safe_load((copy / "meta.yaml").read_text())
    assert meta["files"]["model.safetensors"]["sha256"] == file_sha256(
        model_dir / "model.safetensors"
    )
    assert {"timestamp", "python", "torch", "espnet", "speechllm"} <= meta.keys()
    assert "4 files" in capsys.readouterr().out


def test_nothing_is_overwritten_without_force(model_dir, tmp_path):
    output = tmp_path / "model.zip"
    output.write_text("mine")
    with pytest.raises(UserError, match="--force"):
        pack(model_dir, output)
    assert output.read_text() == "mine"
    pack(model_dir, output, force=True)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "mine").write_text("mine")
    with pytest.raises(UserError, match="--force"):
        unpack(output, copy)
    assert (copy / "mine").exists()
    with pytest.raises(UserError, match="did not write"):
        unpack(output, copy, force=True)
    assert [path.name for path in copy.iterdir()] == ["mine"]
    for _ in range(2):
        unpack(output, tmp_path / "new", force=True)
        (tmp_path / "new" / "mine").write_text("mine")
    assert (tmp_path / "new" / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", ["llm/tokenizer.json", MANIFEST])
def test_small_zip_with_huge_content_is_refused(model_dir, tmp_path, name):
    (model_dir / "llm/tokenizer.json").write_bytes(bytes(200 * 2**20))
    pack(model_dir, tmp_path / "model.zip")
    if name == MANIFEST:
        rewrite(tmp_path / "model.zip", {MANIFEST: bytes(200 * 2**20)})
        with zipfile.ZipFile(tmp_path / "model.zip") as archive:
            content = {n: archive.read(n) for n in archive.namelist()}
        with zipfile.ZipFile(
            tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED
        ) as archive:
            for entry, data in content.items():
                archive.writestr(entry, data)
    assert (tmp_path / "model.zip").stat().st_size < 2**20
    with pytest.raises(UserError, match="would unpack to 200 MiB from 0.2 MiB"):
        unpack(tmp_path / "model.zip", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_failed_packing_leaves_no_zip(model_dir, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", fail)
    with pytest.raises(OSError):
        pack(model_dir, tmp_path / "out" / "model.zip")
    assert list((tmp_path / "out").iterdir()) == []


def test_folder_without_a_model_is_refused(model_dir, tmp_path):
    (model_dir / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors is missing"):
        pack(model_dir, tmp_path / "model.zip")


def test_links_out_of_the_folder_are_refused(model_dir, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("private")
    for target in (
        secret / "key",
        "../secret/key",
        secret,
        "nowhere",
        model_dir / "llm",
    ):
        link = model_dir / "llm" / "notes"
        link.symlink_to(target)
        for publish in (
            lambda: pack(model_dir, tmp_path / "model.zip"),
            lambda: push_folder(model_dir, "user/model", api=object()),
        ):
            with pytest.raises(UserError, match="notes: a link to .* not a file of th"):
                publish()
        assert not (tmp_path / "model.zip").exists()
        link.unlink()


def test_links_within_the_folder_and_the_hubs_cache_are_followed(model_dir, tmp_path):
    (model_dir / "copy.yaml").symlink_to("config.yaml")
    (model_dir / ".hidden").symlink_to(tmp_path)
    config = (model_dir / "config.yaml").read_bytes()
    commit = tmp_path / "models--user--model" / "snapshots" / "0123abc"
    blobs = commit.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    for number, (name, path) in enumerate(model_files(model_dir).items()):
        (commit / name).parent.mkdir(parents=True, exist_ok=True)
        (blobs / str(number)).write_bytes(path.read_bytes())
        (commit / name).symlink_to(blobs / str(number))
    for folder in (model_dir, commit):
        output = tmp_path / f"{folder.name}.zip"
        pack(folder, output)
        copy = unpack(output, tmp_path / f"copy of {folder.name}")
        assert (copy / "copy.yaml").read_bytes() == config
        assert not any(path.is_symlink() for path in copy.rglob("*"))


def test_included_files_must_exist_with_unique_names(model_dir, tmp_path):
    with pytest.raises(UserError, match="no such file to include"):
        pack(model_dir, tmp_path / "model.zip", [tmp_path / "none"])
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="already has a file config.yaml"):
        pack(model_dir, tmp_path / "model.zip", [tmp_path / "config.yaml"])


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:evil"]
)
def test_unsafe_names_are_refused(model_dir, tmp_path, name):
    output = tmp_path / "model.zip"
    manifest = pack(model_dir, output)
    manifest["files"][name] = {"size": 1, "sha256": "0"}
    rewrite(output, {name: b"x", "meta.yaml": yaml.safe_dump(manifest)})
    with pytest.raises(UserError, match="unsafe file name"):
        unpack(output, tmp_path / "deep" / "copy")
    assert not (tmp_path / "deep" / "copy").exists()
    assert not list(tmp_path.rglob("evil"))


def test_changed_added_and_missing_files_are_named(model_dir, tmp_path):
    for changes, drop, message in (
        ({"config.yaml": b"x"}, (), "config.yaml differs from its listed size"),
        ({"model.safetensors": bytes(10240)}, (), "model.safetensors has a wrong"),
        ({"more.py": b"x"}, (), "more.py is not in its meta.yaml"),
        ({}, ("config.yaml",), "config.yaml of its meta.yaml is missing"),
        ({}, ("meta.yaml",), "not a packed model"),
        ({"meta.yaml": b"[1]"}, (), "lists no files"),
    ):
        output = tmp_path / "model.zip"
        pack(model_dir, output, force=True)
        rewrite(output, changes, drop)
        with pytest.raises(UserError, match=message):
            unpack(output, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


def test_truncated_zip_is_refused(model_dir, tmp_path):
    output = tmp_path / "model.zip"
    pack(model_dir, output)
    output.write_bytes(output.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged"):
        unpack(output, tmp_path / "copy")


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_damaged_zips_are_refused(model_dir, tmp_path):
    """Overwrite bytes at random places: never another error, and never other files."""
    output = tmp_path / "model.zip"
    pack(model_dir, output)
    whole = output.read_bytes()
    unpack(output, tmp_path / "right")
    right = contents(tmp_path / "right")
    generator = random.Random(0)
    refused = 0
    for _ in range(120):
        data = bytearray(whole)
        headers = generator.random() < 0.5  # else anywhere
        for _ in range(generator.choice((1, 4, 16))):
            place = generator.randrange(len(data))
            data[-place % 700 - 1 if headers else place] = generator.randrange(256)
        output.write_bytes(data)
        try:
            unpack(output, tmp_path / "copy", force=True)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        found = contents(tmp_path / "copy")
        found["meta.yaml"] = right["meta.yaml"]  # has no checksum
        assert found == right
    assert refused > 60


# Hub


class FakeApi:
    """Recorder of the calls that ``upload`` makes of ``huggingface_hub.HfApi``."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def create_repo(self, repo_id, private, exist_ok):
        if self.error:
            raise self.error
        self.calls.append(("create_repo", repo_id, private, exist_ok))

    def upload_folder(self, repo_id, folder_path, commit_message, ignore_patterns):
        self.calls.append(("upload_folder", repo_id, folder_path, ignore_patterns))
        return f"https://huggingface.co/{repo_id}/commit/1"


def test_card_has_metadata_usage_and_scores(model_dir):
    card = model_card(model_dir, ROWS, "me/mini")
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == [
        "openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct",
    ]  # fmt: skip
    assert head["language"] == ["en", "fr"]
    assert "speech-translation" in head["tags"]
    assert 'snapshot_download("me/mini")' in card
    assert 'task="asr", language="en")' in card
    assert "| 9.87 |" in card and "| 31.40 |" in card


def test_user_written_card_is_kept(model_dir):
    path = write_model_card(model_dir, [], "me/mini")
    assert CARD_MARK in path.read_text()
    write_model_card(model_dir, ROWS, "me/mini")
    assert "9.87" in path.read_text()
    path.write_text("mine")
    write_model_card(model_dir, ROWS, "me/mini")
    assert path.read_text() == "mine"


def test_upload_creates_the_repository_and_sends_the_folder(model_dir):
    api = FakeApi()
    assert upload(model_dir, "me/mini", ROWS, private=True, api=api).endswith("/1")
    assert api.calls == [
        ("create_repo", "me/mini", True, True),
        ("upload_folder", "me/mini", str(model_dir), [".*", "**/.*"]),
    ]
    assert "31.40" in (model_dir / "README.md").read_text(encoding="utf-8")


def test_missing_connection(model_dir):
    with pytest.raises(UserError, match="the hub cannot be reached"):
        upload(model_dir, "me/mini", api=FakeApi(ConnectionError("no route")))


def test_missing_token(model_dir, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="hf auth login"):
        upload(model_dir, "me/mini")
    assert not (model_dir / "README.md").exists()


def test_repository_name_without_user_is_refused(model_dir):
    with pytest.raises(UserError, match="<user or organisation>/<name>"):
        upload(model_dir, "mini", api=FakeApi())


def test_results_of_one_system(tmp_path):
    path = tmp_path / "RESULTS.json"
    path.write_text(json.dumps([*ROWS, ROWS[0] | {"system": "other"}]))
    assert read_results(path, "joint") == ROWS
    assert len(read_results(path)) == 3
    with pytest.raises(UserError, match="no scores of the system none"):
        read_results(path, "none")
    with pytest.raises(UserError, match="no such file"):
        read_results(tmp_path / "none.json")
