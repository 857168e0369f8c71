"""Atomic output: nothing of the user is lost, and nothing incomplete is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pytest

from speechllm.utils.errors import UserError
from speechllm.utils.folders import (
    MARKER,
    FolderKind,
    atomic_directory,
    claim_directory,
    link_folder,
    read_marker,
    remove_directory,
)
from speechllm.utils.io import atomic_open, previous_name, unpack_tar

KIND = FolderKind("data dir", ("dropped.tsv",))


def claim(folder, inputs=()):
    return claim_directory(folder, KIND, inputs)


def write(folder, inputs=(), **files):
    """Replace a folder by one with the given files."""
    with atomic_directory(folder, KIND, inputs) as new:
        for name, text in files.items():
            (new / name).write_text(text)


def tree(folder) -> dict[str, str]:
    """Return the content of all files below a folder, without markers and logs."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != MARKER
    }


def test_new_folder_is_complete_and_marked(tmp_path):
    write(tmp_path / "a/b", text="1", wav="2")
    assert tree(tmp_path) == {"a/b/text": "1", "a/b/wav": "2"}
    assert read_marker(tmp_path / "a/b") == ("data dir", {"text", "wav"})


def test_own_files_are_replaced_and_others_stay(tmp_path):
    write(tmp_path / "data", text="old", extra="old")
    (tmp_path / "data/notes.md").write_text("mine")
    (tmp_path / "data/audio").mkdir()
    (tmp_path / "data/audio/a.wav").write_text("mine")
    write(tmp_path / "data", text="new")
    assert tree(tmp_path / "data") == {
        "text": "new",
        "notes.md": "mine",
        "audio/a.wav": "mine",
    }
    assert read_marker(tmp_path / "data") == ("data dir", {"text"})


def test_outdated_folders_are_removed_unless_the_user_put_files_there(tmp_path):
    for parts in (["a/x", "b/x"], ["c"]):
        with atomic_directory(tmp_path / "out", KIND) as new:
            for part in parts:
                (new / part).parent.mkdir(exist_ok=True)
                (new / part).write_text("")
        (tmp_path / "out/b/mine").write_text("") if parts[0] == "a/x" else None
    assert sorted(tree(tmp_path / "out")) == ["b/mine", "c"]
    assert not (tmp_path / "out/a").exists()


def test_folder_of_the_user_is_not_written(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    write(mine, text="1")  # empty before
    mine = tmp_path / "corpus"
    mine.mkdir()
    (mine / "text").write_text("mine")
    with pytest.raises(UserError, match="did not write"):
        write(mine, text="1")
    with pytest.raises(UserError, match="did not write"):
        claim_directory(mine, KIND)
    assert tree(mine) == {"text": "mine"}
    assert os.listdir(mine) == ["text"]


def test_user_file_with_the_name_of_a_new_one_is_not_replaced(tmp_path):
    write(tmp_path / "data", text="old")
    (tmp_path / "data/text.fr").write_text("mine")
    with pytest.raises(UserError, match=r"data/text\.fr: not written by this project"):
        write(tmp_path / "data", **{"text": "new", "text.fr": "new"})
    assert tree(tmp_path / "data") == {"text": "old", "text.fr": "mine"}


@pytest.mark.parametrize("make", [write, claim])
def test_output_that_contains_an_input_is_refused(tmp_path, make):
    source = tmp_path / "corpus/train"
    source.mkdir(parents=True)
    (source / "text").write_text("mine")
    (tmp_path / "link").symlink_to(source)
    for given in (source, tmp_path / "link", source / "text", tmp_path / "corpus"):
        with pytest.raises(UserError, match="is or contains the input"):
            make(tmp_path / "corpus", [given])
    assert tree(tmp_path / "corpus") == {"train/text": "mine"}


def test_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    for make in (write, claim):
        with pytest.raises(UserError, match="is a file"):
            make(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_folder_of_an_earlier_release_is_recognised(tmp_path):
    old = tmp_path / "data"
    old.mkdir()
    for name in ("dropped.tsv", "text", "mine"):
        (old / name).write_text(name)
    write(old, **{"dropped.tsv": "", "text": "new"})
    assert tree(old) == {"dropped.tsv": "", "text": "new", "mine": "mine"}
    kept = tree(tmp_path / "data.previous")
    assert kept == {"dropped.tsv": "dropped.tsv", "text": "text"}
    write(old, **{"dropped.tsv": "", "text": "newer"})  # now there is a marker
    assert not (tmp_path / "data.previous.2").exists()


def test_marker_of_someone_else_removes_nothing_outside(tmp_path):
    (tmp_path / "precious").write_text("mine")
    write(tmp_path / "out", text="1")
    lines = ["# data dir", "../precious", str(tmp_path / "precious"), "text", "folder"]
    (tmp_path / "out" / MARKER).write_text("\n".join(lines) + "\n")
    (tmp_path / "out/folder").mkdir()
    (tmp_path / "out/folder/mine").write_text("mine")
    write(tmp_path / "out", text="2")
    assert tree(tmp_path) == {
        "out/folder/mine": "mine",
        "out/text": "2",
        "precious": "mine",
    }


def test_failure_leaves_the_earlier_folder(tmp_path):
    write(tmp_path / "out", text="old")
    with (
        pytest.raises(ZeroDivisionError),
        atomic_directory(tmp_path / "out", KIND) as new,
    ):
        (new / "text").write_text("new")
        raise ZeroDivisionError
    assert tree(tmp_path) == {"out/text": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_linked_folder_stays_a_link(tmp_path):
    (tmp_path / "large_disk").mkdir()
    (tmp_path / "data").symlink_to("large_disk")
    for text in "12":
        write(tmp_path / "data", text=text)
    assert (tmp_path / "data").is_symlink()
    assert tree(tmp_path / "large_disk") == {"text": "2"}
    with atomic_open(tmp_path / "target") as stream:
        stream.write("1")
    (tmp_path / "link").symlink_to("target")
    with atomic_open(tmp_path / "link") as stream:
        stream.write("2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "2"


def test_file_of_a_folder_that_is_a_link_stays_one(tmp_path):
    """Its target is replaced, on another disk too."""
    disks = [tmp_path / "disk"]
    disks[0].mkdir()
    memory = Path("/dev/shm")
    if memory.is_dir() and memory.stat().st_dev != tmp_path.stat().st_dev:
        disks.append(Path(tempfile.mkdtemp(dir=memory)))
    try:
        for disk in disks:
            write(tmp_path / "data", text="old", wav="old")
            (tmp_path / "data/text").rename(tmp_path / "moved")
            shutil.move(tmp_path / "moved", disk / "text")
            (tmp_path / "data/text").symlink_to(disk / "text")
            write(tmp_path / "data", text="new", wav="new")
            assert (tmp_path / "data/text").readlink() == disk / "text"
            assert os.listdir(disk) == ["text"]
            assert tree(tmp_path / "data") == {"text": "new", "wav": "new"}
            (tmp_path / "data/text").unlink()
        assert len([p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]) == 0
    finally:
        for disk in disks[1:]:
            shutil.rmtree(disk)


def test_link_to_a_folder_is_changed_and_other_things_stay(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        link_folder(tmp_path / name, tmp_path / "exp/model")
        assert (tmp_path / "exp/model").resolve() == tmp_path / name
    assert os.listdir(tmp_path / "exp") == ["model"]
    with pytest.raises(UserError, match="first: is not a link"):
        link_folder(tmp_path / "second", tmp_path / "first")


def test_group_of_the_earlier_file_is_kept(tmp_path):
    others = set(os.getgroups()) - {os.getegid()}
    if os.geteuid() == 0:
        others.add(4321)
    if not others:
        pytest.skip("this user has one group")
    group = max(others)
    with atomic_open(tmp_path / "file") as stream:
        stream.write("1")
    os.chown(tmp_path / "file", -1, group)
    os.chmod(tmp_path / "file", 0o660)
    with atomic_open(tmp_path / "file") as stream:
        stream.write("2")
    status = (tmp_path / "file").stat()
    assert (status.st_gid, status.st_mode & 0o7777) == (group, 0o660)


def test_permissions_follow_the_umask_or_the_earlier_file(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "out", text="1")
        with atomic_open(tmp_path / "file") as stream:
            stream.write("1")
        assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o750
        assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o640
        os.chmod(tmp_path / "file", 0o600)
        with atomic_open(tmp_path / "file") as stream:
            stream.write("2")
        assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o600
        (tmp_path / "team").mkdir()
        os.chmod(tmp_path / "team", 0o2770)
        write(tmp_path / "team/out", text="1")
        assert (tmp_path / "team/out").stat().st_mode & 0o7777 == 0o2750
    finally:
        os.umask(before)


def test_pipe_is_written_and_folder_refused_as_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with atomic_open(tmp_path / "pipe") as stream:
        stream.write("text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    with pytest.raises(UserError, match="is a folder"), atomic_open(tmp_path):
        pass


_WRITER = """
import sys, time
from speechllm.utils.errors import run_main
from speechllm.utils.folders import FolderKind, atomic_directory
from speechllm.utils.io import atomic_open

kind = FolderKind("data dir", ("dropped.tsv",))

def main():
    root = sys.argv[1]
    with atomic_directory(root + "/out", kind) as new, atomic_open(root + "/f"):
        (new / "text").write_text("new")
        print("ready", flush=True)
        time.sleep(60)

run_main(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_killed_writer_leaves_nothing_behind(tmp_path, number):
    write(tmp_path / "out", text="old")
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
    if number == signal.SIGKILL:  # the next writer removes what is left
        left = [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
        assert len(left) == 2
        for path in left:
            os.utime(path, (time.time() - 120,) * 2)
        write(tmp_path / "out", text="old")
        with atomic_open(tmp_path / "f"):
            pass
        (tmp_path / "f").unlink()
    else:
        assert process.returncode == 128 + number
    assert os.listdir(tmp_path) == ["out"]
    assert tree(tmp_path / "out") == {"text": "old"}


def test_temporary_files_in_use_are_not_removed(tmp_path):
    with atomic_open(tmp_path / "file") as first:
        for path in tmp_path.iterdir():
            os.utime(path, (time.time() - 120,) * 2)
        with atomic_open(tmp_path / "file") as second:
            second.write("2")
        first.write("1")
    assert (tmp_path / "file").read_text() == "1"


def test_long_names_are_written(tmp_path):
    name = "音" * 84  # 252 bytes
    with atomic_open(tmp_path / name) as stream:
        stream.write("1")
    assert os.listdir(tmp_path) == [name]


def test_folder_of_another_kind_is_not_written(tmp_path):
    write(tmp_path / "data", text="references")
    scores = FolderKind("folder of scores")
    with pytest.raises(UserError, match="is a data dir, so it is not changed"):
        claim_directory(tmp_path / "data", scores)
    remove_directory(tmp_path / "data", scores)
    assert tree(tmp_path / "data") == {"text": "references"}


def test_removal_keeps_files_of_the_user(tmp_path):
    write(tmp_path / "data", text="1")
    (tmp_path / "data/mine").write_text("mine")
    remove_directory(tmp_path / "data", KIND)
    assert tree(tmp_path) == {"data/mine": "mine"}
    write(tmp_path / "other", text="1")
    remove_directory(tmp_path / "other", KIND)
    assert os.listdir(tmp_path) == ["data"]


def test_damaged_marker_is_an_error(tmp_path):
    write(tmp_path / "data", text="1")
    for content in (b"", b"\xff\xfe", b"text\n"):
        (tmp_path / "data" / MARKER).write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            write(tmp_path / "data", text="2")
    assert tree(tmp_path / "data") == {"text": "1"}


def test_all_files_of_a_signature_are_needed(tmp_path):
    kind = FolderKind("model folder", ("model.safetensors", "prompts.yaml"))
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/prompts.yaml").write_text("mine")
    with pytest.raises(UserError, match="did not write"):
        claim_directory(tmp_path / "conf", kind)
    (tmp_path / "conf/model.safetensors").write_text("")
    claim_directory(tmp_path / "conf", kind)


def test_earlier_versions_have_free_names(tmp_path):
    path = tmp_path / "a"
    for name in ("a.previous", "a.previous.2", "a.previous.3"):
        assert previous_name(path) == tmp_path / name
        (tmp_path / name).touch()


def test_launchers_logs_and_markers_of_parallel_jobs_are_no_content(tmp_path):
    (tmp_path / "decode/log").mkdir(parents=True)
    (tmp_path / "decode/log/decode.1.log").write_text("# started")
    (tmp_path / "decode/.lock").write_text("run 1 on host\n")
    (tmp_path / f"decode/.{MARKER}.01234567.tmp").write_text("")
    claim(tmp_path / "decode")
    assert read_marker(tmp_path / "decode") == ("data dir", set())


def test_small_tar_with_huge_content_is_refused(tmp_path):
    (tmp_path / "zeros").write_bytes(bytes(50 * 2**20))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "zeros", "zeros")
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match=r"a\.tar\.gz: zeros: would unpack to 50 MiB"):
        unpack_tar(tmp_path / "a.tar.gz", tmp_path / "new", "r:gz")
    assert os.listdir(tmp_path / "new") == []
