"""Validate, repair, filter, combine, split and count Kaldi-style data dirs.

    python -m speechllm.bin.data_dir validate --input data/train data/dev
    python -m speechllm.bin.data_dir filter --input data/train \\
        --output data/train_filtered --max_seconds 30
    python -m speechllm.bin.data_dir statistics --input dump/raw/train
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from speechllm.data.data_dir import (
    combine_data_dirs,
    filter_data_dir,
    perturb_speed,
    split_table,
    subset_data_dir,
)
from speechllm.data.fix_data_dir import fix_data_dir
from speechllm.data.kaldi_table import DROPPED, iterate_table, read_table
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError, run_main
from speechllm.utils.schema import check_options, integer


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.data_dir",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        name: str,
        run: Callable[[argparse.Namespace], None],
        text: str,
        input_help: str = "data dir",
        nargs: str | None = None,
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument(
            "--input", required=True, nargs=nargs, type=Path, help=input_help
        )
        return sub

    def output(sub: argparse.ArgumentParser, text: str = "data dir to write") -> None:
        sub.add_argument("--output", required=True, type=Path, help=text)

    sub = command(
        "validate",
        run_validate,
        "check Kaldi's rules; print file and line of each problem",
        "data dirs",
        "+",
    )
    sub.add_argument(
        "--allow_pipes", action="store_true", help="accept commands in wav.scp"
    )
    command(
        "fix_data_dir",
        run_fix,
        "sort tables, remove entries that are not in all of them; the old tables are "
        "kept in .backup",
        "data dirs",
        "+",
    )
    sub = command(
        "filter",
        run_filter,
        "drop utterances that are too short, too long or without text",
    )
    output(sub)
    for name, kind, default, text in (
        ("min_seconds", float, 0.0, "minimum duration [0]"),
        ("max_seconds", float, float("inf"), "maximum duration [none]"),
        ("min_text_length", int, 1, "minimum length in characters [1]"),
        ("max_text_length", float, float("inf"), "maximum length [none]"),
    ):
        sub.add_argument(f"--{name}", type=kind, default=default, help=text)
    sub = command(
        "perturb_speed",
        run_perturb_speed,
        "add copies at other speeds (applied by format_audio)",
    )
    output(sub)
    sub.add_argument(
        "--factors",
        type=float,
        nargs="+",
        default=[0.9, 1.0, 1.1],
        help="speed factors [0.9 1.0 1.1]",
    )
    output(command("combine", run_combine, "merge data dirs", "data dirs", "+"))
    sub = command("subset", run_subset, "select utterances at random or by id")
    output(sub)
    which = sub.add_mutually_exclusive_group(required=True)
    which.add_argument("--count", type=int, help="number of random utterances")
    which.add_argument("--ids", type=Path, help="table whose ids are selected")
    sub.add_argument("--seed", type=int, default=0, help="of the selection [0]")
    sub = command(
        "split",
        run_split,
        "split a table into OUTPUT/<name>.1, .2, …",
        "table",
    )
    output(sub, "folder to write")
    sub.add_argument("--parts", type=int, required=True, help="number of parts")
    sub = command(
        "statistics",
        run_statistics,
        "count utterances, hours, speakers, texts and dropped utterances",
        "data dirs",
        "+",
    )
    sub.add_argument(
        "--output", type=Path, help="also write OUTPUT.md and the figure OUTPUT.png"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the subcommand."""
    args = get_parser().parse_args(argv)
    args.run(args)


def run_validate(args: argparse.Namespace) -> None:
    """Print the problems of each data dir; raise UserError if there are any."""
    total = 0
    for directory in args.input:
        problems = validate_data_dir(directory, allow_pipes=args.allow_pipes)
        print("\n".join(problems or [f"{directory}: valid"]))
        total += len(problems)
    if total:
        raise UserError(f"{total} problems in the data")


def run_fix(args: argparse.Namespace) -> None:
    """Repair data dirs and print the changes and the problems that remain."""
    total = 0
    for directory in args.input:
        changes = fix_data_dir(directory)
        print("\n".join(changes or [f"{directory}: nothing to repair"]))
        count = sum(1 for _ in iterate_table(directory / "utt2spk"))
        print(f"{directory}: {count} utterances")
        problems = validate_data_dir(directory, allow_pipes=True)
        print("".join(f"remains: {problem}\n" for problem in problems), end="")
        total += len(problems)
    if total:
        raise UserError(f"{total} problems remain, which only you can repair")


def run_filter(args: argparse.Namespace) -> None:
    """Filter a data dir and print the counts."""
    kept, dropped = filter_data_dir(
        args.input,
        args.output,
        args.min_seconds,
        args.max_seconds,
        args.min_text_length,
        args.max_text_length,
    )
    place = args.output / DROPPED
    print(f"{args.output}: {kept} utterances kept, {len(dropped)} dropped ({place})")


def run_perturb_speed(args: argparse.Namespace) -> None:
    """Write a data dir with copies at other speeds."""
    perturb_speed(args.input, args.output, args.factors)


def run_combine(args: argparse.Namespace) -> None:
    """Merge data dirs and print the count."""
    count = combine_data_dirs(args.input, args.output)
    print(f"{args.output}: {count} utterances")


def run_subset(args: argparse.Namespace) -> None:
    """Write the selected utterances and print their count."""
    ids = None if args.ids is None else read_table(args.ids)
    count = subset_data_dir(args.input, args.output, args.count, ids, args.seed)
    print(f"{args.output}: {count} utterances")


def run_split(args: argparse.Namespace) -> None:
    """Split a table."""
    check_options(
        {"--parts": args.parts}, {"--parts": integer(1, 100_000)}, "command line"
    )
    outputs = [
        args.output / f"{args.input.name}.{part}" for part in range(1, args.parts + 1)
    ]
    split_table(args.input, outputs)


def run_statistics(args: argparse.Namespace) -> None:
    """Print the statistics of data dirs, and write them to ``--output``."""
    from speechllm.data.statistics import describe_sets, write_statistics

    sets = describe_sets(args.input)
    print(write_statistics(sets, args.output), end="")


if __name__ == "__main__":
    run_main(main)
