"""Time data preparation on synthetic corpora, and formatting against ffmpeg."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from speechllm.benchmarks.data import CORPORA, benchmark_formatting, benchmark_tables
from speechllm.utils.errors import run_main


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="benchmark.") as folder:
        if args.clips:
            benchmark_formatting(Path(folder), args.clips, args.ffmpeg)
        else:
            benchmark_tables(Path(folder), args.corpus, args.utterances)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", choices=CORPORA, default=CORPORA[0])
    parser.add_argument(
        "--utterances", type=int, nargs="+", default=[10_000, 100_000, 1_000_000]
    )
    parser.add_argument(
        "--clips", type=int, help="format so many mp3 clips instead, with one process"
    )
    parser.add_argument("--ffmpeg", default="ffmpeg", help="the command to compare")
    parser.add_argument("--folder", type=Path, help="for what is made, removed then")
    return parser


if __name__ == "__main__":
    run_main(main)
