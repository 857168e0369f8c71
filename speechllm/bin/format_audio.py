"""Convert the audio of a data dir to 16 kHz mono, one file or entry per utterance.

    python -m speechllm.bin.format_audio --input data/train --output dump/audio/train

The jobs of an array, on one or several machines, write the audio in parallel; then the
command above writes the tables:

    python -m speechllm.bin.format_audio --input data/train --output dump/audio/train \\
        --num_jobs 8 --job 1
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.format_audio",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", required=True, type=Path, help="data dir")
    parser.add_argument(
        "--output", required=True, type=Path, help="formatted data dir to write"
    )
    parser.add_argument("--num_jobs", type=int, default=1, help="size of the array [1]")
    parser.add_argument(
        "--job", type=int, help="job of the array, from 1: write its audio, no tables"
    )
    parser.add_argument(
        "--audio_format",
        choices=("flac", "wav", "flac.ark", "wav.ark"),
        default="flac",
        help="format of the audio files or of the audio in Kaldi archives [flac]",
    )
    parser.add_argument(
        "--allow_pipes",
        action="store_true",
        help="run commands found in wav.scp; only for data you trust",
    )
    parser.add_argument(
        "--clamp_segments",
        action="store_true",
        help="end segments that end after their recording at its end instead of "
        "leaving them out; for test sets",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="stop at an unexpected error of an utterance and show its traceback",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Format the data dir."""
    args = get_parser().parse_args(argv)
    from speechllm.data.format_wav_scp import format_audio, format_shards

    options = (args.audio_format, args.allow_pipes, args.debug, args.clamp_segments)
    if args.job is not None:
        jobs = (args.job, args.num_jobs)
        count = format_shards(args.input, args.output, *jobs, *options)
        print(f"{args.output}: {count} shards of job {args.job}")
        return
    kept, failed = format_audio(args.input, args.output, *options)
    place = args.output / "dropped.tsv"
    print(f"{args.output}: {kept} utterances, {len(failed)} left out ({place})")


if __name__ == "__main__":
    run_main(main)
