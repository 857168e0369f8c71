"""Benchmark of stages 1 to 7 on an imitation of ReazonSpeech, with its audio.

The corpus has the layout and file format of the original: a list, and tar shards of
FLAC clips (16 kHz, mono). All clips have the same sound. Costs are extrapolated to more
hours of speech with the growth that was measured between the two largest sizes.
"""

from __future__ import annotations

import io
import math
import os
import random
import shutil
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from speechllm.audio.io import SAMPLING_RATE, encode_audio, load_audio
from speechllm.benchmarks.data import Cost, measure

CLIPS_PER_SHARD = 3650  # 15 million in 4,096 shards
CLIPS_PER_HOUR = 15e6 / 19e3
_DEV, _TEST = 10, 10
_PROMPTS = "chat: false\nlanguages: {ja: 日本語}\ntasks: {asr: '{speech}{target}:'}\n"


@dataclass(frozen=True)
class Step:
    """A command of a stage.

    Attributes:
        stage: number of the stage.
        name: of the step.
        command: to measure.
        output: folder that it writes, whose size is measured; None without.
    """

    stage: int
    name: str
    command: list[str]
    output: Path | None = None


@dataclass(frozen=True)
class StepCost:
    """Cost of a step, with its bytes and inodes on the disk."""

    cost: Cost
    bytes: int
    inodes: int


def benchmark_stages(
    folder: Path,
    sizes: list[int],
    hours: list[float],
    speech: Path | None,
    clip_seconds: float,
    llm: str,
    audio_format: str,
) -> None:
    """Print the cost of each step of stages 1 to 7, and extrapolate it.

    Args:
        folder: working folder.
        sizes: numbers of utterances.
        hours: sizes of a corpus to extrapolate to, with ``CLIPS_PER_HOUR``.
        speech: recording that the clips repeat; None: noise.
        clip_seconds: length of a clip.
        llm: whose tokenizer stages 6 and 7 use.
        audio_format: of stage 3.
    """
    clip = make_clip(speech, clip_seconds)
    print(f"{audio_format}, clips of {clip_seconds:g} s and {len(clip):,} bytes\n")
    print("| stage | step | utterances | seconds | CPU s | MiB | disk, MB | inodes |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    found: dict[str, dict[int, StepCost]] = {}
    stages: dict[str, int] = {}
    for size in sorted(sizes):
        root = folder / str(size)
        write_reazonspeech(root / "corpus", size, clip)
        for step in list_steps(root, llm, audio_format):
            cost = measure(step.command, folder / "log")
            space = (0, 0) if step.output is None else disk_usage(step.output)
            found.setdefault(step.name, {})[size] = StepCost(cost, *space)
            stages[step.name] = step.stage
            print(
                f"| {step.stage} | {step.name} | {size:,} | {cost.seconds:.1f} "
                f"| {cost.cpu_seconds:.1f} | {cost.mebibytes:.0f} "
                f"| {space[0] / 1e6:.1f} | {space[1]:,} |",
                flush=True,
            )
        shutil.rmtree(root)
    if len(sizes) > 1:
        print_extrapolation(found, stages, hours)


def print_extrapolation(
    found: dict[str, dict[int, StepCost]], stages: dict[str, int], hours: list[float]
) -> None:
    """Print the growth of each step, and its cost at other sizes."""
    cells = [f"CPU h, {number:,g} h | disk, GB | inodes" for number in hours]
    print(f"\n| stage | step | growth | {' | '.join(cells)} |")
    rule = " | ".join(["---: | ---: | ---:"] * len(hours))
    print(f"| ---: | --- | ---: | {rule} |")
    for name, costs in found.items():
        small, large = sorted(costs)[-2:]
        seconds = Growth(
            small, large, costs[small].cost.cpu_seconds, costs[large].cost.cpu_seconds
        )
        cells = []
        for number in hours:
            count = number * CLIPS_PER_HOUR
            cells.append(
                f"{seconds.at(count) / 3600:.2f} "
                f"| {costs[large].bytes * count / large / 1e9:,.1f} "
                f"| {costs[large].inodes * count / large:,.0f}"
            )
        row = f"{stages[name]} | {name} | {seconds.exponent:.2f}"
        print(f"| {row} | {' | '.join(cells)} |")


@dataclass(frozen=True)
class Growth:
    """Growth of a cost from one size to another.

    Attributes:
        small, large: sizes.
        first, last: cost at these sizes.
    """

    small: int
    large: int
    first: float
    last: float

    @property
    def exponent(self) -> float:
        """Exponent of the power law through both costs."""
        return math.log(self.last / self.first) / math.log(self.large / self.small)

    def at(self, size: float) -> float:
        """Return the cost at a larger size.

        What is independent of the size stays. The rest grows linearly, or with the
        exponent if that is above 1.
        """
        slope = max(self.last - self.first, 0) / (self.large - self.small)
        bend = (size / self.large) ** max(self.exponent - 1, 0)
        return self.last + slope * (size - self.large) * bend


def list_steps(root: Path, llm: str, audio_format: str) -> Iterator[Step]:
    """Yield the commands of stages 1 to 7, as the recipe calls them."""
    python = [sys.executable, "-m"]
    data, audio = root / "data", root / "audio/train"
    raw, examples = root / "raw/train", root / "examples"
    prepare = [*python, "speechllm.bin.prepare_data", "reazonspeech"]
    prepare += ["--reazonspeech_dir", str(root / "corpus"), "--output", str(data)]
    prepare += ["--dev_utterances", str(_DEV), "--test_utterances", str(_TEST)]
    yield Step(1, "prepare", prepare, data)
    data_dir = [*python, "speechllm.bin.data_dir"]
    yield Step(1, "validate", [*data_dir, "validate", "--input", str(data / "train")])
    form = [*python, "speechllm.bin.format_audio", "--input", str(data / "train")]
    form += ["--output", str(audio), "--audio_format", audio_format]
    yield Step(3, "format: audio", [*form, "--num_jobs", "1", "--job", "1"], audio)
    yield Step(3, "format: tables", form, audio)
    limits = ["--min_seconds", "0.1", "--max_seconds", "16"]
    where = ["--input", str(audio), "--output", str(raw)]
    yield Step(4, "filter", [*data_dir, "filter", *where, *limits], raw)
    yield Step(4, "statistics", [*data_dir, "statistics", "--input", str(raw)])
    make = [*python, "speechllm.bin.make_examples", "--tasks", "asr:ja"]
    where = ["--input", str(raw), "--output", str(examples)]
    yield Step(5, "examples", [*make, *where], examples)
    build = [*python, "speechllm.bin.build_vocabulary", "--text"]
    build += [str(examples / "text_ctc"), "--coverage", str(examples / "text_ctc")]
    yield Step(5, "vocabulary: char", [*build, "--output", str(root / "char")])
    bpe = ["--type", "bpe", "--size", "3000", "--input_sentence_size", "50000"]
    yield Step(5, "vocabulary: bpe", [*build, *bpe, "--output", str(root / "bpe")])
    config, prompts = root / "train.yaml", root / "prompts.yaml"
    config.write_text(f"llm: causal_lm\nllm_conf: {{model: {llm}}}\n")
    prompts.write_text(_PROMPTS)
    options = ["--config", str(config), "--prompts", str(prompts)]
    check = [*python, "speechllm.bin.check_prompts", *options]
    yield Step(6, "check of prompts", [*check, "--examples", str(examples)])
    stats, valid = root / "stats", root / "valid"
    valid.mkdir()
    for path in filter(Path.is_file, examples.iterdir()):
        with open(path, encoding="utf-8") as stream:
            (valid / path.name).write_text("".join(islice(stream, _DEV)), "utf-8")
    collect = [*python, "speechllm.bin.collect_shapes", *options]
    collect += ["--train", str(examples), "--valid", str(valid)]
    collect += ["--ctc_token_list", str(root / "char/tokens.txt")]
    yield Step(7, "lengths", [*collect, "--output", str(stats)], stats)


def write_reazonspeech(root: Path, size: int, clip: bytes) -> None:
    """Write the list and the shards of a corpus whose train set has ``size`` clips."""
    draw = random.Random(size)
    signs = [chr(code) for code in [*range(0x3042, 0x3094), *range(0x4E00, 0x5500)]]
    tables, shards = root / "reazonspeech-v2/tsv", root / "reazonspeech-v2/data"
    tables.mkdir(parents=True)
    shards.mkdir()
    left = size + _DEV + _TEST
    with open(tables / "all.tsv", "w", encoding="utf-8") as listed:
        for shard in range(-(-left // CLIPS_PER_SHARD)):
            with tarfile.open(shards / f"{shard:03x}.tar", "w") as archive:
                for _ in range(min(left, CLIPS_PER_SHARD)):
                    name = f"{shard:03x}/{draw.getrandbits(64):016x}.flac"
                    member = tarfile.TarInfo(name)
                    member.size = len(clip)
                    archive.addfile(member, io.BytesIO(clip))
                    text = "".join(draw.choices(signs, k=draw.randint(10, 40)))
                    listed.write(f"{name}\t{text}。\n")
            left -= CLIPS_PER_SHARD


def make_clip(speech: Path | None, seconds: float) -> bytes:
    """Return a FLAC clip of a recording, repeated, or of noise."""
    if speech is None:
        samples = 0.05 * np.random.default_rng(0).normal(size=SAMPLING_RATE)
    else:
        samples = load_audio(speech)
    count = round(seconds * SAMPLING_RATE)
    samples = np.resize(samples, count).astype(np.float32)
    return encode_audio(samples, "flac", SAMPLING_RATE)


def disk_usage(folder: Path) -> tuple[int, int]:
    """Return the bytes of the blocks of a folder's files, and its inodes."""
    size = inodes = 0
    for root, folders, files in os.walk(folder):
        inodes += len(folders) + len(files)
        for name in files:
            size += 512 * os.lstat(os.path.join(root, name)).st_blocks
    return size, inodes
