"""Shards of formatted audio: Kaldi archives, repair of missing and damaged audio."""

from __future__ import annotations

import io
import tarfile

import kaldiio
import numpy as np
import pytest
import soundfile

from speechllm.audio.io import SAMPLING_RATE as RATE
from speechllm.audio.io import load_audio
from speechllm.data import format_wav_scp as formatting
from speechllm.data.audio_shards import AUDIO_FORMATS, find_damaged, read_record
from speechllm.data.data_dir import write_data_dir
from speechllm.data.format_wav_scp import format_audio
from speechllm.data.kaldi_table import read_table
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError


@pytest.fixture
def source(tmp_path, speech_file, monkeypatch):
    """Data dir of five utterances of different lengths, in shards of two."""
    monkeypatch.setattr(formatting, "SHARD_SIZE", 2)
    speech = load_audio(speech_file)
    files = {name: tmp_path / f"{name}.wav" for name in "abcde"}
    for number, path in enumerate(files.values(), 1):
        soundfile.write(path, speech[: 8000 * number], RATE)
    write_data_dir(
        tmp_path / "data",
        {
            "wav.scp": {name: str(path) for name, path in files.items()},
            "utt2spk": dict.fromkeys(files, "s"),
            "utt2lang": dict.fromkeys(files, "en"),
            "text": {name: f"text of {name}" for name in files},
        },
    )
    return tmp_path / "data"


def contents(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def times(folder) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted((folder / "audio").glob("*/*"))
    }


@pytest.mark.parametrize("form", ["flac.ark", "wav.ark"])
def test_archives_hold_the_same_samples_as_files(tmp_path, source, form):
    format_audio(source, tmp_path / "files")
    format_audio(source, tmp_path / "ark", audio_format=form)
    files, archive = (read_table(tmp_path / n / "wav.scp") for n in ("files", "ark"))
    assert list(archive) == list(files) == list("abcde")
    loaded = kaldiio.load_scp(str(tmp_path / "ark/wav.scp"))
    for name, path in files.items():
        expected, _ = soundfile.read(path)
        rate, samples = loaded[name]
        assert rate == RATE
        np.testing.assert_array_equal(samples, expected)
        np.testing.assert_array_equal(load_audio(archive[name]), load_audio(path))
        assert archive[name].startswith(str(tmp_path / "ark/audio"))
        assert archive[name].rpartition(":")[0].endswith(".ark")
    lengths = [read_table(tmp_path / n / "utt2num_samples") for n in ("files", "ark")]
    assert lengths[0] == lengths[1]
    assert validate_data_dir(tmp_path / "ark") == []
    # an archive is a source, too
    format_audio(tmp_path / "ark", tmp_path / "again")
    for name, path in read_table(tmp_path / "again/wav.scp").items():
        np.testing.assert_array_equal(load_audio(path), load_audio(files[name]))


@pytest.mark.parametrize("form", AUDIO_FORMATS)
@pytest.mark.parametrize("damage", ["missing", "short", "long", "no folder"])
def test_rerun_repairs_the_damaged_shard_only(tmp_path, source, form, damage, capsys):
    target = tmp_path / "out"
    format_audio(source, target, audio_format=form)
    whole, before = contents(target), times(target)
    assert "warning" not in capsys.readouterr().out
    path = min((target / "audio/00001").iterdir())
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "long":
        path.write_bytes(path.read_bytes() + b"0")
    else:
        for other in path.parent.iterdir():
            other.unlink()
        path.parent.rmdir()
    count = 2 if form.endswith("ark") or damage == "no folder" else 1
    assert format_audio(source, target, audio_format=form) == (5, [])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"warning: {target}: audio of {count} utterances was missing or damaged "
        f"(first: {lines[0].partition('first: ')[2].partition(')')[0]}); it was "
        "written again"
    ]
    assert f"first: {path}" in lines[0]
    assert contents(target) == whole
    changed = {name for name, time in times(target).items() if time != before[name]}
    assert {name.split("/")[1] for name in changed} == {"00001"}
    assert format_audio(source, target, audio_format=form) == (5, [])
    assert capsys.readouterr().out == ""


def test_an_entry_that_is_not_at_its_position_is_damage(tmp_path, source):
    format_audio(source, tmp_path / "out", audio_format="flac.ark")
    record = tmp_path / "out/audio/00000.tsv"
    written, _ = read_record(record)
    assert find_damaged(written) == []
    archive = tmp_path / "out/audio/00000/audio.ark"
    content = bytearray(archive.read_bytes())
    content[int(written[1].path.rpartition(":")[2])] ^= 1
    archive.write_bytes(content)
    assert find_damaged(written) == [entry.path for entry in written]


def test_records_of_earlier_versions_are_used(tmp_path, source, capsys):
    """They have no sizes; missing files and other lengths are found."""
    target = tmp_path / "out"
    format_audio(source, target)
    for path in (target / "audio").glob("*.tsv"):
        first, *lines = path.read_text("utf-8").splitlines()
        fields = [line.split("\t") for line in lines]
        old = ["\t".join([*f[:4], "a note of 1 s"]) for f in fields]
        path.write_text("\n".join([first, *old]) + "\n", "utf-8")
    before = times(target)
    assert format_audio(source, target) == (5, [])
    assert times(target) == before
    assert "note: a note of 1 s (utterances: 5)" in capsys.readouterr().out
    (target / "audio/00000/a.flac").unlink()
    soundfile.write(target / "audio/00001/d.flac", np.zeros(5), RATE)
    (target / "audio/00002/e.flac").write_bytes(b"")
    assert format_audio(source, target) == (5, [])
    assert "audio of 3 utterances was missing" in capsys.readouterr().out
    lengths = {n: len(load_audio(p)) for n, p in read_table(target / "wav.scp").items()}
    assert lengths == {name: 8000 * n for n, name in enumerate("abcde", 1)}


def test_a_changed_archive_is_formatted_again(tmp_path, source):
    format_audio(source, tmp_path / "ark", audio_format="wav.ark")
    target = tmp_path / "out"
    format_audio(tmp_path / "ark", target)
    soundfile.write(tmp_path / "a.wav", np.full(8000, 0.5), RATE)
    format_audio(source, tmp_path / "ark", audio_format="wav.ark")  # same positions
    format_audio(tmp_path / "ark", target)
    samples = load_audio(read_table(target / "wav.scp")["a"])
    np.testing.assert_allclose(samples, 0.5, atol=1e-3)


def data_dir(folder, sources: dict[str, str]):
    write_data_dir(
        folder,
        {
            "wav.scp": sources,
            "utt2spk": dict.fromkeys(sources, "s"),
            "utt2lang": dict.fromkeys(sources, "en"),
            "text": dict.fromkeys(sources, "text"),
        },
    )
    return folder


def encoded(samples, rate=RATE, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["flac", "wav"])
def test_ready_audio_is_copied_byte_by_byte(tmp_path, speech_file, form, capsys):
    """Also from tar files; other rates, widths, channels and segments are encoded."""
    speech = load_audio(speech_file)
    ready = {"format": form, "subtype": "PCM_16"}
    contents = {
        "ready": encoded(speech, **ready),
        "tiny": encoded(speech[[np.abs(speech).argmax()]], **ready),
        "silent": encoded(np.zeros(RATE), **ready),
        "rate": encoded(speech, 8000, **ready),
        "stereo": encoded(np.stack([speech, speech], 1), **ready),
        "wide": encoded(speech, format=form, subtype="PCM_24"),
        "other": encoded(speech, format="wav" if form == "flac" else "flac"),
    }
    sources = {}
    with tarfile.open(tmp_path / "clips.tar", "w") as archive:
        for name, content in contents.items():
            (tmp_path / f"{name}.{form}").write_bytes(content)
            sources[name] = str(tmp_path / f"{name}.{form}")
            archive.add(sources[name], name)
    with tarfile.open(tmp_path / "clips.tar") as archive:
        for member in archive.getmembers():
            position = f"{member.offset_data}+{member.size}"
            sources[f"tar-{member.name}"] = f"{tmp_path}/clips.tar:{position}"
    source = data_dir(tmp_path / "data", sources)
    assert format_audio(source, tmp_path / "files", audio_format=form) == (14, [])
    notes = [line for line in capsys.readouterr().out.splitlines() if "silence" in line]
    assert len(notes) == 2
    assert format_audio(source, tmp_path / "ark", audio_format=f"{form}.ark")[0] == 14
    paths = read_table(tmp_path / "files/wav.scp")
    positions = read_table(tmp_path / "ark/wav.scp")
    for name in sources:
        with open(paths[name], "rb") as stream:
            content = stream.read()
        original = contents[name.removeprefix("tar-")]
        copied = name.removeprefix("tar-") in ("ready", "tiny", "silent")
        assert (content == original) == copied, name
        archive, _, position = positions[name].rpartition(":")
        with open(archive, "rb") as stream:
            stream.seek(int(position))
            assert content in stream.read(len(content) + 10)
        np.testing.assert_array_equal(
            load_audio(positions[name]), load_audio(paths[name])
        )
    (tmp_path / "data/utt2speed").write_text(
        "".join(f"{name} 1.1\n" for name in sorted(sources))
    )
    format_audio(source, tmp_path / "fast", audio_format=form)
    fast = load_audio(read_table(tmp_path / "fast/wav.scp")["ready"])
    assert len(fast) == round(len(speech) / 1.1)


@pytest.mark.parametrize("form", ["flac", "wav"])
def test_damaged_ready_audio_is_not_copied(tmp_path, speech_file, form):
    content = encoded(load_audio(speech_file), format=form, subtype="PCM_16")
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    sources = {"a": content, "cut": content[:-4000], "joined": content + content}
    if form == "flac":  # WAV has no checksums
        sources["flipped"] = bytes(flipped)
    for name, damaged in sources.items():
        (tmp_path / name).write_bytes(damaged)
    source = data_dir(
        tmp_path / "data", {name: f"{tmp_path}/{name}" for name in sources}
    )
    kept, failed = format_audio(source, tmp_path / "out", audio_format=form)
    reasons = {entry.id: entry.detail for entry in failed}
    assert "cut off" in reasons.pop("cut")
    if form == "flac":
        assert "cut off or damaged" in reasons.pop("flipped")
        joined = load_audio(read_table(tmp_path / "out/wav.scp")["joined"])
        assert len(joined) == 2 * len(load_audio(tmp_path / "a"))
    else:
        assert "another recording follows" in reasons.pop("joined")
    assert reasons == {}


def test_archives_are_as_kaldiio_writes_them(tmp_path, speech_file):
    speech = load_audio(speech_file)
    clips = {"a": speech[:20], "b": speech[:300], "c": np.tile(speech, 5)}
    paths = {name: tmp_path / f"{name}.wav" for name in clips}
    for name, path in paths.items():
        soundfile.write(path, clips[name], RATE)
    source = data_dir(tmp_path / "data", {n: str(p) for n, p in paths.items()})
    format_audio(source, tmp_path / "out", audio_format="wav.ark")
    kaldiio.save_ark(
        str(tmp_path / "expected.ark"),
        {
            name: (RATE, soundfile.read(path, dtype="int16")[0])
            for name, path in paths.items()
        },
        scp=str(tmp_path / "expected.scp"),
        write_function="soundfile",
        write_kwargs={"format": "wav", "subtype": "PCM_16"},
    )
    ours, theirs = tmp_path / "out/audio/00000/audio.ark", tmp_path / "expected.ark"
    assert ours.read_bytes() == theirs.read_bytes()
    expected = read_table(tmp_path / "expected.scp")
    assert {
        name: position.replace(str(ours), str(theirs))
        for name, position in read_table(tmp_path / "out/wav.scp").items()
    } == expected


def test_audio_without_any_recording_left_is_kept(tmp_path, speech_file):
    """Such as after the shards of ReazonSpeech were deleted."""
    content = encoded(load_audio(speech_file), format="flac")
    with tarfile.open(tmp_path / "clips.tar", "w") as archive:
        member = tarfile.TarInfo("a.flac")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    source = data_dir(
        tmp_path / "data", {"a": f"{tmp_path}/clips.tar:512+{len(content)}"}
    )
    target = tmp_path / "out"
    format_audio(source, target, audio_format="flac.ark")
    before = contents(target / "audio")
    (tmp_path / "clips.tar").unlink()
    with pytest.raises(UserError, match=r"clips.tar:512.*does not exist any more"):
        format_audio(source, target, audio_format="flac.ark")
    assert contents(target / "audio") == before
    (target / "audio/00000.tsv").unlink()
    with pytest.raises(UserError, match="no audio could be read"):
        format_audio(source, target, audio_format="flac.ark")
