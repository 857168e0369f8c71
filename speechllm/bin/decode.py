"""Decode an example dir with a trained model (stage 12); a re-run resumes.

    python -m speechllm.bin.decode --model exp/speechllm_train/model \\
        --examples dump/examples/test --config conf/decode.yaml \\
        --output_dir exp/speechllm_train/decode/test
"""

from __future__ import annotations

import argparse

from speechllm.decoding.option_flags import (
    add_device_flag,
    add_search_flags,
    given_flags,
)
from speechllm.decoding.options import check_decoding_options
from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.decode",
        usage="%(prog)s --model MODEL --examples DIR --output_dir DIR [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="model folder of stage 10")
    add("--examples", required=True, help="example dir")
    add("--output_dir", required=True, help="decode dir to write")
    add_search_flags(parser)
    add("--batch_size", type=int, help="utterances decoded together [16]")
    add("--num_shards", type=int, default=1, help="shards of the example dir [1]")
    add("--shard", type=int, default=1, help="shard to decode, from 1 [1]")
    add_device_flag(parser)
    add(
        "--dtype",
        help="float32, bfloat16, float16, 4bit (weights of the LLM) or auto [float32]",
    )
    add(
        "--engine",
        help="inference backend: auto, eager, or vllm: the LLM runs in vLLM, with "
        "greedy search or sampling [auto]",
    )
    add(
        "--strict",
        action="store_true",
        help="refuse pretrained weights that differ from those in training",
    )
    add(
        "--debug",
        action="store_true",
        help="stop at an unexpected error of an utterance and show its traceback",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Decode the examples that have no hypothesis yet."""
    args = get_parser().parse_args(argv)
    options = given_flags(args)
    check_decoding_options(
        given_flags(args, ("batch_size", "dtype", "engine")), "command line"
    )

    from speechllm.inference.decode_examples import decode_examples

    count = decode_examples(
        args.model,
        args.examples,
        args.output_dir,
        options,
        batch_size=args.batch_size,
        num_shards=args.num_shards,
        shard=args.shard,
        device=args.device,
        dtype=args.dtype,
        engine=args.engine,
        debug=args.debug,
        config=args.config,
        strict=args.strict,
    )
    print(f"{args.output_dir}: {count} utterances decoded now (shard {args.shard})")


if __name__ == "__main__":
    run_main(main)
