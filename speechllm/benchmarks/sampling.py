"""Benchmark of batch sampling for long corpora: start-up, memory, padding.

ESPnet's sampler over whole tables, the same over splits of the tables (the option
``--num_splits_speechllm``), and Lhotse's ``DynamicBucketingSampler`` over lazily read
cuts, as of Shar. Each is measured in a process of its own as one of several ranks, on
tables without audio.
"""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from speechllm.audio.io import SAMPLING_RATE
from speechllm.benchmarks.resources import (
    MEBIBYTE,
    PeakMemory,
    measure_in_process,
    process_memory,
)

SYSTEMS = {
    "espnet": "ESPnet, whole tables",
    "splits": "ESPnet, splits",
    "lhotse": "Lhotse, lazy cuts",
}
_BATCH_SECONDS = 240
_SPLITS_KEPT = 3  # for the padding
_BATCHES_READ = 2000  # of Lhotse, for the padding
_TABLES = ("wav.scp", "text", "text_ctc", "utt2task", "speech_shape")


@dataclass(frozen=True)
class SamplingSet:
    """Tables to sample from.

    Attributes:
        folder: of the tables.
        examples: number of rows.
        splits: number of splits.
        ranks: processes of the training, of which one is measured.
    """

    folder: str
    examples: int
    splits: int
    ranks: int


@dataclass(frozen=True)
class SamplingCost:
    """Cost of sampling in one process.

    Attributes:
        start_seconds: processor time until the first batch is known.
        epoch_seconds: processor time of sampling in a whole epoch, including the start.
        peak_bytes: peak memory above that after all imports.
        total_bytes: peak memory of the process.
        padding: share of padding in the batches of all ranks, 0 to 1.
    """

    start_seconds: float
    epoch_seconds: float
    peak_bytes: int
    total_bytes: int
    padding: float


def benchmark_sampling(
    folder: Path, sizes: list[int], split_size: int, ranks: int, systems: list[str]
) -> None:
    """Print a table of the systems.

    Args:
        folder: working folder.
        sizes: numbers of examples.
        split_size: examples of a split.
        ranks: processes of the training.
        systems: keys of ``SYSTEMS``.
    """
    print(f"batches of {_BATCH_SECONDS} s, one of {ranks} ranks\n")
    print(
        "| sampler | examples | start-up, CPU s | sampling of an epoch, CPU s "
        "| MiB above the imports | bytes an example | padding |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for size in sorted(sizes):
        splits = max(round(size / split_size), 2)
        tables = SamplingSet(str(folder / str(size)), size, splits, ranks)
        write_tables(tables, cuts="lhotse" in systems)
        for system in systems:
            name = SYSTEMS[system]
            cost = measure_in_process("sampling", system, tables, SamplingCost)
            name = f"{name} ({splits})" if system == "splits" else name
            print(
                f"| {name} | {size:,} | {cost.start_seconds:.1f} "
                f"| {cost.epoch_seconds:.1f} | {cost.peak_bytes / MEBIBYTE:,.0f} "
                f"| {cost.peak_bytes / size:,.0f} | {cost.padding:.1%} |",
                flush=True,
            )


def write_tables(tables: SamplingSet, cuts: bool = True) -> None:
    """Write the tables, their splits and, with ``cuts``, the same as Lhotse's cuts."""
    from espnet2.bin.split_scps import split_scps

    folder = Path(tables.folder)
    folder.mkdir(parents=True)
    (folder / "tokens.txt").write_text("<blank>\n<unk>\na\n<sos/eos>\n")
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(open(folder / name, "w", encoding="utf-8"))
            for name in _TABLES
        }
        if cuts:
            manifest = stack.enter_context(gzip.open(folder / "cuts.jsonl.gz", "wt"))
        for name, samples, text in _rows(tables.examples):
            position = f"/corpora/dump/audio/train/audio/00000/audio.ark:{samples}"
            values = (position, text, text, "asr ja ja", str(samples))
            for table, value in zip(_TABLES, values, strict=True):
                files[table].write(f"{name} {value}\n")
            if cuts:
                manifest.write(json.dumps(_cut(name, samples, text)) + "\n")
    scps = [str(folder / name) for name in _TABLES]
    split_scps(scps, tables.splits, None, str(folder / "splits"), "WARNING")


def _rows(count: int) -> Iterator[tuple[str, int, str]]:
    """Yield id, samples and text; lengths as of captions, 1 to 16 s."""
    draw = random.Random(count)
    signs = [chr(code) for code in range(0x3042, 0x3094)]
    for number in range(count):
        seconds = min(max(draw.lognormvariate(1.4, 0.55), 1.0), 16.0)
        text = "".join(draw.choices(signs, k=round(5 * seconds)))
        name = f"rs-000_{number:012x}-asr-ja"
        yield name, round(seconds * SAMPLING_RATE), text


def _cut(name: str, samples: int, text: str) -> dict:
    """Return a cut as in the manifests of Lhotse Shar."""
    seconds = samples / SAMPLING_RATE
    span = {"start": 0, "duration": seconds, "channel": 0}
    supervision = {"id": name, "recording_id": name, **span, "text": text}
    source = {"type": "shar", "channels": [0], "source": ""}
    recording = {
        "id": name,
        "sources": [source],
        "sampling_rate": SAMPLING_RATE,
        "num_samples": samples,
        "duration": seconds,
        "channel_ids": [0],
    }
    return {
        "id": name,
        **span,
        "supervisions": [supervision],
        "recording": recording,
        "type": "MonoCut",
    }


def measure_sampling(system: str, tables: SamplingSet) -> SamplingCost:
    """Measure one sampler in this process."""
    if system == "lhotse":
        return _measure_lhotse(tables)
    return _measure_espnet(tables, system == "splits")


def _measure_espnet(tables: SamplingSet, in_splits: bool) -> SamplingCost:
    import torch.distributed
    from espnet2.train.distributed_utils import DistributedOption
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from speechllm.training import load_task

    folder, task = Path(tables.folder), load_task()
    torch.distributed.init_process_group(
        "fake", store=FakeStore(), rank=0, world_size=tables.ranks
    )
    option = DistributedOption(distributed=True, dist_rank=1)
    source = folder / "splits" if in_splits else folder
    words = ["--batch_type", "numel", "--num_workers", "0", "--llm", "none"]
    words += ["--batch_bins", str(_BATCH_SECONDS * SAMPLING_RATE)]
    words += ["--ctc_token_list", str(folder / "tokens.txt")]
    words += ["--train_shape_file", str(source / "speech_shape")]
    flag, names = "--train_data_path_and_name_and_type", iter(_TABLES)
    for name, kind in (("speech", "kaldi_ark"), *[(n, "text") for n in _TABLES[1:4]]):
        words += [flag, f"{source / next(names)},{name.replace('utt2', '')},{kind}"]
    args = task.parse(words)
    memory, begin = PeakMemory("cpu"), time.process_time()
    if in_splits:
        splits = task.build_multiple_iter_factory(args, option, "train")
        builders = splits.factory.build_funcs  # within the progress lines
    else:
        builders = [lambda: task.build_iter_factory(args, option, "train").factory]
    batches, start = [], 0.0
    for number, build in enumerate(builders):
        factory = build()
        loader = factory.build_iter(1)
        start = start or time.process_time() - begin
        drawn = [list(batch) for batch in loader.batch_sampler]
        batches += drawn if number < _SPLITS_KEPT else []
        del factory, loader
    epoch = time.process_time() - begin
    peak = memory.peak()
    kept = {name for batch in batches for name in batch}
    with open(folder / "speech_shape", encoding="utf-8") as stream:
        rows = map(str.split, stream)
        sizes = {name: int(size) for name, size in rows if name in kept}
    lengths = [[sizes[name] for name in batch] for batch in batches]
    total = memory.start + peak
    return SamplingCost(start, epoch, peak, total, _padding(lengths))


def _measure_lhotse(tables: SamplingSet) -> SamplingCost:
    from lhotse import CutSet
    from lhotse.dataset.sampling import DynamicBucketingSampler

    memory, begin = PeakMemory("cpu"), time.process_time()
    sampler = DynamicBucketingSampler(
        CutSet.from_jsonl_lazy(Path(tables.folder) / "cuts.jsonl.gz"),
        max_duration=_BATCH_SECONDS / tables.ranks,
        num_buckets=30,
        shuffle=True,
        rank=0,
        world_size=tables.ranks,
    )
    lengths, start, read = [], 0.0, 0
    for batch in sampler:
        start = start or time.process_time() - begin
        lengths.append([cut.duration for cut in batch])
        read += len(batch) * tables.ranks
        if len(lengths) == _BATCHES_READ:
            break
    seconds = time.process_time() - begin
    # reading grows with the cuts that are drawn, in all ranks
    epoch = start + (seconds - start) * max(tables.examples / read, 1)
    total = process_memory("VmHWM")
    return SamplingCost(start, epoch, memory.peak(), total, _padding(lengths))


def _padding(batches: Iterable[list[float]]) -> float:
    padded = whole = 0.0
    for batch in batches:
        padded += len(batch) * max(batch)
        whole += sum(batch)
    return 1 - whole / padded
