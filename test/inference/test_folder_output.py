"""Folders of outputs: mirrored trees, skipped recordings, nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
from tiny_models import write_tiny_model

from speechllm import cli
from speechllm.audio.io import load_audio
from speechllm.inference.folder_output import JOURNAL_NAME
from speechllm.inference.output_formats import FILE_FORMATS
from speechllm.inference.recordings import Recording, output_paths
from speechllm.utils.errors import UserError

RATE = 16000


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, smollm2) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("folder") / "model", smollm2)


@pytest.fixture
def calls(tmp_path, speech_file) -> Path:
    """Write five recordings in a tree of folders."""
    folder = tmp_path / "calls"
    speech = load_audio(speech_file)
    for number, name in enumerate(("a", "b/a", "b/c/d", "b/c/e", "f")):
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech[8000 : 16000 + 1600 * number], RATE)
    return folder


def run(capsys, *arguments) -> tuple[int, str]:
    status = cli.main(["transcribe", *map(str, arguments)])
    return status, capsys.readouterr().err


def content(folder: Path) -> dict[str, str]:
    """Return the texts of a folder without the journal."""
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in folder.rglob("*")
        if path.is_file() and path.name != JOURNAL_NAME
    }


def test_tree_is_mirrored_and_skipped_when_done(
    capsys, tmp_path, model_dir, calls, decoded
):
    out = tmp_path / "out"
    command = ["--model", model_dir, "--format", "txt", "--output", out, calls]
    status, _ = run(capsys, *command)
    first = content(out)
    assert (status, sum(decoded)) == (0, 5)
    assert set(first) == {"a.txt", "b/a.txt", "b/c/d.txt", "b/c/e.txt", "f.txt"}
    (out / "a.txt").write_text("corrected by hand\n")
    shutil.copy(calls / "f.wav", calls / "b" / "new.wav")
    (out / "b/c/d.txt").unlink()
    decoded.clear()
    status, err = run(capsys, *command)
    assert (status, sum(decoded)) == (0, 2)  # the new one and the deleted one
    assert f"{out}: 4 of 6 done already" in err
    found = content(out)
    assert found.pop("a.txt") == "corrected by hand\n"
    assert found.pop("b/new.txt") == first["f.txt"]
    assert found == {name: text for name, text in first.items() if name != "a.txt"}
    decoded.clear()
    assert "6 of 6 done already" in run(capsys, *command)[1]
    assert not decoded


def test_folder_of_the_user_gets_the_outputs_and_loses_nothing(
    capsys, tmp_path, model_dir, calls
):
    """``--output`` may be any folder, such as that of the recordings."""
    (calls / "thesis.txt").write_text("years of work")
    (calls / "a.json").write_text("mine")
    before = {path: path.read_bytes() for path in calls.rglob("*") if path.is_file()}
    command = ["--model", model_dir, "--format", "json", "--output", calls]
    status, _ = run(capsys, *command, calls / "a.wav")
    assert status == 0
    assert json.loads((calls / "a.json").read_text("utf-8"))["segments"]
    kept = {calls / "a.json": calls / "a.json.previous"}
    found = {path: kept.get(path, path).read_bytes() for path in before}
    assert found == before
    new = {p for p in calls.rglob("*") if p.is_file()} - before.keys()
    assert new == {calls / "a.json.previous", calls / JOURNAL_NAME}


def test_other_settings_keep_what_was_edited(
    capsys, tmp_path, model_dir, calls, decoded
):
    out = tmp_path / "out"
    command = ["--model", model_dir, "--format", "txt", "--output", out, calls]
    run(capsys, *command)
    (out / "f.txt").write_text("corrected by hand\n")
    (out / "b/a.txt.notes").write_text("mine")
    decoded.clear()
    run(capsys, *command, "--extra_tokens", "3", "--tokens_per_second", "0")
    assert sum(decoded) == 5
    previous = [name for name in content(out) if "previous" in name]
    assert previous == ["f.txt.previous"]
    assert (out / "f.txt.previous").read_text() == "corrected by hand\n"
    assert (out / "b/a.txt.notes").read_text() == "mine"


def test_kill_between_files_and_journal_is_resumed(
    capsys, tmp_path, model_dir, calls, decoded
):
    out = tmp_path / "out"
    command = ["--model", model_dir, "--format", "txt", "--output", out, calls]
    run(capsys, *command)
    whole = content(out)
    journal = out / JOURNAL_NAME
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    decoded.clear()
    assert "2 of 5 done already" in run(capsys, *command)[1]
    assert sum(decoded) == 3
    assert content(out) == whole
    journal.write_text("my own notes\n")
    with pytest.raises(UserError, match="is another file; move it away"):
        run(capsys, *command)
    assert journal.read_text() == "my own notes\n"


def test_all_formats_at_once(capsys, tmp_path, model_dir, calls):
    out = tmp_path / "out"
    status, _ = run(
        capsys, "--model", model_dir, "--format", "all", "--output", out, calls
    )
    assert status == 0
    expected = {f"a.{form}" for form in FILE_FORMATS}
    assert {path.name for path in out.glob("*") if path.stem == "a"} == expected
    entry = json.loads((out / "a.json").read_text())
    assert entry["segments"][0]["words"]
    words = [word["word"] for word in entry["segments"][0]["words"]]
    ctm = [line.split()[4] for line in (out / "a.ctm").read_text().splitlines()]
    assert ctm == words


def test_json_in_a_folder_and_in_a_file(capsys, tmp_path, model_dir, calls):
    command = ["--model", model_dir, "--format", "json", calls, "--output"]
    run(capsys, *command, f"{tmp_path}/new/")
    run(capsys, *command, tmp_path / "out.jsonl")
    lines = [json.loads(x) for x in (tmp_path / "out.jsonl").read_text().splitlines()]
    files = [json.loads(x) for x in content(tmp_path / "new").values()]
    key = lambda entry: entry["name"]  # noqa: E731
    assert sorted(files, key=key) == sorted(lines, key=key)


def test_failed_recordings_are_tried_again(capsys, tmp_path, model_dir, calls, decoded):
    (calls / "bad.wav").write_bytes(b"RIFF")
    out = tmp_path / "out"
    command = ["--model", model_dir, "--format", "all", "--output", out, calls]
    for expected in (5, 0):
        decoded.clear()
        status, err = run(capsys, *command)
        assert (status, sum(decoded)) == (1, expected)
        assert f"error: {calls / 'bad.wav'}" in err
    assert not [name for name in content(out) if "bad" in name]


def test_names_of_outputs():
    def names(form, *recordings, output="out"):
        found = output_paths(list(recordings), output, form)
        return [path.as_posix() for files in found for path in files.values()]

    a, b = (Recording(f"in/a.{x}", f"in/a.{x}", None, f"a.{x}") for x in ("wav", "mp3"))
    other = Recording("in/b/a.wav", "in/b/a.wav", None, "b/a.wav")
    assert names("srt", a, b, other) == [
        "out/a.wav.srt", "out/a.mp3.srt", "out/b/a.srt",
    ]  # fmt: skip
    table = [Recording("x/y", "in/a.wav"), Recording("..", "in/b.wav")]
    assert names("tsv", *table) == ["out/x_y.tsv", "out/...tsv"]
    assert output_paths([a], None, "srt") is None
    assert output_paths([a, b], "out", "json") is None
    assert names("json", a, b, output="out/") == ["out/a.wav.json", "out/a.mp3.json"]
    for form in ("txt", "all"):
        with pytest.raises(UserError, match="name a folder with --output"):
            output_paths([a, b], None, form)
