"""Benchmark of data preparation: time and memory on synthetic corpora."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from speechllm.audio.io import SAMPLING_RATE
from speechllm.utils.errors import UserError

CORPORA = ("must_c", "covost2")
_SMALL_SET = 10  # utterances of each set except train
_SEGMENTS_OF_A_TALK = 250
_SECONDS_OF_A_SEGMENT = 4
_CLIP_SECONDS, _CLIP_RATE = 5, 48000  # similar to Common Voice
_WORDS = 12  # of a sentence
_ENTRY_SECONDS, _ENTRY_MIB = 60e-6, 1024  # targets: per utterance, and in total


@dataclass(frozen=True)
class Cost:
    """Cost of a command.

    Attributes:
        seconds: wall-clock time.
        cpu_seconds: processor time.
        mebibytes: peak memory.
    """

    seconds: float
    cpu_seconds: float
    mebibytes: float


def measure(command: list[str], log: Path) -> Cost:
    """Run a command with its output in ``log`` and return its cost.

    The peak memory is at least that of this process, which the new one is forked from.

    Raises:
        UserError: the command failed; the message has its last line of output.
    """
    started = time.perf_counter()
    with open(log, "wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
        raise UserError(f"{' '.join(command)}: failed: {''.join(last)}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


# Tables


def benchmark_tables(folder: Path, corpus: str, sizes: list[int]) -> None:
    """Print the cost of each stage on a synthetic corpus of each size.

    Args:
        folder: working folder.
        corpus: one of ``CORPORA``.
        sizes: numbers of training utterances.
    """
    print("| stage | utterances | seconds | CPU seconds | MiB | of the target |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    seconds: dict[str, list[float]] = {}
    for size in sorted(sizes):
        root = folder / str(size)
        for stage, command in _stages(corpus, root, size):
            cost = measure(command, folder / "log")
            seconds.setdefault(stage, []).append(cost.cpu_seconds)
            share = max(
                cost.seconds / max(_ENTRY_SECONDS * size, 1),
                cost.mebibytes / _ENTRY_MIB,
            )
            print(
                f"| {stage} | {size} | {cost.seconds:.2f} | {cost.cpu_seconds:.2f} "
                f"| {cost.mebibytes:.0f} | {share:.0%} |",
                flush=True,
            )
        shutil.rmtree(root)
    if len(sizes) > 1:
        growth = max(sizes) / min(sizes)
        print(f"\nFrom {min(sizes)} to {max(sizes)} utterances ({growth:g} times):")
        for stage, times in seconds.items():
            print(f"- {stage}: {times[-1] / times[0]:.1f} times the CPU seconds")


def _stages(corpus: str, root: Path, size: int) -> Iterator[tuple[str, list[str]]]:
    """Yield (stage, command) after writing the command's inputs."""
    raw, data = root / "corpus", root / "data"
    if corpus == "must_c":
        write_must_c(raw, size)
        options = ["--must_c_dir", str(raw), "--tgt_lang", "de"]
    else:
        write_covost2(raw, size)
        options = ["--covost2_dir", str(raw), "--src_lang", "en", "--tgt_lang", "de"]
    python = [sys.executable, "-m"]
    prepare = [*python, "speechllm.bin.prepare_data", corpus, *options]
    yield "prepare", [*prepare, "--output", str(data)]
    data_dir = [*python, "speechllm.bin.data_dir"]
    train, filtered = data / "train", root / "filtered"
    yield "validate", [*data_dir, "validate", "--input", str(train)]
    if corpus == "covost2":  # lengths that formatting would have measured
        with (
            open(train / "text", encoding="utf-8") as stream,
            open(train / "utt2num_samples", "w", encoding="utf-8") as lengths,
        ):
            lengths.writelines(f"{line.split(' ', 1)[0]} 80000\n" for line in stream)
    limits = ["--min_seconds", "0.1", "--max_seconds", "30"]
    where = ["--input", str(train), "--output", str(filtered)]
    yield "filter", [*data_dir, "filter", *where, *limits]
    yield "statistics", [*data_dir, "statistics", "--input", str(filtered)]
    where = ["--input", str(filtered / "utt2spk"), "--output", str(root / "split")]
    yield "split", [*data_dir, "split", *where, "--parts", "32"]


def write_must_c(root: Path, size: int) -> None:
    """Write MuST-C en-de with ``size`` training segments of silent talks."""
    sentences = _sentences(size)
    for name in ("train", "dev", "tst-COMMON", "tst-HE"):
        count = size if name == "train" else _SMALL_SET
        texts, wavs = (root / "en-de/data" / name / part for part in ("txt", "wav"))
        texts.mkdir(parents=True)
        wavs.mkdir()
        with ExitStack() as stack:
            listed, english, german = (
                stack.enter_context(open(texts / f"{name}.{ending}", "w"))
                for ending in ("yaml", "en", "de")
            )
            for number in range(count):
                talk_number, position = divmod(number, _SEGMENTS_OF_A_TALK)
                talk = f"{name}_{talk_number}"
                offset = _SECONDS_OF_A_SEGMENT * position
                if position == 0:
                    _write_silence(wavs / f"ted_{talk}.wav")
                listed.write(
                    f"- {{duration: {_SECONDS_OF_A_SEGMENT - 0.5:.6f}, offset: "
                    f"{offset:.6f}, rW: {_WORDS}, uW: 0, speaker_id: spk.{talk}, "
                    f"wav: ted_{talk}.wav}}\n"
                )
                english.write(next(sentences))
                german.write(next(sentences))


def write_covost2(root: Path, size: int) -> None:
    """Write CoVoST 2 en_de with ``size`` training clips, which are empty files."""
    sentences = _sentences(size)
    clips = root / "en/clips"
    clips.mkdir(parents=True)
    with (
        open(root / "en/validated.tsv", "w") as validated,
        open(root / "covost_v2.en_de.tsv", "w") as translated,
    ):
        validated.write("client_id\tpath\tsentence\tup_votes\tdown_votes\n")
        translated.write("path\ttranslation\tsplit\n")
        for number in range(size + 2 * _SMALL_SET):
            beyond = (number - size) // _SMALL_SET + 1 if number >= size else 0
            split = ("train", "dev", "test")[beyond]
            clip = f"common_voice_en_{number}.mp3"
            os.close(os.open(clips / clip, os.O_CREAT | os.O_WRONLY))
            client = f"{number % 50_000 * 2654435761 % 2**64:016x}" * 8
            validated.write(f"{client}\t{clip}\t{next(sentences).strip()}\t2\t0\n")
            translated.write(f"{clip}\t{next(sentences).strip()}\t{split}\n")


def _sentences(seed: int) -> Iterator[str]:
    """Yield lines of random words, without end."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(5000)]
    while True:
        yield f"{' '.join(draw.choices(words, k=_WORDS)).capitalize()}.\n"


def _write_silence(path: Path) -> None:
    """Write a silent talk as a sparse file, which uses no disk space for samples."""
    size = 2 * SAMPLING_RATE * _SEGMENTS_OF_A_TALK * _SECONDS_OF_A_SEGMENT
    header = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt "
    header += struct.pack("<IHHIIHH", 16, 1, 1, SAMPLING_RATE, 2 * SAMPLING_RATE, 2, 16)
    with open(path, "wb") as stream:
        stream.write(header + b"data" + struct.pack("<I", size))
        stream.truncate(len(header) + 8 + size)


# Audio


def benchmark_formatting(folder: Path, count: int, ffmpeg: str) -> None:
    """Print the cost of formatting mp3 clips with one process and with ffmpeg.

    Args:
        folder: working folder.
        count: number of clips.
        ffmpeg: command to compare with, run once per clip.

    Raises:
        UserError: the command does not exist or fails.
    """
    if shutil.which(ffmpeg) is None:
        raise UserError(f"{ffmpeg}: no such command to compare with; give --ffmpeg")
    clips = write_clips(folder / "clips", count)
    print(f"{count} mp3 clips of {_CLIP_SECONDS} s, one process\n")
    print("| command | format | seconds | CPU seconds | clips/s | times real time |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for audio_format in ("flac", "wav"):
        target = folder / f"ffmpeg_{audio_format}"
        target.mkdir()
        options = "-nostdin -v error -threads 1 -i {} -ac 1 "
        options += f"-ar {SAMPLING_RATE} {target}/{{}}"
        script = "\n".join(
            f"{ffmpeg} {options.format(clip, f'{clip.stem}.{audio_format}')} || exit 1"
            for clip in clips
        )
        (folder / "ffmpeg.sh").write_text(script)
        costs = {"ffmpeg": measure(["sh", str(folder / "ffmpeg.sh")], folder / "log")}
        command = [sys.executable, "-m", "speechllm.bin.format_audio"]
        command += ["--input", str(folder / "clips"), "--audio_format", audio_format]
        command += ["--output", str(folder / f"formatted_{audio_format}")]
        costs["format_audio"] = measure(command, folder / "log")
        for name, cost in costs.items():
            print(
                f"| {name} | {audio_format} | {cost.seconds:.2f} "
                f"| {cost.cpu_seconds:.2f} | {count / cost.seconds:.1f} "
                f"| {count * _CLIP_SECONDS / cost.seconds:.0f} |",
                flush=True,
            )


def write_clips(folder: Path, count: int) -> list[Path]:
    """Write a data dir of mp3 clips of amplitude-modulated noise; return the clips."""
    import numpy as np
    import soundfile

    from speechllm.data.data_dir import write_data_dir

    draw = np.random.default_rng(0)
    times = np.arange(_CLIP_SECONDS * _CLIP_RATE) / _CLIP_RATE
    clips = {
        f"clip_{number:06d}": folder / f"{number:06d}.mp3" for number in range(count)
    }
    tables = {"wav.scp": {name: str(path) for name, path in clips.items()}}
    tables["utt2spk"] = {name: name for name in clips}
    tables["utt2lang"] = dict.fromkeys(clips, "en")
    tables["text"] = dict.fromkeys(clips, "Noise.")
    write_data_dir(folder, tables)
    for path in clips.values():
        loudness = 0.1 * np.sin(2 * np.pi * draw.uniform(1, 4) * times) ** 2
        noise = loudness * draw.normal(size=len(times))
        soundfile.write(path, noise.astype(np.float32), _CLIP_RATE, format="MP3")
    return list(clips.values())
