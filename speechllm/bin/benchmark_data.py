"""Benchmark data preparation on synthetic corpora, and audio formatting against ffmpeg.

    python -m speechllm.bin.benchmark_data --corpus must_c --utterances 10000 100000
    python -m speechllm.bin.benchmark_data --corpus reazonspeech \\
        --utterances 10000 100000 --hours 1000 19000
    python -m speechllm.bin.benchmark_data --clips 1000
    python -m speechllm.bin.benchmark_data --sampling --utterances 1000000

The corpus reazonspeech has audio; stages 1 to 7 are measured and extrapolated. With
--clips, the conversion of audio is measured instead of the tables, and with --sampling
the start of a training on so many examples, with several samplers of batches.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from speechllm.benchmarks.data import CORPORA, benchmark_formatting, benchmark_tables
from speechllm.benchmarks.pipeline import benchmark_stages
from speechllm.benchmarks.sampling import SYSTEMS, benchmark_sampling
from speechllm.utils.errors import run_main

LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.benchmark_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--corpus",
        choices=(*CORPORA, "reazonspeech"),
        default=CORPORA[0],
        help=f"corpus to imitate [{CORPORA[0]}]",
    )
    add(
        "--utterances",
        type=int,
        nargs="+",
        default=[10_000, 100_000, 1_000_000],
        help="sizes of the corpus [10000 100000 1000000]",
    )
    add("--clips", type=int, help="format this number of mp3 clips instead")
    add("--sampling", action="store_true", help="compare samplers of batches instead")
    add(
        "--split_size",
        type=int,
        default=250_000,
        help="examples of a split of the tables in --sampling [250000]",
    )
    add(
        "--samplers",
        choices=SYSTEMS,
        nargs="+",
        default=list(SYSTEMS),
        help="samplers to measure [all]",
    )
    add("--ranks", type=int, default=8, help="processes of the training [8]")
    add("--ffmpeg", default="ffmpeg", help="command to compare with [ffmpeg]")
    add(
        "--hours",
        type=float,
        nargs="+",
        default=[1000, 19000],
        help="sizes of reazonspeech to extrapolate to [1000 19000]",
    )
    add("--speech", type=Path, help="recording that its clips repeat [noise]")
    add("--clip_seconds", type=float, default=1.0, help="length of its clips [1]")
    add("--llm", default=LLM, help=f"LLM whose tokenizer is used for it [{LLM}]")
    add("--audio_format", default="flac.ark", help="of its stage 3 [flac.ark]")
    add("--folder", type=Path, help="parent of the temporary folder [system default]")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print a table."""
    args = get_parser().parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="benchmark.") as folder:
        if args.clips:
            benchmark_formatting(Path(folder), args.clips, args.ffmpeg)
        elif args.sampling:
            benchmark_sampling(
                Path(folder),
                args.utterances,
                args.split_size,
                args.ranks,
                args.samplers,
            )
        elif args.corpus == "reazonspeech":
            benchmark_stages(
                Path(folder),
                args.utterances,
                args.hours,
                args.speech,
                args.clip_seconds,
                args.llm,
                args.audio_format,
            )
        else:
            benchmark_tables(Path(folder), args.corpus, args.utterances)


if __name__ == "__main__":
    run_main(main)
