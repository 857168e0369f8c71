"""Damaged, cut, joined, misnamed and strange audio, for all three readers."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bad_base import RATE, tone, wav_bytes, write_rows
from bad_case import (
    Case,
    Check,
    Outcome,
    Place,
    either,
    listed,
    passes,
    refused,
)

SECONDS = 2.0
#: Suffix -> how the file is written: (libsndfile format, subtype) or FFmpeg codec.
SNDFILE = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
}
FFMPEG = {
    "m4a": "aac", "webm": "libopus", "mkv": "aac", "mka": "aac", "aac": "aac",
    "ts": "mp2", "mp4": "aac", "avi": "mp2", "mp2": "mp2",
    "flv": "aac", "3gp": "aac", "mov": "pcm_s16le", "m4b": "aac", "mpg": "mp2",
    "g722": "g722",
}  # fmt: skip
#: Formats of frames without a length of the whole: a cut between frames is no damage.
STREAMS = {"aac", "ts", "mp2", "flv", "mpg", "g722"}


@functools.cache
def encoded(suffix: str, seconds: float = SECONDS, seed: int = 1) -> bytes:
    """Return a whole file of a format."""
    samples = tone(seconds, seed)
    if suffix in SNDFILE:
        form, subtype = SNDFILE[suffix]
        return wav_bytes(samples, format=form, subtype=subtype)
    from audio_files import encode_with_ffmpeg

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        encode_with_ffmpeg(path, samples, FFMPEG[suffix])
        return path.read_bytes()


def flip(data: bytes, seed: int, count: int = 8) -> bytes:
    """Return data with some random bytes changed."""
    generator = np.random.default_rng(seed)
    changed = bytearray(data)
    for place in generator.integers(0, len(data), count):
        changed[place] ^= int(generator.integers(1, 256))
    return bytes(changed)


def files() -> Iterator[tuple[str, str, float | None, bool]]:
    """Yield name, file name, seconds, and whether it may be refused.

    ``seconds`` is None where the file must be refused, and NaN where any length will
    do.
    """
    any_length = float("nan")
    for suffix in [*SNDFILE, *FFMPEG]:

        def item(what, seconds, may_refuse, suffix=suffix):
            return (f"{suffix}, {what}", f"a.{suffix}", seconds, may_refuse)

        for what, seconds, may_refuse in (
            ("whole", SECONDS, False),
            ("empty", None, True),
            ("one byte", any_length if suffix == "g722" else None, True),
            ("noise", any_length if suffix == "g722" else None, True),
            ("text", any_length if suffix == "g722" else None, True),
            ("zeros", any_length if suffix == "g722" else None, True),
            ("header only", any_length if suffix in STREAMS else None, True),
            *((f"cut at {share} %", any_length if suffix in STREAMS else None, True)
              for share in (15, 50, 85)),
            ("followed by zeros", any_length, True),
            *((f"flipped bytes, seed {seed}", any_length, True) for seed in range(4)),
        ):  # fmt: skip
            yield item(what, seconds, may_refuse)
        if suffix in ("ogg", "opus", "mp3", "flac", "aac", "mp2"):
            yield item("joined with another", 3.5, False)
        if suffix not in ("wav", "g722"):
            yield (f"{suffix}, named .wav", "a.wav", SECONDS, False)


def content_of(name: str) -> bytes:
    """Return the content of a file of :func:`files`."""
    suffix, what = name.split(", ", 1)
    whole = encoded(suffix)
    if what in ("whole", "named .wav"):
        return whole
    if what == "empty":
        return b""
    if what == "one byte":
        return whole[:1]
    if what == "noise":
        return np.random.default_rng(5).bytes(20000)
    if what == "text":
        return b"This is no audio.\n" * 200
    if what == "zeros":
        return bytes(20000)
    if what == "header only":
        return whole[:44]
    if what.startswith("cut at"):
        return whole[: len(whole) * int(what.split()[2]) // 100]
    if what == "followed by zeros":
        return whole + bytes(5000)
    if what.startswith("flipped"):
        return flip(whole, int(what.split()[-1]))
    if what == "joined with another":
        return whole + encoded(suffix, 1.5, 2)
    raise ValueError(name)


def special_wavs() -> dict[str, tuple[bytes, float | None, bool]]:
    """Return strange WAV files: content, seconds, whether they may be refused."""
    wave = tone(SECONDS, 1)
    whole = wav_bytes(wave)
    any_length = float("nan")

    def floats(samples):
        return wav_bytes(samples, subtype="FLOAT")

    bad = wave.copy()
    bad[1000] = np.nan
    endless = wave.copy()
    endless[1000] = np.inf
    stereo = np.stack([wave, wave], 1)
    found = {
        "float with NaN": (floats(bad), None, True),
        "float with infinity": (floats(endless), None, True),
        "all NaN": (floats(np.full(RATE, np.nan, np.float32)), None, True),
        "float of 1e30": (floats(wave * 1e30), SECONDS, True),
        "float in the scale of int16": (floats(wave * 32768), SECONDS, False),
        "no samples": (wav_bytes(wave[:0]), None, True),
        "one sample": (wav_bytes(wave[:1]), any_length, True),
        "silence": (wav_bytes(wave * 0), SECONDS, False),
        "channels that cancel": (wav_bytes(np.stack([wave, -wave], 1)), SECONDS, True),
        "eight channels": (wav_bytes(np.stack([wave] * 8, 1)), SECONDS, False),
        "rate 1 Hz": (wav_bytes(wave[:50], 1), any_length, True),
        "rate 192 kHz": (wav_bytes(wave, 192000), SECONDS / 12, False),
        "8 bits": (wav_bytes(wave, subtype="PCM_U8"), SECONDS, False),
        "32 bits": (wav_bytes(wave, subtype="PCM_32"), SECONDS, False),
        "64-bit floats": (wav_bytes(wave, subtype="DOUBLE"), SECONDS, False),
        "mu-law": (wav_bytes(wave, subtype="ULAW"), SECONDS, False),
        "size 0 of a recorder": (_sizes(whole, 0, 0), SECONDS, False),
        "size 44 bytes too large": (_sizes(whole, 36, 44), SECONDS, False),
        "size -1 of a pipe": (
            _field(_field(whole, 4, 4, -1), 40, 4, -1),
            SECONDS,
            False,
        ),
        "a second WAV after it": (whole + whole, any_length, True),
        "stereo": (wav_bytes(stereo), SECONDS, False),
    }
    fields = {
        "RIFF size": (4, 4), "format size": (16, 4), "codec tag": (20, 2),
        "channels": (22, 2), "rate": (24, 4), "bytes a second": (28, 4),
        "block": (32, 2), "bits": (34, 2), "data size": (40, 4),
    }  # fmt: skip
    for name, (place, size) in fields.items():
        for value in (0, 1, 3, 2 ** (8 * size - 1) - 1, 2 ** (8 * size) - 1):
            changed = _field(whole, place, size, value)
            found[f"{name} {value}"] = (changed, any_length, True)
    return found


def _field(data: bytes, place: int, size: int, value: int) -> bytes:
    number = (value % 256**size).to_bytes(size, "little")
    return data[:place] + number + data[place + size :]


def _sizes(data: bytes, riff: int, extra: int) -> bytes:
    """Return a WAV whose data size is 0, or too large by ``extra`` bytes."""
    size = 0 if extra == 0 else len(data) - 44 + extra
    return _field(_field(data, 4, 4, riff + size), 40, 4, size)


def transcribe_case(
    family: str, name: str, file: str, build, seconds: float | None, may_refuse: bool
) -> Case:
    """Return the case that transcribes a file between two sound ones."""

    def arguments(place: Place) -> list[str]:
        build(place, file)
        return [
            "speechllm.cli", "transcribe", "--model", str(place.model), "--format",
            "json", "--output", "out.jsonl", "good.wav", file, "wav/a-1.wav",
        ]  # fmt: skip

    good = {"good.wav": 1.0, "wav/a-1.wav": 0.5}
    return Case(family, f"transcribe {name}", arguments, verdict(
        lambda: listed([file], good),
        lambda s: listed([], good if s is None else {**good, file: s}),
        seconds, may_refuse,
    ))  # fmt: skip


def verdict(bad, right, seconds: float | None, may_refuse: bool) -> Check:
    """Return the check for a file of known length, refused, or either."""
    if seconds is None:
        return bad()
    whole = right(None if np.isnan(seconds) else seconds)
    return either(bad(), whole) if may_refuse else whole


def format_case(
    family: str, name: str, file: str, build, seconds: float | None, may_refuse: bool
) -> Case:
    """Return the case that formats a file between two sound ones."""

    def arguments(place: Place) -> list[str]:
        build(place, file)
        rows = {"a-1": "wav/a-1.wav", "a-2": file, "b-1": "wav/b-1.wav"}
        write_rows(place.folder / "data" / "wav.scp", rows)
        return ["speechllm.bin.format_audio", "--input", "data", "--output", "new"]

    def test(outcome: Outcome, length: float | None, dropped: bool) -> str:
        new = outcome.place.folder / "new"
        rows = dict(line.split() for line in open(new / "utt2num_samples"))
        missing = {"a-1", "b-1"} - rows.keys()
        if missing:
            return f"{sorted(missing)} are lost"
        told = (
            (new / "dropped.tsv").read_text() if (new / "dropped.tsv").exists() else ""
        )
        if dropped:
            if "a-2" in rows:
                return f"a-2 is taken, {int(rows['a-2']) / RATE:.2f} s"
            return "" if "a-2" in told else "a-2 is not in dropped.tsv"
        if "a-2" not in rows:
            return f"a-2 is left out: {told}"
        found = int(rows["a-2"]) / RATE
        if length is not None and abs(found - length) > 0.25:
            return f"{found:.2f} s, not {length}"
        return ""

    def bad() -> Check:
        return either(refused("data"), passes(lambda o: test(o, None, True)))

    def right(length) -> Check:
        return passes(lambda o: test(o, length, False))

    check = verdict(bad, right, seconds, may_refuse)
    return Case(family, f"format {name}", arguments, check)


def load_case(
    family: str, name: str, file: str, build, seconds: float | None, may_refuse: bool
) -> Case:
    """Return the case that reads a file with ``load_audio``."""

    def action(place: Place):
        build(place, file)

        def run() -> None:
            from speechllm import load_audio

            print("samples", len(load_audio(file)))

        return run

    def right(length) -> Check:
        def test(outcome: Outcome) -> str:
            found = int(outcome.out.split()[-1]) / RATE
            far = length is not None and abs(found - length) > 0.25
            return f"{found:.2f} s, not {length}" if far else ""

        return passes(test)

    check = verdict(lambda: refused(file), right, seconds, may_refuse)
    return Case(family, f"load {name}", action, check)


def cases() -> Iterator[Case]:
    """Yield each file for ``load_audio``, and in turn for the two commands."""
    for number, (name, file, seconds, may_refuse) in enumerate(files()):

        def build(place: Place, file: str, name=name) -> None:
            place.write(file, content_of(name))

        yield load_case("audio files", name, file, build, seconds, may_refuse)
        make = format_case if number % 2 else transcribe_case
        yield make("audio files", name, file, build, seconds, may_refuse)
    for name, (data, seconds, may_refuse) in special_wavs().items():

        def build(place: Place, file: str, data=data) -> None:
            place.write(file, data)

        for make in (load_case, transcribe_case, format_case):
            yield make(
                "WAV headers and samples", name, "a.wav", build, seconds, may_refuse
            )
    yield from pipes()


def standard_input_check(suffix: str, share: int) -> Check:
    """Return the check for a file of which ``share`` percent are piped."""
    if share == 100:
        return listed([], {"-": SECONDS})
    cut = listed(["standard input"], {})
    return either(cut, listed([], {})) if suffix in STREAMS else cut


def pipes() -> Iterator[Case]:
    """Yield recordings on standard input, whole and cut."""
    for suffix in [*SNDFILE, *FFMPEG]:
        if suffix == "g722":  # has no header; a pipe has no name
            continue
        for share in (100, 50):
            yield Case(
                "standard input",
                f"{suffix}, {share} %",
                lambda place: [
                    "speechllm.cli", "transcribe", "--model", str(place.model),
                    "--format", "json", "-",
                ],
                standard_input_check(suffix, share),
                stdin=lambda suffix=suffix, share=share: (
                    encoded(suffix)[: len(encoded(suffix)) * share // 100]
                ),
            )  # fmt: skip
    for name, data in (
        ("nothing", b""),
        ("text", b"y\n" * 100),
        ("noise", np.random.default_rng(2).bytes(9999)),
        ("zeros", bytes(9999)),
    ):
        yield Case(
            "standard input",
            name,
            lambda place: [
                "speechllm.cli", "transcribe", "--model", str(place.model),
                "--format", "json", "-",
            ],
            listed(["standard input"], {}),
            stdin=lambda data=data: data,
        )  # fmt: skip
