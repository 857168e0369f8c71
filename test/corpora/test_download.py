"""Downloads of corpora from a local server: resumed, checked, unpacked."""

from __future__ import annotations

import hashlib
import io
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, serve

from speechllm.corpora import _download
from speechllm.corpora._download import download, is_unpacked, unpack_tar
from speechllm.utils.errors import UserError

CONTENT = random.Random(0).randbytes(300_000)  # the same in every process
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(_download, "_FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(_download, "_CHUNK_BYTES", 10_000)
    with serve({"/a.tar": CONTENT}) as state:
        yield state


def test_a_file_is_downloaded_once(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.tar"
    for _ in range(2):
        found = download(f"{server.url}/a.tar", target, size=300_000, md5=MD5)
        assert found == target
        assert target.read_bytes() == CONTENT
    assert server.requests == [("/a.tar", None)]
    assert os.listdir(target.parent) == ["a.tar"]


@pytest.mark.parametrize("etags", [True, False])
def test_cut_connections_are_resumed(
    server: FileServer, tmp_path: Path, etags: bool
) -> None:
    server.etags = etags
    server.faults = [-100_000, -50_000, 503]
    download(f"{server.url}/a.tar", tmp_path / "a.tar", md5=MD5)
    assert [span for _, span in server.requests] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
        "bytes=150000-",
    ]
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_a_later_run_resumes(server: FileServer, tmp_path: Path) -> None:
    server.faults = [-100_000] + [503] * _download.ATTEMPTS
    with pytest.raises(UserError, match=r"503.*100,000 bytes are kept.*to resume"):
        download(f"{server.url}/a.tar", tmp_path / "a.tar", md5=MD5)
    assert not (tmp_path / "a.tar").exists()
    server.faults.clear()
    download(f"{server.url}/a.tar", tmp_path / "a.tar", md5=MD5)
    assert server.requests[-1] == ("/a.tar", "bytes=100000-")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["a.tar"]


@pytest.mark.parametrize("new_size", [50_000, 200_000, 400_000])
def test_a_file_that_has_changed_is_downloaded_again(
    server: FileServer, tmp_path: Path, new_size: int
) -> None:
    server.faults = [-100_000] + [500] * _download.ATTEMPTS
    with pytest.raises(UserError):
        download(f"{server.url}/a.tar", tmp_path / "a.tar")
    server.faults.clear()
    server.files["/a.tar"] = new = os.urandom(new_size)
    download(f"{server.url}/a.tar", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == new


def test_servers_without_ranges_start_again(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.faults = [-100_000]
    download(f"{server.url}/a.tar", tmp_path / "a.tar", md5=MD5)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_redirections_are_followed_and_resumed(
    server: FileServer, tmp_path: Path
) -> None:
    """The hub redirects large files to another server."""
    server.redirects["/hub/a.tar"] = "/a.tar"
    server.faults = [-100_000]
    download(f"{server.url}/hub/a.tar", tmp_path / "a.tar", md5=MD5)
    assert server.requests == [("/a.tar", None), ("/a.tar", "bytes=100000-")]


def test_another_part_than_the_requested_one(
    server: FileServer, tmp_path: Path
) -> None:
    server.shift = 7
    server.faults = [-100_000]
    download(f"{server.url}/a.tar", tmp_path / "a.tar")
    assert [span for _, span in server.requests] == [None, "bytes=100000-", None]
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_all_bytes_were_received_before_an_interruption(
    server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "a.tar.part").write_bytes(CONTENT)
    download(f"{server.url}/a.tar", tmp_path / "a.tar", md5=MD5)
    assert server.requests == [("/a.tar", "bytes=300000-")]
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"md5": "0" * 32}, f"md5 {MD5} instead of {'0' * 32}, so it was removed"),
        ({"sha256": "0" * 64}, "sha256 .* so it was removed"),
        ({"size": 5}, "server's file has 300,000 bytes instead of 5"),
    ],
)
def test_other_files_are_refused(
    server: FileServer, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        download(f"{server.url}/a.tar", tmp_path / "a.tar", **options)
    assert not any(tmp_path.glob("*.tar*"))


def test_existing_files_are_checked_and_kept(
    server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(b"damaged")
    with pytest.raises(UserError, match="7 bytes instead of 300,000; remove it"):
        download(f"{server.url}/a.tar", tmp_path / "a.tar", size=300_000)
    with pytest.raises(UserError, match="md5 .*; remove it"):
        download(f"{server.url}/a.tar", tmp_path / "a.tar", md5=MD5)
    assert (tmp_path / "a.tar").read_bytes() == b"damaged"
    assert not server.requests


def test_refusals_end_at_once(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/b.tar: the server refuses it with HTTP 404"):
        download(f"{server.url}/b.tar", tmp_path / "b.tar")
    assert len(server.requests) == 1
    assert not os.listdir(tmp_path)
    with pytest.raises(UserError, match="not an address"):
        download("a.tar", tmp_path / "b.tar")


def test_unreachable_servers_end_after_some_attempts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_download, "_FIRST_WAIT_SECONDS", 0.0)
    with serve({}) as state:
        url = f"{state.url}/a.tar"
    with pytest.raises(UserError, match="Connection refused; 0 bytes are kept"):
        download(url, tmp_path / "a.tar")


def test_too_little_space(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 299_999})
    monkeypatch.setattr(_download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="0.0 GB are free; make room"):
        download(f"{server.url}/a.tar", tmp_path / "a.tar")


def test_one_process_at_a_time(server: FileServer, tmp_path: Path) -> None:
    with _download._locked(tmp_path / "a.tar.part"):
        with pytest.raises(UserError, match="another process is downloading"):
            download(f"{server.url}/a.tar", tmp_path / "a.tar")


def _tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_archives_are_unpacked_once(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "corpus"
    for name in ("one", "two"):
        members = {f"Corpus/{name}/a.flac": name.encode()}
        unpack_tar(_tar(tmp_path / f"{name}.tar.gz", members, mode), folder)
    assert (folder / "Corpus/one/a.flac").read_bytes() == b"one"
    assert (folder / "Corpus/two/a.flac").read_bytes() == b"two"
    (folder / "Corpus/one/a.flac").unlink()
    unpack_tar(tmp_path / "one.tar.gz", folder)
    (tmp_path / "one.tar.gz").unlink()
    unpack_tar(tmp_path / "one.tar.gz", folder)
    assert is_unpacked(tmp_path / "one.tar.gz", folder)
    assert not is_unpacked(tmp_path / "three.tar.gz", folder)
    assert not (folder / "Corpus/one/a.flac").exists()
    assert not list(folder.glob(".*.new"))


def test_an_interrupted_unpacking_is_repeated(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tar.gz", {"x/a": b"a", "x/b": b"b"})
    folder = tmp_path / "corpus"
    (folder / ".a.tar.gz.new" / "x").mkdir(parents=True)
    (folder / ".a.tar.gz.new" / "x" / "half").write_bytes(b"")
    (folder / "x").mkdir()
    (folder / "x" / "a").write_bytes(b"a")
    unpack_tar(archive, folder)
    assert sorted(os.listdir(folder / "x")) == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["../outside", "/tmp/speechllm_outside", "x/../../outside"]
)
def test_members_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    archive = _tar(tmp_path / "a.tar.gz", {"x/a": b"a", name: b"b"})
    with pytest.raises(UserError, match="outside of the folder"):
        unpack_tar(archive, tmp_path / "corpus")
    assert os.listdir(tmp_path / "corpus") == []
    assert not (tmp_path / "outside").exists()


def test_files_of_the_user_are_not_replaced(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tar.gz", {"x/a": b"new", "x/b": b"new"})
    (tmp_path / "corpus" / "x").mkdir(parents=True)
    (tmp_path / "corpus" / "x" / "b").write_bytes(b"mine and longer")
    with pytest.raises(UserError, match="x/b: differs .*; move it away"):
        unpack_tar(archive, tmp_path / "corpus")
    assert (tmp_path / "corpus" / "x" / "b").read_bytes() == b"mine and longer"
    assert os.listdir(tmp_path / "corpus" / "x") == ["b"]


@pytest.mark.parametrize("damage", ["cut", "bytes", "no archive", "missing"])
def test_damaged_archives(tmp_path: Path, damage: str) -> None:
    archive = _tar(tmp_path / "a.tar.gz", {"x/a": os.urandom(50_000)})
    content = archive.read_bytes()
    if damage == "cut":
        archive.write_bytes(content[:30_000])
    elif damage == "bytes":
        archive.write_bytes(content[:100] + bytes(200) + content[300:])
    elif damage == "no archive":
        archive.write_bytes(b"<html>not found</html>")
    else:
        archive.unlink()
    with pytest.raises(UserError, match=r"a\.tar\.gz: .*download it"):
        unpack_tar(archive, tmp_path / "corpus")
    assert not (tmp_path / "corpus" / "x").exists()
