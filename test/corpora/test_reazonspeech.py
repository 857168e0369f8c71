"""ReazonSpeech: TSV and tar shards, unpacked once, divided into three sets."""

from __future__ import annotations

import errno
import io
import os
import random
import tarfile

import numpy as np
import pytest
import soundfile
from file_server import serve

from speechllm.audio.io import load_audio
from speechllm.bin.prepare_data import main
from speechllm.corpora import _reazonspeech_shards as shards
from speechllm.corpora._reazonspeech_shards import (
    SIZES,
    flac_seconds,
    list_clips,
    split_recording,
)
from speechllm.corpora.reazonspeech import prepare_reazonspeech
from speechllm.data.format_wav_scp import format_audio
from speechllm.data.kaldi_table import read_dropped, read_table
from speechllm.data.validation import validate_data_dir
from speechllm.utils import io as files
from speechllm.utils import sorting
from speechllm.utils.errors import UserError
from speechllm.utils.io import unpack_tar


def flac(value: float = 0.0, samples: int = 1600) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.full(samples, value), 16000, format="FLAC")
    return stream.getvalue()


def write_shard(path, names, contents=None) -> None:
    with tarfile.open(path, "w") as archive:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            content = contents[number] if contents else flac()
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
    options = {"unpack_dir": tmp_path / "un", **options}
    return prepare_reazonspeech(release, tmp_path / "data", **options)


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
        "rs-000_missing\tprepare_data\tno audio file\t000/missing.flac\n"
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
    write_shard(release / "data" / "001.tar", ["../../outside.flac"])
    with pytest.raises(UserError, match="001.tar: cannot be unpacked"):
        prepare(release, tmp_path)
    with pytest.raises(UserError, match=r"001.tar: .*outside.flac: a link, a device"):
        prepare(release, tmp_path, unpack_dir=None)
    assert not list(tmp_path.glob("**/outside.flac"))


def test_shard_with_a_link_is_an_error(release, tmp_path):
    link = tarfile.TarInfo("000/link.flac")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(release / "data" / "001.tar", "w") as archive:
        archive.addfile(link)
    with pytest.raises(UserError, match=r"001.tar: .*link.flac: a link, a device or"):
        prepare(release, tmp_path)
    with pytest.raises(UserError, match=r"001.tar: .*link.flac: a link, a device or"):
        prepare(release, tmp_path, unpack_dir=None)
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


# Clips within the shards, the server's layout, joined clips


def test_clips_are_read_within_the_shards(tmp_path):
    """Each clip has its own level, which tells the clips apart in the audio."""
    root = tmp_path / "reazonspeech-v2"
    (root / "data").mkdir(parents=True)
    (root / "tsv").mkdir()
    names = [f"00{n // 4}/{n}.flac" for n in range(8)]
    for shard in ("000", "001"):
        own = [name for name in names if name.startswith(shard)]
        levels = [flac(int(name[4]) / 10, 1600 + 160 * int(name[4])) for name in own]
        write_shard(root / "data" / f"{shard}.tar", own, levels)
    write_shard(root / "data" / "0ff.tar", ["0ff/x.flac"], [b"of another size"])
    rows = [f"{name}\tそれは{name[4]}です。\n" for name in names]
    (root / "tsv" / "small.tsv").write_text("".join(rows), "utf-8")
    for given in (root, tmp_path):  # the version's folder, or the one above
        prepare(given, tmp_path, size="small", unpack_dir=None)
        data = tmp_path / "data"
        assert [
            len(read_table(data / n / "text")) for n in ("dev", "test", "train")
        ] == [
            1,
            1,
            6,
        ]
        assert validate_data_dir(data / "train") == []
        assert not (tmp_path / "un").exists()
    assert format_audio(data / "train", tmp_path / "audio")[0] == 6
    lengths = read_table(tmp_path / "audio" / "utt2num_samples")
    for key, path in read_table(tmp_path / "audio" / "wav.scp").items():
        number = int(key[-1])
        assert int(lengths[key]) == 1600 + 160 * number
        np.testing.assert_allclose(load_audio(path), number / 10, atol=1e-3)
    # the same as those of unpacked shards
    prepare(root, tmp_path / "other", size="small", unpack_dir=tmp_path / "un")
    other = tmp_path / "other" / "data" / "train"
    assert (other / "text").read_bytes() == (data / "train" / "text").read_bytes()
    for key, recording in read_table(data / "train" / "wav.scp").items():
        path = read_table(other / "wav.scp")[key]
        np.testing.assert_array_equal(load_audio(recording), load_audio(path))


def test_members_of_a_shard_are_where_tar_writes_them(tmp_path):
    """Long names (GNU and pax headers) and folders move the data."""
    names = ["000/a.flac", "000/" + "b" * 150 + ".flac", "000/日本.flac"]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{form}.tar"
        with tarfile.open(path, "w", format=form) as archive:
            folder = tarfile.TarInfo("000")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for number, name in enumerate(names):
                member = tarfile.TarInfo(f"./{name}")
                member.size = 1000 + number
                archive.addfile(member, io.BytesIO(bytes([number + 1]) * member.size))
        content = path.read_bytes()
        clips = list_clips(path)
        assert list(clips) == names
        for number, recording in enumerate(clips.values()):
            place, offset, size = split_recording(recording)
            assert place == str(path)
            found = content[offset : offset + size]
            assert found == bytes([number + 1]) * (1000 + number)


def test_shard_that_was_cut_off_is_refused(release, tmp_path):
    """Also at the border of a member, where tar itself notices nothing."""
    shard = release / "data" / "001.tar"
    content = shard.read_bytes()
    end = max(sum(split_recording(one)[1:]) for one in list_clips(shard).values())
    border = -(-end // 512) * 512
    assert content[border : border + 512] == bytes(512)
    for size in (100, 512, 700, end - 1, border, border + 100):
        shard.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"001.tar: damaged or incomplete \("):
            prepare(release, tmp_path, unpack_dir=None)
    assert not (tmp_path / "data").exists()
    shard.write_bytes(content[: border + 512])  # whole, without tar's padding
    assert prepare(release, tmp_path, unpack_dir=None)["train"][0] == 2


def test_missing_shards_are_reported(release, tmp_path, capsys):
    """One entry stands for the clips of a missing shard."""
    rows = TSV + "00a/z.flac\tはい\n00a/y.flac\tはい\n"
    (release / "tsv" / "small.tsv").write_text(rows, "utf-8")
    warning = "warning: 1 shards of small are missing, the first is 00a.tar; their"
    for unpack_dir in (None, tmp_path / "un"):
        found = prepare(release, tmp_path, size="small", unpack_dir=unpack_dir)
        assert warning in capsys.readouterr().out
        assert found["train"][0] == 2
        entries = read_dropped(tmp_path / "data" / "train")
        assert [(e.id, e.reason, e.detail) for e in entries] == [
            ("00a.tar", "missing shard", "2 clips"),
            ("rs-000_missing", "no audio file", "000/missing.flac"),
            ("rs-001_d", "empty text", "line 4"),
            ("small.tsv:6", "bad row", "expected <name><TAB><text>"),
        ]
    for name in ("000", "001"):
        (release / "data" / f"{name}.tar").unlink()
        (tmp_path / "un" / name).rename(release / "data" / name)
    prepare(release, tmp_path, size="small")
    assert warning in capsys.readouterr().out


def test_sorting_on_disk_gives_the_same_tables(tmp_path, monkeypatch):
    """Shards, names and lists in any order; one record at a time is in memory."""
    rng = random.Random(0)
    root = tmp_path / "rs"
    root.mkdir()
    names = [f"{n % 3:03x}/{rng.randrange(10**6):06}.flac" for n in range(60)]
    for shard in ("000", "001", "002"):
        own = [name for name in names if name.startswith(shard)]
        write_shard(root / f"{shard}.tar", own, [flac(samples=48000)] * len(own))
    rng.shuffle(names)
    rows = [f"{name}\t文{n}。\n" for n, name in enumerate(names)]
    (root / "tiny.tsv").write_text("".join(rows), "utf-8")
    for join in (False, True):
        expected = tmp_path / f"memory {join}"
        prepare_reazonspeech(root, expected, "tiny", None, 5, 6, join)
        with monkeypatch.context() as patch:
            patch.setattr(sorting, "_CHUNK_CHARACTERS", 1)
            prepare_reazonspeech(root, tmp_path / "disk", "tiny", None, 5, 6, join)
        for path in [p for p in expected.rglob("*") if p.is_file()]:
            found = tmp_path / "disk" / path.relative_to(expected)
            assert found.read_bytes() == path.read_bytes()
        texts = read_table(expected / "train" / "text")
        if not join:
            order = sorted(names)
            assert list(texts) == [f"rs-{n[:3]}_{n[4:-5]}" for n in order[11:]]
            assert list(texts.values()) == [f"文{names.index(n)}。" for n in order[11:]]
        assert validate_data_dir(expected / "train") == []


def server_files(version: str, table: str, count: int) -> dict[str, bytes]:
    """Return the files of the project's server, of a corpus of four clips a shard."""
    files, rows = {}, []
    for number in range(count):
        names = [f"{number:03x}/{clip}.flac" for clip in "abcd"]
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(flac(0.1))
                archive.addfile(member, io.BytesIO(flac(0.1)))
        files[f"/{version}/data/{number:03x}.tar"] = stream.getvalue()
        rows += [f"{name}\tそれは{name}です。\n" for name in names]
    files[f"/{version}/tsv/{table}.tsv"] = "".join(rows).encode()
    return files


@pytest.mark.parametrize(
    ("size", "version", "table", "count"),
    [
        ("tiny", "reazonspeech-v2", "tiny", 1),
        ("small", "reazonspeech-v2", "small", 12),
        ("all-v1", "reazonspeech-v1", "all", 3),
    ],
)
def test_download_of_a_size(tmp_path, monkeypatch, size, version, table, count):
    if size == "all-v1":  # of 4,096
        monkeypatch.setitem(SIZES, size, SIZES[size]._replace(shards=count))
    files = server_files(version, table, count)
    root, data = tmp_path / "downloads", tmp_path / "data"
    arguments = ["--reazonspeech_dir", root, "--output", data, "--size", size]
    arguments += ["--dev_utterances", 1, "--test_utterances", 1, "--download"]
    with serve(files) as server:
        main(["reazonspeech", *map(str, arguments), "--url", server.url])
        wanted = {f"/{version}/tsv/{table}.tsv"}
        wanted |= {f"/{version}/data/{number:03x}.tar" for number in range(count)}
        assert {path for path, _ in server.requests} == wanted
        main(["reazonspeech", *map(str, arguments), "--url", server.url])
        assert len(server.requests) == count + 1  # all is there
    for path, content in files.items():
        assert (root / path[1:]).read_bytes() == content
    assert len(read_table(data / "train" / "text")) == 4 * count - 2
    assert validate_data_dir(data / "train") == []


def test_interrupted_download_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    files = server_files("reazonspeech-v2", "tiny", 1)
    shard = files["/reazonspeech-v2/data/000.tar"]
    with serve(files) as server:
        server.faults = [0, -5000, 503]  # the list, then 5,000 bytes of the shard
        folder = shards.download_reazonspeech(tmp_path, "tiny", server.url)
    assert (folder / "data" / "000.tar").read_bytes() == shard
    assert [wanted for _, wanted in server.requests] == [
        None,
        None,
        "bytes=5000-",
        "bytes=5000-",
    ]


def test_damaged_shard_of_the_server_is_refused(tmp_path):
    files = server_files("reazonspeech-v2", "tiny", 1)
    files["/reazonspeech-v2/data/000.tar"] = b"<html>Access denied</html>" * 99
    with serve(files) as server, pytest.raises(UserError) as caught:
        shards.download_reazonspeech(tmp_path, "tiny", server.url)
    assert "000.tar: damaged or incomplete (" in str(caught.value)
    assert "remove it and download it again" in str(caught.value)


def test_sizes_equal_those_of_the_loading_script():
    """The list of the corpus's loading script on the hub."""
    assert {
        name: (one.folder[-2:], one.table, one.shards) for name, one in SIZES.items()
    } == {
        "tiny": ("v2", "tiny.tsv", 1),
        "small": ("v2", "small.tsv", 12),
        "medium": ("v2", "medium.tsv", 116),
        "large": ("v2", "large.tsv", 579),
        "all": ("v2", "all.tsv", 4096),
        "small-v1": ("v1", "small.tsv", 1),
        "medium-v1": ("v1", "medium.tsv", 64),
        "all-v1": ("v1", "all.tsv", 4096),
    }
    assert SIZES["all"].shard_names[-1] == "fff.tar"


def test_clips_are_joined_as_in_espnets_recipe(tmp_path):
    """Clips 0, 2, 4, … stay alone; 1, 3, 5 have 8 s each, so that three exceed 20 s."""
    seconds = [2, 8, 3, 8, 2, 8, 1, 8, 2, 4, 1, 1]
    names = [f"000/{number:02}.flac" for number in range(len(seconds))]
    contents = [flac(0.05 * n, 16000 * s) for n, s in enumerate(seconds)]
    root = tmp_path / "rs"
    root.mkdir()
    write_shard(root / "000.tar", names, contents)
    rows = [f"{name}\t文{name[4:6]}。\n" for name in names]
    extra = ["000/x.flac\tdev\n", "000/y.flac\ttest\n"]
    (root / "tiny.tsv").write_text("".join(rows + extra), "utf-8")
    prepare_reazonspeech(root, tmp_path / "all", "tiny", None, 1, 1)
    train = [f"rs-000_{number:02}" for number in range(2, 12)]
    assert list(read_table(tmp_path / "all/train/text")) == train
    # train is 02 to 11: 02, 04, 06, 08, 10 alone, then 03+05+07 (24 s), 09+11 (5 s)
    prepare_reazonspeech(root, tmp_path / "data", "tiny", None, 1, 1, join=True)
    text = read_table(tmp_path / "data/train/text")
    assert text == {
        "rs-000_02": "文02。",
        "rs-000_03": "文03。文05。文07。",
        "rs-000_04": "文04。",
        "rs-000_06": "文06。",
        "rs-000_08": "文08。",
        "rs-000_09": "文09。文11。",
        "rs-000_10": "文10。",
    }
    assert validate_data_dir(tmp_path / "data/train") == []
    recordings = read_table(tmp_path / "data/train/wav.scp")
    joined = load_audio(recordings["rs-000_03"])
    assert len(joined) == 24 * 16000
    levels = [joined[16000 * second] for second in (4, 12, 20)]
    np.testing.assert_allclose(levels, [0.15, 0.25, 0.35], atol=1e-3)
    with pytest.raises(UserError, match="joined within shards .* no --unpack_dir"):
        prepare_reazonspeech(
            root, tmp_path / "no", "tiny", tmp_path / "un", 1, 1, join=True
        )


def test_length_in_a_flac_header_equals_libsndfiles(tmp_path):
    for rate, samples in ((16000, 12345), (48000, 48000), (44100, 3)):
        path = tmp_path / "a.flac"
        soundfile.write(path, np.zeros(samples), rate)
        assert flac_seconds(str(path)) == samples / rate
    path.write_bytes(b"RIFF" + bytes(40))
    with pytest.raises(UserError, match="a.flac: not a FLAC file whose header"):
        flac_seconds(str(path))


def test_position_after_the_end_of_a_tar_file_is_an_error(release):
    shard = release / "data" / "000.tar"
    size = shard.stat().st_size
    for span in (f"{size}+10", f"{size - 5}+10", "0+0"):
        with pytest.raises(UserError, match="not in the tar file, which has"):
            load_audio(f"{shard}:{span}")
    with pytest.raises(UserError, match="the audio file does not exist"):
        load_audio(f"{shard.parent}/none.tar:0+10")
