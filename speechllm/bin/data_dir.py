"""Check, filter, combine, split and count Kaldi-style data dirs."""

from __future__ import annotations

import argparse
from pathlib import Path

from speechllm.data.data_dir import (
    combine_data_dirs,
    filter_data_dir,
    perturb_speed,
    split_table,
    subset_data_dir,
)
from speechllm.data.kaldi_table import DROPPED, read_table
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError, run_main


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    args.function(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(function, output: bool = True, inputs: str | None = None):
        name = function.__name__.strip("_")
        sub = commands.add_parser(name, help=function.__doc__)
        sub.set_defaults(function=function)
        sub.add_argument("--input", required=True, nargs=inputs, type=Path)
        if output:
            sub.add_argument("--output", required=True, type=Path)
        return sub

    sub = command(_validate, output=False, inputs="+")
    sub.add_argument("--allow_pipes", action="store_true")
    sub = command(_filter)
    sub.add_argument("--min_seconds", type=float, default=0.0)
    sub.add_argument("--max_seconds", type=float, default=float("inf"))
    sub.add_argument("--min_text_length", type=int, default=1, help="characters")
    sub.add_argument("--max_text_length", type=float, default=float("inf"))
    sub = command(_perturb_speed)
    sub.add_argument("--factors", type=float, nargs="+", default=[0.9, 1.0, 1.1])
    command(_combine, inputs="+")
    sub = command(_subset)
    which = sub.add_mutually_exclusive_group(required=True)
    which.add_argument("--count", type=int, help="utterances drawn at random")
    which.add_argument("--ids", type=Path, help="table whose ids to keep")
    sub.add_argument("--seed", type=int, default=0)
    sub = command(_split)
    sub.add_argument("--parts", type=int, required=True)
    sub = command(_statistics, output=False, inputs="+")
    sub.add_argument(
        "--output", type=Path, help="write OUTPUT.md and the picture OUTPUT.png too"
    )
    return parser


def _validate(args: argparse.Namespace) -> None:
    """check by Kaldi's rules, naming file and line"""
    total = 0
    for directory in args.input:
        problems = validate_data_dir(directory, allow_pipes=args.allow_pipes)
        print("\n".join(problems or [f"{directory}: valid"]))
        total += len(problems)
    if total:
        raise UserError(f"{total} problems in the data")


def _filter(args: argparse.Namespace) -> None:
    """leave out utterances that are too short, too long or without text"""
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


def _perturb_speed(args: argparse.Namespace) -> None:
    """repeat each utterance at other speeds (applied by format_audio)"""
    perturb_speed(args.input, args.output, args.factors)


def _combine(args: argparse.Namespace) -> None:
    """merge data dirs"""
    count = combine_data_dirs(args.input, args.output)
    print(f"{args.output}: {count} utterances")


def _subset(args: argparse.Namespace) -> None:
    """keep some utterances, drawn at random or named"""
    ids = None if args.ids is None else read_table(args.ids)
    count = subset_data_dir(args.input, args.output, args.count, ids, args.seed)
    print(f"{args.output}: {count} utterances")


def _split(args: argparse.Namespace) -> None:
    """split a table into parts OUTPUT/<name>.1, .2, …"""
    outputs = [
        args.output / f"{args.input.name}.{part}" for part in range(1, args.parts + 1)
    ]
    split_table(args.input, outputs)


def _statistics(args: argparse.Namespace) -> None:
    """count utterances, hours, speakers and texts, and what was dropped"""
    from speechllm.data.statistics import describe_sets, write_statistics

    sets = describe_sets(args.input)
    print(write_statistics(sets, args.output), end="")


if __name__ == "__main__":
    run_main(main)
