"""Hub commits: shown, recorded, and used again; with a copy of the hub's cache."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
import yaml
from transformers import WhisperFeatureExtractor

from speechllm.bin.fetch_models import main as fetch_models
from speechllm.export.exported_model import export_model
from speechllm.inference.loading import find_model, load_model
from speechllm.models.config import MODEL_KEYS, hub_revisions, read_config
from speechllm.models.speech_llm import build_speech_llm
from speechllm.pretrained.hub import cached_snapshot, snapshot_commit
from speechllm.pretrained.resolve import resolve_model
from speechllm.training.task import SpeechLLMTask
from speechllm.utils.errors import UserError

NAME = "some/encoder"
OLD, NEW = "1" * 40, "a2" * 20


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """Write two commits of an encoder into a hub cache; ``main`` is the old one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SPEECHLLM_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "hub/models--some--encoder"
    for commit, scale in ((OLD, 1.0), (NEW, 2.0)):
        folder = repository / "snapshots" / commit
        tiny_models.write_tiny_whisper(folder)
        WhisperFeatureExtractor().save_pretrained(folder)
        tensors = weights(folder)
        tiny_models.save_file(
            {name: value * scale for name, value in tensors.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
    set_main(repository, OLD)
    return repository


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def set_main(repository: Path, commit: str) -> None:
    """Let the main branch be at a commit, as after a download of another program."""
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs/main").write_text(commit)


def configuration(llm: Path) -> dict:
    return {
        "encoder": "whisper",
        "encoder_conf": {"model": NAME},
        "bridge": "convolution",
        "bridge_conf": {},
        "llm": "causal_lm",
        "llm_conf": {"model": str(llm), "dtype": "float32", "lora": {"r": 2}},
        "ctc_conf": {},
        "model_conf": {"ctc_weight": 0.0},
    }


def first_weight(encoder) -> torch.Tensor:
    return next(p for name, p in encoder.named_parameters() if name.endswith("weight"))


def test_name_resolves_to_main_or_to_a_commit(repository):
    assert resolve_model(NAME) == repository / "snapshots" / OLD
    assert resolve_model(NAME, revision=NEW) == repository / "snapshots" / NEW
    assert snapshot_commit(resolve_model(NAME, revision=NEW)) == NEW
    set_main(repository, NEW)
    assert resolve_model(NAME) == repository / "snapshots" / NEW
    assert cached_snapshot(NAME, OLD) == repository / "snapshots" / OLD
    # offline and not in the cache: another copy, which the fingerprint decides on
    assert resolve_model(NAME, revision="3" * 40) == repository / "snapshots" / NEW
    assert snapshot_commit(repository) is None


def test_revision_is_requested_from_the_hub(repository, monkeypatch):
    """The hub is asked for the recorded commit, not for the newest."""
    import huggingface_hub

    requests = []
    third = "3" * 40

    def snapshot_download(name, revision=None, **options):
        requests.append((name, revision))
        shutil.copytree(
            repository / "snapshots" / OLD,
            repository / "snapshots" / third,
            dirs_exist_ok=True,
        )
        return str(repository / "snapshots" / third)

    class Api:
        def model_info(self, name, revision=None, timeout=None):
            requests.append((name, revision))
            return argparse.Namespace(siblings=[])

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert resolve_model(NAME, revision=third) == repository / "snapshots" / third
    assert requests == [(NAME, third)] * 3


def test_revision_is_requested_before_another_copy_is_used(
    repository, tmp_path, monkeypatch
):
    """A copy in the cache of this package is for machines without the hub."""
    third, found = "3" * 40, []

    def download(name, revision=None):
        found.append((name, revision))
        return None, "no hub"

    monkeypatch.setattr("speechllm.pretrained.hub.download", download)
    copy = tmp_path / "cache/models/some--encoder"
    tiny_models.write_tiny_whisper(copy)
    main = repository / "snapshots" / OLD
    assert resolve_model(NAME, revision=third) == main
    shutil.rmtree(repository / "refs")
    assert resolve_model(NAME) == copy
    assert found == [(NAME, third)]
    assert resolve_model(NAME, revision=third) == copy
    monkeypatch.setattr("speechllm.pretrained.hub.download", lambda *_: (main, ""))
    assert resolve_model(NAME, revision=third) == main
    assert resolve_model(NAME) == copy


def test_stage_6_shows_the_commit(repository, tiny_llm, capsys):
    fetch_models([NAME, str(tiny_llm)])
    folder = repository / "snapshots" / OLD
    assert capsys.readouterr().out == (
        f"{NAME}: commit {OLD}\n{NAME}\t{folder}\n{tiny_llm}\t{tiny_llm}\n"
    )


def test_exported_model_uses_its_commit_again(repository, tiny_llm, tmp_path):
    exp = tmp_path / "exp"
    exp.mkdir()
    config = configuration(tiny_llm)
    torch.save(build_speech_llm(config).state_dict(), exp / "1epoch.pth")
    (exp / "prompts.yaml").write_text(tiny_models.PROMPTS)
    trained = {**config, "prompts": str(exp / "prompts.yaml")}
    (exp / "config.yaml").write_text(yaml.safe_dump(trained))
    export_model(exp, "1epoch.pth", exp / "model")
    exported = read_config(exp / "model/config.yaml")
    assert exported["revisions"] == {NAME: OLD}

    def loaded(strict: bool = False) -> torch.Tensor:
        model, *_ = load_model(find_model(exp), "float32", strict)
        return first_weight(model.encoder).clone()

    before = loaded()
    set_main(repository, NEW)
    assert torch.equal(loaded(), before)
    # without the record, as exported before, the newest is taken; strictly refused
    exported.pop("revisions")
    (exp / "model/config.yaml").write_text(yaml.safe_dump(exported))
    with pytest.raises(UserError, match=f"trained on {NAME} .*has other weights"):
        loaded(strict=True)


def test_training_records_its_commits_and_export_uses_them(
    repository, tiny_llm, tmp_path
):
    args = argparse.Namespace(
        **configuration(tiny_llm),
        ctc_token_list=None,
        collect_stats=False,
        output_dir=str(tmp_path / "exp"),
    )
    before = first_weight(SpeechLLMTask.build_model(args).encoder)
    assert args.revisions == {NAME: OLD}
    assert args.encoder_conf["model"] == NAME  # the name, not a folder, is recorded
    (tmp_path / "exp").mkdir()
    recorded = {key: getattr(args, key) for key in (*MODEL_KEYS, "revisions")}
    (tmp_path / "exp/config.yaml").write_text(yaml.safe_dump(recorded))
    set_main(repository, NEW)
    assert hub_revisions(recorded, {}) == {NAME: NEW}
    model = SpeechLLMTask.build_model(args)
    assert torch.equal(first_weight(model.encoder), before)
    assert args.revisions == {NAME: OLD}
    torch.save(model.state_dict(), tmp_path / "exp/1epoch.pth")
    export_model(tmp_path / "exp", "1epoch.pth", tmp_path / "exp/model")
    exported = read_config(tmp_path / "exp/model/config.yaml")
    assert exported["revisions"] == {NAME: OLD}


@pytest.mark.parametrize("commit", ["../../../other", "main", 3, None])
def test_recorded_revision_is_a_commit(repository, tiny_llm, tmp_path, commit):
    config = {**configuration(tiny_llm), "revisions": {NAME: commit}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=f"revisions: {NAME}: .* is not a commit"):
        read_config(tmp_path / "config.yaml")


def test_trained_model_is_loaded_at_a_commit(tmp_path, monkeypatch):
    """``from_pretrained(…, revision=…)`` takes that commit from the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--user--asr"
    for commit in (OLD, NEW):
        folder = root / "snapshots" / commit
        folder.mkdir(parents=True)
        for name in ("config.json", "config.yaml", "tokenizer.json"):
            (folder / name).write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")
    set_main(root, NEW)
    assert find_model("user/asr") == root / "snapshots" / NEW
    assert find_model("user/asr", OLD) == root / "snapshots" / OLD
