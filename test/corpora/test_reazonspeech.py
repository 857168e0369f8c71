"""ReazonSpeech: TSV and tar shards, unpacked once, divided into three sets."""

from __future__ import annotations

import errno
import io
import os
import tarfile

import numpy as np
import pytest
import soundfile

from speechllm.bin.prepare_data import main
from speechllm.corpora.reazonspeech import prepare_reazonspeech
from speechllm.data.kaldi_table import read_table
from speechllm.data.validation import validate_data_dir
from speechllm.utils import io as files
from speechllm.utils.errors import UserError
from speechllm.utils.io import unpack_tar


def flac() -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(1600), 16000, format="FLAC")
    return stream.getvalue()


def write_shard(path, names) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            content = flac()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


TSV = """\
001/b.flac\tえ？　まさか!?
000/a.flac\tそれは２０００年のことです。
000/c.flac\tはい。
001/d.flac\t
000/missing.flac\tありません。
no tab at all
000/e.flac\tまた来週
"""


@pytest.fixture
def release(tmp_path):
    root = tmp_path / "reazonspeech"
    (root / "data").mkdir(parents=True)
    (root / "tsv").mkdir()
    (root / "tsv" / "tiny.tsv").write_text(TSV, "utf-8")
    shard = root / "data" / "000.tar"
    write_shard(shard, ["./000/a.flac", "./000/c.flac", "000/e.flac", "000/x.flac"])
    write_shard(root / "data" / "001.tar", ["001/b.flac", "001/d.flac"])
    return root


def prepare(release, tmp_path, **options):
    options = {"size": "tiny", "dev_utterances": 1, "test_utterances": 1, **options}
    out = tmp_path / "data"
    return prepare_reazonspeech(release, out, unpack_dir=tmp_path / "un", **options)


def test_tables_are_as_expected(release, tmp_path, capsys):
    data, unpacked = tmp_path / "data", tmp_path / "un"
    arguments = ["--reazonspeech_dir", release, "--output", data, "--size", "tiny"]
    arguments += ["--unpack_dir", unpacked, "--dev_utterances", 1]
    arguments += ["--test_utterances", 1]
    main(["reazonspeech", *map(str, arguments)])
    reasons = "1 bad row, 1 empty text, 1 no audio file"
    assert capsys.readouterr().out.splitlines() == [
        f"{data}/dev: 1 utterances",
        f"{data}/test: 1 utterances",
        f"{data}/train: 2 utterances; left out: {reasons}",
    ]
    assert (data / "dev" / "text").read_text("utf-8") == (
        "rs-000_a それは２０００年のことです。\n"
    )
    assert (data / "test" / "text").read_text("utf-8") == "rs-000_c はい。\n"
    assert (data / "train" / "text").read_text("utf-8") == (
        "rs-000_e また来週\nrs-001_b え？ まさか!?\n"
    )
    assert (data / "train" / "wav.scp").read_text() == (
        f"rs-000_e {unpacked.resolve()}/000/e.flac\n"
        f"rs-001_b {unpacked.resolve()}/001/b.flac\n"
    )
    assert (data / "train" / "utt2spk").read_text() == (
        "rs-000_e rs-000_e\nrs-001_b rs-001_b\n"
    )
    assert (data / "train" / "dropped.tsv").read_text("utf-8") == (
        "rs-000_missing\tprepare_data\tno audio file\t"
        f"{unpacked.resolve()}/000/missing.flac\n"
        "rs-001_d\tprepare_data\tempty text\tline 4\n"
        "tiny.tsv:6\tprepare_data\tbad row\texpected <name><TAB><text>\n"
    )
    for name in ("train", "dev", "test"):
        assert validate_data_dir(data / name) == []


def test_shards_are_unpacked_once(release, tmp_path):
    prepare(release, tmp_path)
    clip = tmp_path / "un" / "000" / "a.flac"
    before = clip.stat().st_ctime_ns
    prepare(release, tmp_path)
    assert clip.stat().st_ctime_ns == before
    (tmp_path / "un" / ".000.done").unlink()  # as if interrupted
    clip.write_bytes(b"half")
    prepare(release, tmp_path)
    assert clip.read_bytes() == flac()


def test_unpacked_shards_are_used(release, tmp_path):
    for name in ("000", "001"):
        unpack_tar(release / "data" / f"{name}.tar", release / "data")
        (release / "data" / f"{name}.tar").unlink()
    prepare(release, tmp_path)
    (path,) = read_table(tmp_path / "data" / "dev" / "wav.scp").values()
    assert path == f"{release.resolve()}/data/000/a.flac"
    assert not (tmp_path / "un").exists()


def test_wrong_folder_is_an_error(release, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        prepare(tmp_path / "nowhere", tmp_path)
    with pytest.raises(UserError, match=r"/all.tsv: not found.* the TSV of: tiny"):
        prepare(release, tmp_path, size="all")
    for shard in (release / "data").iterdir():
        shard.unlink()
    with pytest.raises(UserError, match="data: neither shards .* nor their unpacked"):
        prepare(release, tmp_path)


def test_incomplete_shard_is_an_error(release, tmp_path):
    shard = release / "data" / "001.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(UserError, match="001.tar: cannot be unpacked"):
        prepare(release, tmp_path)
    assert not (tmp_path / "data").exists()


def test_web_page_instead_of_a_shard_is_one_line(release, tmp_path):
    (release / "data" / "001.tar").write_bytes(b"<html>Access denied</html>" * 30)
    with pytest.raises(UserError) as caught:
        prepare(release, tmp_path)
    assert "001.tar: cannot be unpacked (" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shard_cannot_write_outside_its_folder(release, tmp_path):
    write_shard(release / "data" / "002.tar", ["../../outside.flac"])
    with pytest.raises(UserError, match="002.tar: cannot be unpacked"):
        prepare(release, tmp_path)
    assert not list(tmp_path.glob("**/outside.flac"))


def test_shard_with_a_link_is_an_error(release, tmp_path):
    link = tarfile.TarInfo("000/link.flac")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(release / "data" / "002.tar", "w") as archive:
        archive.addfile(link)
    with pytest.raises(UserError, match=r"002.tar: .*link.flac: a link, a device or"):
        prepare(release, tmp_path)
    assert not list(tmp_path.glob("**/link.flac"))


def test_full_disk_keeps_the_old_data(release, tmp_path, monkeypatch):
    prepare(release, tmp_path)
    before = (tmp_path / "data" / "train" / "text").read_bytes()

    def full(source, target):
        target.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", target.name)

    (tmp_path / "un" / ".000.done").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "copyfileobj", full)
        with pytest.raises(OSError, match="No space left"):
            prepare(release, tmp_path)
    assert not (tmp_path / "un" / ".000.done").exists()
    assert (tmp_path / "data" / "train" / "text").read_bytes() == before
    prepare(release, tmp_path)
    assert (tmp_path / "un" / "000" / "a.flac").read_bytes() == flac()


def test_bad_tables_are_errors(release, tmp_path):
    table = release / "tsv" / "tiny.tsv"
    table.write_bytes(TSV.encode("cp932"))
    with pytest.raises(UserError, match="tiny.tsv:1: not UTF-8"):
        prepare(release, tmp_path)
    lines = ["000/c.flac\tc", "000/a.flac\ta", "000/e.flac\td", "000/a.flac\tb"]
    table.write_text("\n".join(lines), "utf-8")
    with pytest.raises(UserError, match="rs-000_a is listed twice"):
        prepare(release, tmp_path, dev_utterances=2)
    assert list((tmp_path / "data").iterdir()) == []
    with pytest.raises(UserError, match="4 utterances are too few for 1000 dev"):
        prepare(release, tmp_path, dev_utterances=1000)
    with pytest.raises(UserError, match="-1 dev and 1 test .* at least 1"):
        prepare(release, tmp_path, dev_utterances=-1)


def test_named_pipe_instead_of_a_shard_is_an_error(release, tmp_path):
    (release / "data" / "001.tar").unlink()
    os.mkfifo(release / "data" / "001.tar")
    with pytest.raises(UserError, match="001.tar: not a file"):
        prepare(release, tmp_path)
