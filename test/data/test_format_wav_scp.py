"""Audio formatting (stage 3): defects, re-runs, interruptions, full disks."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from speechllm.audio.io import SAMPLING_RATE as RATE
from speechllm.audio.io import load_audio
from speechllm.data import audio_shards
from speechllm.data import format_wav_scp as formatting
from speechllm.data.data_dir import filter_data_dir, subset_data_dir, write_data_dir
from speechllm.data.format_wav_scp import format_audio, format_shards
from speechllm.data.kaldi_table import (
    read_dropped,
    read_table,
    translation_languages,
    write_table,
)
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError


@pytest.fixture
def speech(speech_file) -> np.ndarray:
    return load_audio(speech_file)


def make_data(folder, files: dict, **tables):
    """Write a data dir over audio files (utterance → path), one speaker, English."""
    write_data_dir(
        folder,
        {
            "wav.scp": {utt: str(path) for utt, path in files.items()},
            "utt2spk": dict.fromkeys(files, "s"),
            "utt2lang": dict.fromkeys(files, "en"),
            "text": {utt: f"text of {utt}" for utt in files},
            **tables,
        },
    )
    return folder


def record_writes(monkeypatch) -> list:
    """Return a list that receives the name of each written audio file."""
    written = []
    write_file = audio_shards._write_file
    monkeypatch.setattr(
        audio_shards,
        "_write_file",
        lambda path, content: (written.append(path.name), write_file(path, content)),
    )
    return written


def test_defective_audio_is_dropped_and_listed(tmp_path, speech):
    files = {name: tmp_path / f"{name}.wav" for name in "abcdefgh"}
    soundfile.write(files["a"], speech, RATE)
    soundfile.write(files["b"], np.stack([speech[::2]] * 2, axis=1), 8000)
    files["c"].touch()
    soundfile.write(files["d"], np.zeros(0), RATE)
    soundfile.write(files["e"], np.full(9, np.nan), RATE, subtype="FLOAT")
    soundfile.write(files["f"], speech, RATE)
    files["f"].write_bytes(files["f"].read_bytes()[:5000])
    files["g"].write_text("no audio")
    source = make_data(tmp_path / "data", files)  # h does not exist
    kept, failed = format_audio(source, tmp_path / "out")
    assert kept == 2
    details = {entry.id: entry.detail for entry in failed}
    assert list(details) == list("cdefgh")
    for utterance, words in {
        "c": "0 bytes",
        "d": "no samples",
        "e": "9 samples are NaN",
        "f": "cut off, the header states 3.29 s but the file has only 0.15 s",
        "g": "not a readable audio file",
        "h": "does not exist",
    }.items():
        assert words in details[utterance]
    assert read_dropped(tmp_path / "out") == failed
    assert validate_data_dir(tmp_path / "out") == []
    for name in ("wav.scp", "text", "utt2spk", "utt2num_samples"):
        assert list(read_table(tmp_path / "out" / name)) == ["a", "b"]
    scp = read_table(tmp_path / "out" / "wav.scp")
    lengths = read_table(tmp_path / "out" / "utt2num_samples")
    for utterance, path in scp.items():
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.format) == (RATE, 1, "FLAC")
        assert info.frames == int(lengths[utterance])
    np.testing.assert_allclose(load_audio(scp["a"]), speech, atol=1e-4)
    assert int(lengths["b"]) == pytest.approx(len(speech), abs=2)


@pytest.mark.parametrize("suffix", ["wav", "g722"])
def test_segments_of_test_sets_end_with_their_recording(
    tmp_path, speech, speech_file, suffix, capsys
):
    """The recording has 3.29 s; a segment that begins later cannot be kept."""
    recording = tmp_path / f"r.{suffix}"
    if suffix == "g722":
        recording.write_bytes(speech_file.read_bytes())
    else:
        soundfile.write(recording, speech, RATE)
    source = make_data(
        tmp_path / "data",
        {"a": "", "b": "", "c": "", "d": ""},
        **{
            "wav.scp": {"rec": str(recording)},
            "segments": {
                "a": "rec 0 1",
                "b": "rec 3 3.4",
                "c": "rec 2 9",
                "d": "rec 4 9",
            },
        },
    )
    _, failed = format_audio(source, tmp_path / "out")
    assert [entry.id for entry in failed] == ["c", "d"]
    _, failed = format_audio(source, tmp_path / "out", clamp_segments=True)
    assert [(entry.id, entry.language) for entry in failed] == [("d", "en")]
    lengths = read_table(tmp_path / "out" / "utt2num_samples")
    assert list(lengths) == ["a", "b", "c"]
    assert int(lengths["c"]) == len(speech) - 2 * RATE
    assert (
        "note: the segment ends after its recording and was cut there (utterances: 1)"
    ) in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["wav", "g722"])
def test_segments_are_cut_and_speeds_applied(tmp_path, speech, speech_file, suffix):
    recording = tmp_path / f"r.{suffix}"
    if suffix == "g722":
        recording.write_bytes(speech_file.read_bytes())
    else:
        soundfile.write(recording, speech, RATE)
    source = make_data(
        tmp_path / "data",
        {"a": "", "b": "", "c": ""},
        **{
            "wav.scp": {"rec": str(recording)},
            "segments": {"a": "rec 0.5 1.5", "b": "rec 1 2", "c": "rec 7 8"},
            "utt2speed": {"a": "1", "b": "0.8", "c": "1"},
        },
    )
    kept, failed = format_audio(source, tmp_path / "out", audio_format="wav")
    assert (kept, failed[0].id) == (2, "c")
    assert "begins at 7 s but the recording is 3.29 s long" in failed[0].detail
    lengths = read_table(tmp_path / "out" / "utt2num_samples")
    assert lengths == {"a": "16000", "b": "20000"}
    scp = read_table(tmp_path / "out" / "wav.scp")
    np.testing.assert_allclose(load_audio(scp["a"]), speech[8000:24000], atol=1e-4)
    assert not (tmp_path / "out" / "segments").exists()
    assert not (tmp_path / "out" / "utt2speed").exists()


def test_rerun_repeats_changed_shards_only(tmp_path, speech, monkeypatch):
    monkeypatch.setattr(formatting, "SHARD_SIZE", 2)
    files = {name: tmp_path / f"{name}.wav" for name in "abcde"}
    for path in files.values():
        soundfile.write(path, speech[:RATE], RATE)
    source, target = make_data(tmp_path / "data", files), tmp_path / "out"
    written = record_writes(monkeypatch)
    format_audio(source, target)
    assert written == [f"{name}.flac" for name in "abcde"]
    written.clear()
    format_audio(source, target)
    assert written == []
    soundfile.write(files["c"], speech[: RATE // 2], RATE)  # one source changes
    format_audio(source, target)
    assert written == ["c.flac", "d.flac"]
    assert read_table(target / "utt2num_samples")["c"] == "8000"
    subset_data_dir(source, source, ids=["a", "b"])  # some are removed
    written.clear()
    assert format_audio(source, target)[0] == 2
    assert written == []
    assert sorted(p.name for p in (target / "audio").glob("[!.]*")) == [
        "00000",
        "00000.tsv",
    ]


def test_rerun_repeats_the_interrupted_shard_only(tmp_path, speech, monkeypatch):
    monkeypatch.setattr(formatting, "SHARD_SIZE", 2)
    files = {name: tmp_path / f"{name}.wav" for name in "abcd"}
    for path in files.values():
        soundfile.write(path, speech[:RATE], RATE)
    source, target = make_data(tmp_path / "data", files), tmp_path / "out"
    written = record_writes(monkeypatch)
    counting = audio_shards._write_file

    def die_at_d(path, content):
        if path.name == "d.flac":
            raise KeyboardInterrupt
        counting(path, content)

    monkeypatch.setattr(audio_shards, "_write_file", die_at_d)
    with pytest.raises(KeyboardInterrupt):
        format_audio(source, target)
    assert not (target / "wav.scp").exists()
    monkeypatch.setattr(audio_shards, "_write_file", counting)
    written.clear()
    assert format_audio(source, target)[0] == 4
    assert written == ["c.flac", "d.flac"]


def test_tables_of_an_earlier_run_are_removed(tmp_path, speech, monkeypatch):
    soundfile.write(tmp_path / "a.wav", speech, RATE)
    files, target = {"a": tmp_path / "a.wav"}, tmp_path / "out"
    source = make_data(tmp_path / "data", files, **{"text.de": {"a": "Text"}})
    format_audio(source, target)
    assert translation_languages(target) == ["de"]
    make_data(source, files, **{"text.fr": {"a": "texte"}})
    format_audio(source, target)
    assert translation_languages(target) == ["fr"]
    soundfile.write(tmp_path / "a.wav", speech[:RATE], RATE)

    def die(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(audio_shards, "_write_file", die)
    with pytest.raises(KeyboardInterrupt):
        format_audio(source, target)
    # the old tables would list audio that no longer exists
    with pytest.raises(UserError, match="out/text: the table does not exist"):
        filter_data_dir(target, tmp_path / "filtered")


def test_array_of_jobs_gives_the_same_result(tmp_path, speech, monkeypatch):
    """Seven shards in three jobs, out of order, of which one does not run."""
    monkeypatch.setattr(formatting, "SHARD_SIZE", 1)
    files = {name: tmp_path / f"{name}.wav" for name in "abcdefg"}
    for number, path in enumerate(files.values(), 1):
        soundfile.write(path, speech[: 1000 * number], RATE)
    source = make_data(tmp_path / "data", files)
    format_audio(source, tmp_path / "one")
    target = tmp_path / "array"
    counts = [format_shards(source, target, job, 3) for job in (3, 1)]
    assert counts == [2, 3]
    assert not (target / "wav.scp").exists()
    written = record_writes(monkeypatch)
    assert format_audio(source, target) == (7, [])
    assert written == ["b.flac", "e.flac"]  # those of job 2
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file() and path.suffix != ".tsv" and path.name != "wav.scp":
            other = target / path.relative_to(tmp_path / "one")
            assert other.read_bytes() == path.read_bytes(), path
    assert [*read_table(target / "wav.scp")] == list("abcdefg")
    written.clear()
    assert format_shards(source, target, 9, 9) == 0  # more jobs than shards
    assert format_shards(source, target, 1, 1) == 7
    assert written == []
    with pytest.raises(UserError, match="job 4: from 1 to 3"):
        format_shards(source, target, 4, 3)


def test_data_dir_without_readable_audio_is_an_error(tmp_path):
    source = make_data(tmp_path / "data", {"a": tmp_path / "none.wav"})
    with pytest.raises(UserError, match=r"no audio could be read.*does not exist"):
        format_audio(source, tmp_path / "out")


def test_invalid_data_dir_is_an_error_before_any_output(tmp_path, speech):
    soundfile.write(tmp_path / "a.wav", speech, RATE)
    source = make_data(tmp_path / "data", {"a": tmp_path / "a.wav"})
    (source / "text").write_text("b something\n")
    with pytest.raises(UserError, match="utterance a has no line in text"):
        format_audio(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("speed", ["fast", "0", "-1", "nan"])
def test_invalid_speed_is_an_error(tmp_path, speech, speed):
    soundfile.write(tmp_path / "a.wav", speech, RATE)
    source = make_data(tmp_path / "data", {"a": tmp_path / "a.wav"})
    write_table(source / "utt2speed", {"a": speed})
    with pytest.raises(UserError, match=f"the speed of a is '{speed}', not a factor"):
        format_audio(source, tmp_path / "out")


def test_utterance_ids_with_slashes_stay_in_the_folder(tmp_path, speech):
    soundfile.write(tmp_path / "a.wav", speech, RATE)
    source = make_data(tmp_path / "data", {"../../a": tmp_path / "a.wav"})
    format_audio(source, tmp_path / "out")
    path = read_table(tmp_path / "out" / "wav.scp")["../../a"]
    assert path == str(tmp_path / "out/audio/00000/..%2F..%2Fa.flac")


def run_format_audio(source, target, prefix: str = "") -> subprocess.CompletedProcess:
    command = f"{prefix} {sys.executable} -m speechllm.bin.format_audio"
    command += f" --input {source} --output {target} --audio_format wav"
    return subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False
    )


def test_full_disk_leaves_no_tables(tmp_path, speech):
    """The stage stops with a one-line error on a disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = "size=256k,mode=777"
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)],
            capture_output=True,
            check=False,
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    try:
        files = {name: tmp_path / f"{name}.wav" for name in "abcdef"}
        for path in files.values():
            soundfile.write(path, speech, RATE)
        source = make_data(tmp_path / "data", files)
        result = run_format_audio(source, disk / "out")
        assert result.returncode == 1
        assert "error: No space left on device: " in result.stderr
        assert ".wav" in result.stderr
        assert "Traceback" not in result.stderr
        assert not (disk / "out" / "wav.scp").exists()
        assert list((disk / "out" / "audio").glob("*.tsv")) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert (
        run_format_audio(source, disk / "out").returncode == 0
    )  # with free space again


def test_file_size_limit_is_handled_like_a_full_disk(tmp_path, speech):
    soundfile.write(tmp_path / "a.wav", speech, RATE)
    source = make_data(tmp_path / "data", {"a": tmp_path / "a.wav"})
    result = run_format_audio(source, tmp_path / "out", "ulimit -f 40; exec")
    assert result.returncode == 1
    assert "error: File too large: " in result.stderr
    assert not (tmp_path / "out" / "wav.scp").exists()
    assert run_format_audio(source, tmp_path / "out").returncode == 0


def test_ids_that_are_too_long_or_unusual_for_file_names(tmp_path, speech):
    soundfile.write(tmp_path / "a.wav", speech, RATE)
    ids = ["a/b%", "a\0b", "x" * 255, "あ" * 84, "あ" * 84 + "い"]
    data = make_data(tmp_path / "data", dict.fromkeys(ids, tmp_path / "a.wav"))
    kept, failed = format_audio(data, tmp_path / "dump")
    assert (kept, failed) == (5, [])
    paths = read_table(tmp_path / "dump" / "wav.scp")
    assert sorted(paths) == sorted(ids)
    assert len(set(paths.values())) == 5
    assert paths["a/b%"].endswith("/a%2Fb%25.flac")  # as in earlier versions
    for path in paths.values():
        assert len(load_audio(path)) == len(speech)


def test_any_error_of_an_utterance_is_listed(tmp_path, speech, monkeypatch):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", speech, RATE)
    files = {name: tmp_path / f"{name}.wav" for name in ("a", "b")}
    data = make_data(tmp_path / "data", files)
    load = audio_shards.load_audio

    def fail(source, *arguments, **options):
        if source.endswith("b.wav"):
            raise ValueError("layout changes\nin mid-file")
        return load(source, *arguments, **options)

    monkeypatch.setattr(audio_shards, "load_audio", fail)
    with pytest.raises(ValueError, match="layout changes"):
        format_audio(data, tmp_path / "dump", debug=True)
    kept, failed = format_audio(data, tmp_path / "dump")
    assert kept == 1
    assert [(entry.id, entry.reason) for entry in failed] == [("b", "unreadable audio")]
    assert failed[0].detail.startswith(
        "unexpected ValueError: layout changes in mid-file"
    )


def test_folder_with_a_tab_or_line_break_is_refused(tmp_path, speech):
    soundfile.write(tmp_path / "a.wav", speech, RATE)
    data = make_data(tmp_path / "data", {"a": tmp_path / "a.wav"})
    for name in ("a\tb", "a\nb"):
        with pytest.raises(UserError, match="a tab or a line break"):
            format_audio(data, tmp_path / name)


def test_unexpected_error_of_a_recording_concerns_all_its_segments(
    tmp_path, speech, monkeypatch
):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", speech, RATE)
    data = make_data(
        tmp_path / "data", dict.fromkeys(["a1", "b1", "b2"], "unused"),
        segments={"a1": "a 0 1", "b1": "b 0 1", "b2": "b 1 2"},
    )  # fmt: skip
    write_table(
        data / "wav.scp", {name: str(tmp_path / f"{name}.wav") for name in ("a", "b")}
    )
    load = audio_shards.load_audio

    def fail(source, *arguments, **options):
        if source.endswith("b.wav"):
            raise ValueError("layout changes")
        return load(source, *arguments, **options)

    monkeypatch.setattr(audio_shards, "load_audio", fail)
    monkeypatch.setattr(audio_shards, "can_seek", lambda _: False)
    kept, failed = format_audio(data, tmp_path / "dump")
    assert kept == 1
    assert [entry.id for entry in failed] == ["b1", "b2"]


def test_mended_signals_are_reported(tmp_path, speech, capsys):
    """The notes name the recording, and are printed again on a re-run."""
    files = {name: tmp_path / f"{name}.wav" for name in "abcd"}
    soundfile.write(files["a"], np.stack([speech, -speech], 1), RATE)
    soundfile.write(files["b"], speech * 32768, RATE, subtype="FLOAT")
    soundfile.write(files["c"], 0 * speech, RATE)
    soundfile.write(files["d"], speech, RATE)
    source = make_data(tmp_path / "data", files)
    for _ in range(2):
        assert format_audio(source, tmp_path / "out") == (4, [])
        notes = [
            line for line in capsys.readouterr().out.splitlines() if "note" in line
        ]
        assert len(notes) == 3
        for words, note in zip(
            (
                "a.wav: the channels cancel each other; channel 1 is read",
                "b.wav: samples up to",
                "c.wav: silence",
            ),
            notes,
        ):
            assert words in note
            assert note.endswith("(utterances: 1)")
    scp = read_table(tmp_path / "out" / "wav.scp")
    for name in ("a", "b", "d"):
        np.testing.assert_allclose(load_audio(scp[name]), speech, atol=1e-4)


def test_notes_of_a_recording_concern_its_segments(tmp_path, speech, capsys):
    from audio_files import mux

    wave = np.tile(np.repeat(speech, 3), 2)  # of a 48 kHz track
    tracks = [[(0.0, 0 * wave)], [(0.0, wave)]]
    recording = mux(tmp_path / "r.mkv", "aac", tracks)
    source = make_data(
        tmp_path / "data",
        {"a": "", "b": ""},
        **{
            "wav.scp": {"rec": str(recording)},
            "segments": {"a": "rec 0.5 1.5", "b": "rec 1 2"},
        },
    )
    assert format_audio(source, tmp_path / "out") == (2, [])
    text = capsys.readouterr().out
    assert "track is silent; track 2 is read (utterances: 2)" in text


def test_name_with_nul_is_a_missing_file(tmp_path, speech):
    soundfile.write(tmp_path / "a.wav", speech, RATE)
    files = {"a": tmp_path / "a.wav", "b": "a\0b.wav"}
    kept, failed = format_audio(make_data(tmp_path / "data", files), tmp_path / "out")
    assert (kept, failed[0].id) == (1, "b")
    assert "does not exist" in failed[0].detail
