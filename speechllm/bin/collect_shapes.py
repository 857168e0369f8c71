"""Collect the lengths of training examples, by which batches are made (stage 7).

    python -m speechllm.bin.collect_shapes --train dump/examples/train \\
        --valid dump/examples/dev --output exp/speechllm_stats_train \\
        --config conf/train.yaml --prompts conf/prompts.yaml \\
        --ctc_token_list data/token_list/char/tokens.txt

All other options are those of ``python -m speechllm.bin.speechllm_train``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.collect_shapes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--train", required=True, type=Path, help="example dir")
    parser.add_argument("--valid", required=True, type=Path, help="example dir")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the lengths unless they are up to date."""
    args, options = get_parser().parse_known_args(argv)

    from speechllm.data.shapes import write_shapes
    from speechllm.training import load_task

    task = load_task()
    training = task.parse(options)
    files = (training.prompts, training.ctc_token_list, training.ctc_bpemodel)
    preprocess = task.build_preprocess_fn(training, train=True)
    counts = write_shapes(
        preprocess,
        {"train": args.train, "valid": args.valid},
        args.output,
        preprocess.llm_tokenizer,
        [Path(path) for path in files if path],
    )
    if counts is None:
        print(f"{args.output}: up to date")
    else:
        print(f"{args.output}: lengths of {counts['train']} training examples")


if __name__ == "__main__":
    run_main(main)
