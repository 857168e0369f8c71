"""Test outputs of ``speechllm transcribe`` that resume, names, folders and failures."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audio_files import encode_with_ffmpeg
from tiny_models import write_tiny_model

from speechllm import SpeechToText, cli
from speechllm.audio import io as audio_io
from speechllm.audio.io import load_audio
from speechllm.inference import recordings as inputs
from speechllm.inference.recordings import Recording, find_recordings
from speechllm.inference.transcribe_recordings import Progress
from speechllm.utils.errors import UserError
from speechllm.utils.names import one_line, safe_file_name, utf8_name

RATE = 16000
SHIFT_JIS = os.fsdecode("会議.wav".encode("shift_jis"))
KANA = "あ" * 84  # 252 bytes


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, smollm2) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("resume") / "model", smollm2)


@pytest.fixture(scope="module")
def speech(speech_file) -> np.ndarray:
    return load_audio(speech_file)


@pytest.fixture
def calls(tmp_path_factory, speech) -> Path:
    """Write ten recordings of 0.5 to 1.4 s of speech."""
    folder = tmp_path_factory.mktemp("calls")
    for number in range(10):
        samples = speech[8000 : 16000 + 1600 * number]
        soundfile.write(folder / f"{number}.wav", samples, RATE)
    return folder


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main(["transcribe", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def interrupt_at(monkeypatch, call: int, error: BaseException) -> None:
    """Raise an error in one decoding, counted from 0, of the next run."""
    decode, calls = SpeechToText.decode, []

    def fail(self, *arguments, **options):
        calls.append(1)
        if len(calls) == call + 1:
            monkeypatch.setattr(SpeechToText, "decode", decode)
            raise error
        return decode(self, *arguments, **options)

    monkeypatch.setattr(SpeechToText, "decode", fail)


@pytest.mark.parametrize("form", ["table", "json", "text", "vtt"])
def test_interrupted_output_is_resumed(
    capsys, tmp_path, monkeypatch, model_dir, calls, decoded, form
):
    paths = sorted(calls.iterdir())
    out = tmp_path / "out"

    def content() -> dict[str, str]:
        files = [out] if out.is_file() else sorted(out.glob("*.vtt"))
        return {path.name: path.read_text("utf-8") for path in files}

    command = ["--model", model_dir, "--format", form, "--batch_size", 1, *paths]
    run(capsys, *command, "--output", out)
    whole = content()
    assert sum(decoded) == 10
    assert out.is_dir() or [p.name for p in tmp_path.iterdir()] == ["out"]
    out = tmp_path / "again"
    interrupt_at(monkeypatch, 2, KeyboardInterrupt())  # four are read ahead
    with pytest.raises(KeyboardInterrupt):
        run(capsys, *command, "--output", out)
    if form == "vtt":
        assert content() == dict(list(whole.items())[:8])
    else:
        assert content()["again"] == "".join(whole["out"].splitlines(True)[:8])
    capsys.readouterr()
    decoded.clear()
    status, _, err = run(capsys, *command, "--output", out)
    assert status == 0
    assert f"{out}: 8 of 10 done already" in err
    assert sum(decoded) == 2
    assert list(content().values()) == list(whole.values())
    assert not list(tmp_path.rglob("*resume")) + list(tmp_path.rglob("*previous*"))


@pytest.mark.parametrize("cut", ["output", "journal"])
def test_kill_in_the_middle_of_a_line_is_resumed(
    capsys, tmp_path, monkeypatch, model_dir, calls, decoded, cut
):
    out, journal = tmp_path / "out.tsv", tmp_path / "out.tsv.resume"
    command = ["--model", model_dir, "--output", out, "--batch_size", 1, calls]
    run(capsys, *command)
    whole = out.read_text()
    out.unlink()
    interrupt_at(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(capsys, *command)
    if cut == "output":  # the journal is written first
        out.write_bytes(out.read_bytes()[:-5])
    else:
        journal.write_bytes(journal.read_bytes()[:-5])
        out.write_text("".join(whole.splitlines(True)[:7]))
    decoded.clear()
    run(capsys, *command)
    assert sum(decoded) == (2 if cut == "output" else 3)
    assert out.read_text() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["out.tsv"]


def test_changed_recording_or_setting_is_transcribed_again(
    capsys, tmp_path, monkeypatch, model_dir, calls, decoded
):
    out = tmp_path / "out.tsv"
    command = ["--model", model_dir, "--output", out, "--batch_size", 1, calls]
    interrupt_at(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(capsys, *command)
    os.utime(calls / "0.wav", ns=(1, 1))
    decoded.clear()
    _, _, err = run(capsys, *command)
    assert "7 of 10 done already" in err
    assert sum(decoded) == 3
    # the order is that of the recordings
    names = [line.split("\t")[0] for line in out.read_text().splitlines()]
    assert names == [str(path) for path in sorted(calls.iterdir())]
    before = out.read_text()
    decoded.clear()
    _, _, err = run(capsys, *command, "--format", "json")
    assert "done already" not in err
    assert sum(decoded) == 10
    assert (tmp_path / "out.tsv.previous").read_text() == before
    assert "the earlier, different output is kept as" in err


def test_earlier_output_and_its_mode_are_kept(
    capsys, tmp_path, monkeypatch, model_dir, calls
):
    out = tmp_path / "out.tsv"
    out.write_text("of another program\n")
    out.chmod(0o600)
    inode = out.stat().st_ino
    command = ["--model", model_dir, "--output", out, "--batch_size", 1, calls]
    with pytest.raises(UserError):  # nothing is touched before there is a text
        run(capsys, *command, "--task", "sing")
    assert out.read_text() == "of another program\n"
    assert [p.name for p in tmp_path.iterdir()] == ["out.tsv"]
    interrupt_at(monkeypatch, 2, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        run(capsys, *command)
    private = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert private == dict.fromkeys(
        ["out.tsv", "out.tsv.previous", "out.tsv.resume"], 0o600
    )
    assert (tmp_path / "out.tsv.previous").read_text() == "of another program\n"
    run(capsys, *command)
    assert out.stat().st_ino == inode
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    new = out.read_text()
    run(capsys, *command)  # the same texts again: no further copy
    assert out.read_text() == new
    out.write_text("changed by hand\n")
    run(capsys, *command)
    assert (tmp_path / "out.tsv.previous.2").read_text() == "changed by hand\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.tsv", "out.tsv.previous", "out.tsv.previous.2",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["table", "json", "text", "srt"])
def test_only_failed_recordings_are_tried_again(
    capsys, tmp_path, model_dir, calls, decoded, form
):
    late = calls / "5.wav"
    content = late.read_bytes()
    late.write_bytes(b"RIFF")
    out = tmp_path / "out"
    command = ["--model", model_dir, "--format", form, "--output", out]
    command += [*sorted(calls.iterdir())]
    for expected in (9, 0):  # the second run fails again and changes nothing
        decoded.clear()
        status, _, err = run(capsys, *command)
        assert (status, sum(decoded)) == (1, expected)
        assert "1 of 10 recordings failed" in err
    late.write_bytes(content)
    decoded.clear()
    status, _, err = run(capsys, *command)
    assert (status, sum(decoded)) == (0, 1)
    assert "9 of 10 done already" in err
    assert not list(tmp_path.rglob("*resume")) + list(tmp_path.rglob("*previous*"))
    if form == "srt":
        assert len(list(out.glob("*.srt"))) == 10
    elif form != "text":
        lines = out.read_text().splitlines()
        names = [json.loads(x)["name"] if form == "json" else x.split("\t")[0]
                 for x in lines]  # fmt: skip
        assert names == [str(path) for path in sorted(calls.iterdir())]


def test_output_that_is_a_recording_is_refused(capsys, tmp_path, model_dir, calls):
    content = (calls / "1.wav").read_bytes()
    link = tmp_path / "link.wav"
    link.symlink_to(calls / "1.wav")
    for out in (calls / "1.wav", link):
        with pytest.raises(UserError, match="is also a recording"):
            run(capsys, "--model", model_dir, "--output", out, calls)
    assert (calls / "1.wav").read_bytes() == content


def test_devices_and_pipes_are_written_as_they_are(capsys, tmp_path, model_dir, calls):
    run(capsys, "--model", model_dir, "--output", "/dev/null", calls / "1.wav")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    fifo, lines = tmp_path / "pipe", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: lines.append(fifo.read_text()))
    reader.start()
    run(capsys, "--model", model_dir, "--output", fifo, calls / "1.wav")
    reader.join(30)
    assert lines[0].startswith(f"{calls / '1.wav'}\t")
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_full_disk_ends_the_work_and_is_resumed(
    capsys, tmp_path, monkeypatch, model_dir, calls, decoded
):
    from speechllm.inference.resumable_output import FileOutput

    start = FileOutput._start
    monkeypatch.setattr(
        FileOutput, "_start", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    out = tmp_path / "out.tsv"
    command = ["--model", model_dir, "--output", out, calls]
    with pytest.raises(UserError, match="cannot be written: full"):
        run(capsys, *command)
    monkeypatch.setattr(FileOutput, "_start", start)
    decoded.clear()
    _, _, err = run(capsys, *command)
    assert "1 of 10 done already" in err
    assert sum(decoded) == 9
    assert len(out.read_text().splitlines()) == 10


def test_file_with_the_name_of_the_journal_stays(tmp_path, capsys, model_dir, calls):
    out = tmp_path / "out.tsv"
    for content in ("my own notes\n", "[1]\n", '{"settings": 1, "more": 2}\n', "x"):
        (tmp_path / "out.tsv.resume").write_text(content)
        with pytest.raises(UserError, match="is another file; move it away"):
            run(capsys, "--model", model_dir, "--output", out, calls / "1.wav")
        assert (tmp_path / "out.tsv.resume").read_text() == content
        assert not out.exists()


def test_second_process_with_the_same_output_is_refused(
    capsys, tmp_path, model_dir, calls
):
    import fcntl

    out = tmp_path / "out.tsv"
    with open(tmp_path / "out.tsv.resume", "w") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process writes this output"):
            run(capsys, "--model", model_dir, "--output", out, calls)
    assert not out.exists()


def test_interrupt_without_output_does_not_promise_to_resume(
    capsys, monkeypatch, model_dir, calls
):
    interrupt_at(monkeypatch, 0, KeyboardInterrupt())
    status, _, err = run(capsys, "--model", model_dir, calls)
    assert status == 130
    assert "interrupted; with --output" in err


def test_header_that_promises_less_than_there_is(capsys, tmp_path, model_dir, speech):
    # FFmpeg estimates the length of ADTS by the rate of its first frames
    rng = np.random.default_rng(0)
    loud = np.concatenate([rng.uniform(-0.5, 0.5, RATE), np.zeros(5 * RATE)])
    short = encode_with_ffmpeg(tmp_path / "short.aac", loud, "aac")
    assert audio_io.seconds_by_header(short, estimated=True) < 5.5
    soundfile.write(tmp_path / "b.wav", speech, RATE)
    status, out, err = run(
        capsys, "--model", model_dir, "--format", "json", short, tmp_path / "b.wav"
    )
    first, second = map(json.loads, out.splitlines())
    assert status == 0
    assert first["seconds"] == pytest.approx(6, abs=0.2)
    assert second["text"]
    assert "100%" in err


def test_display_never_ends_the_work(capsys, monkeypatch):
    class Broken:
        def write(self, _):
            raise OSError(28, "full")

    progress = Progress()
    progress.start([1.0])
    progress.update(7.0)
    progress.update(7.0)
    progress.close()
    assert "100%" in capsys.readouterr().err
    for stream in (Broken(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress()
        progress.start([1.0, None])
        progress.update(float("nan"))
        progress.note("a")
        progress.close()
        inputs.print_note("a")
    monkeypatch.setattr(audio_io, "seconds_by_header", lambda *_, **__: 1 / 0)
    assert Recording(__file__, __file__).expected_seconds() is None


def test_any_error_of_a_recording_is_one_line(
    capsys, tmp_path, monkeypatch, model_dir, calls
):
    stream = audio_io.stream_audio

    def broken(source, track=None):
        yield from [np.zeros(RATE, np.float32)]
        if source.endswith("3.wav"):
            raise ValueError("layout changes\nfrom mono to stereo")
        yield from stream(source)

    monkeypatch.setattr(audio_io, "stream_audio", broken)
    command = ["--model", model_dir, "--format", "json"]
    command += [calls / f"{number}.wav" for number in (2, 3, 4)]
    status, out, err = run(capsys, *command)
    entries = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert ["error" in entry for entry in entries] == [False, True, False]
    [line] = [x for x in re.split("[\r\n]", err) if x.startswith("error: ")]
    message = "unexpected ValueError: layout changes from mono to stereo"
    assert line.startswith(f"error: {calls / '3.wav'}: {message}")
    with pytest.raises(ValueError, match="layout changes"):
        run(capsys, *command, "--debug")


def test_error_in_decoding_concerns_one_recording(
    capsys, monkeypatch, model_dir, calls
):
    decode = SpeechToText.decode

    def fail(self, waves, *arguments, **options):
        if any(len(wave) == len(bad) for wave in waves):
            raise RuntimeError("size mismatch")
        return decode(self, waves, *arguments, **options)

    bad = load_audio(calls / "3.wav")
    monkeypatch.setattr(SpeechToText, "decode", fail)
    status, out, err = run(capsys, "--model", model_dir, calls)
    assert status == 1
    assert len(out.splitlines()) == 9
    assert f"error: {calls / '3.wav'}: unexpected RuntimeError: size mismatch" in err
    with pytest.raises(RuntimeError, match="size mismatch"):
        run(capsys, "--model", model_dir, "--debug", calls)


def test_unusual_file_names(capsys, tmp_path, model_dir, calls):
    names = [SHIFT_JIS, "a\nb.wav", "c\td.wav", "x" * 251 + ".wav"]
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes((calls / "0.wav").read_bytes())
    out = tmp_path / "out"
    status, _, _ = run(capsys, "--model", model_dir, "--output", out, folder)
    rows = [line.split("\t") for line in out.read_text("utf-8").splitlines()]
    assert status == 0
    assert {len(row) for row in rows} == {2}
    shown = r"\x89\xef\x8bc.wav"  # the second byte of 議 is the letter c
    assert {row[0].removeprefix(f"{folder}/") for row in rows} == {
        shown, r"a\nb.wav", r"c\td.wav", names[3],
    }  # fmt: skip
    run(capsys, "--model", model_dir, "--output", out, "--format", "json", folder)
    found = {json.loads(line)["name"] for line in out.read_text("utf-8").splitlines()}
    assert found == {f"{folder}/{name}" for name in [shown, *names[1:]]}
    run(capsys, "--model", model_dir, "--output", tmp_path / "subtitles",
        "--format", "srt", folder)  # fmt: skip
    stems = {p.stem for p in (tmp_path / "subtitles").glob("*.srt")}
    assert {Path(name).stem for name in names} == stems


def test_unusual_ids(capsys, tmp_path, model_dir, calls):
    rows = {"a\0b": "0.wav", KANA: "1.wav", KANA + "い": "2.wav", "x" * 300: "3.wav"}
    scp = tmp_path / "wav.scp"
    scp.write_text(
        f"A {calls}/0\0.wav\n"
        + "".join(f"{name} {calls / rows[name]}\n" for name in sorted(rows))
    )
    out = tmp_path / "out"
    status, _, err = run(capsys, "--model", model_dir, "--output", out, scp)
    assert status == 1  # the file of A cannot exist
    assert "1 of 5 recordings failed" in err
    found = [line.split("\t")[0] for line in out.read_text("utf-8").splitlines()]
    assert found == [one_line(name) for name in sorted(rows)]
    folder = tmp_path / "subtitles"
    status, _, _ = run(
        capsys, "--model", model_dir, "--output", folder, "--format", "srt", scp
    )
    assert status == 1
    assert len(list(folder.glob("*.srt"))) == 4


def test_safe_file_names_fit_and_differ():
    assert safe_file_name("a/b\0c", ".srt") == "a%2Fb%00c.srt"
    assert safe_file_name("い" * 83, ".flac") == "い" * 83 + ".flac"
    assert len(os.fsencode(safe_file_name(KANA, ".srt"))) <= 255
    long = {safe_file_name(KANA + end, ".flac") for end in ("", "い", "う")}
    assert len(long) == 3
    assert all(len(name.encode()) <= 255 and name.endswith(".flac") for name in long)
    assert utf8_name("a\udc83\n") == "a\\x83\n"
    assert one_line("日本\t\0\x85\u2028") == r"日本\t\x00\x85\u2028"


def test_folder_takes_or_names_everything(capsys, tmp_path, monkeypatch):
    suffixes = ".ts .m4b .3gp .mka .wmv .mpg .flv .mp2 .gsm .spx .wave .WAV".split()
    inside = tmp_path / "in"
    (inside / "deeper").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.wav").touch()
    (inside / "linked").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "broken.wav").symlink_to(tmp_path / "missing")
    os.mkfifo(inside / "pipe.wav")
    for number, suffix in enumerate(suffixes):
        (inside / "deeper" / f"{number}{suffix}").touch()
    for name in ("notes.txt", "list.csv", "README", "._x.wav"):
        (inside / name).touch()
    (inside / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_recordings([str(inside)])
    names = [str(Path(r.name).relative_to(inside)) for r in found]
    expected = [f"deeper/{n}{suffix}" for n, suffix in enumerate(suffixes)]
    expected += ["broken.wav", "closed", "linked/o.wav", "pipe.wav"]
    assert sorted(names) == sorted(expected)
    problems = {Path(r.name).name: r.problem for r in found if r.problem}
    assert problems == {
        "closed": f"{inside}/closed: the folder cannot be read: Permission denied",
        "pipe.wav": f"{inside}/pipe.wav: a named pipe; name it as an argument to "
        "read it",
    }
    with pytest.raises(UserError, match="cannot be read: Permission"):
        next(found[names.index("closed")].stream())
    err = capsys.readouterr().err
    parts = ["1 file with the suffix .txt", "notes.txt", "list.csv", "README"]
    parts += ["1 hidden file or folder", "._x.wav", "1 folder reached twice", "loop"]
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".ts", "mp2"), (".mka", "aac"), (".avi", "mp2"), (".mpg", "mp2"),
     (".flv", "aac"), (".mp2", "mp2"), (".m4b", "aac"), (".wave", "pcm_s16le")],
)  # fmt: skip
def test_formats_taken_from_folders_can_be_read(tmp_path, speech, suffix, codec):
    name = {".m4b": "a.m4a", ".wave": "a.wav"}.get(suffix, f"a{suffix}")
    path = encode_with_ffmpeg(tmp_path / name, speech, codec)
    path = path.rename(path.with_suffix(suffix))
    [found] = find_recordings([str(tmp_path)])
    seconds = sum(map(len, found.stream())) / RATE
    assert seconds == pytest.approx(len(speech) / RATE, abs=0.2)


def test_named_pipe_is_read(capsys, tmp_path, monkeypatch, model_dir, calls):
    fifo = tmp_path / "pipe.wav"
    os.mkfifo(fifo)
    content = (calls / "9.wav").read_bytes()
    writer = threading.Thread(target=lambda: fifo.write_bytes(content))
    writer.start()
    _, out, _ = run(
        capsys, "--model", model_dir, "--format", "text", fifo, calls / "9.wav"
    )
    writer.join(30)
    first, second = out.splitlines()
    assert first == second
    monkeypatch.setattr(inputs, "FIFO_SECONDS", 0.1)
    status, _, err = run(capsys, "--model", model_dir, fifo)
    assert status == 1
    assert "nothing was written into this named pipe" in err
    status, _, err = run(capsys, "--model", model_dir, "/dev/zero")
    assert status == 1
    assert "this is a device" in err
