"""Decode an example dir with a trained model (stage 12); a re-run resumes.

    python -m speechllm.bin.decode --model exp/speechllm_train/model \\
        --examples dump/examples/test --config conf/decode.yaml \\
        --output_dir exp/speechllm_train/decode/test
"""

from __future__ import annotations

import argparse

from speechllm.decoding.options import check_decoding_options, current_names
from speechllm.utils.errors import run_main
from speechllm.utils.io import read_yaml

#: Options that may also be in the config.
OPTIONS = (
    "batch_size",
    "beam_size",
    "nbest",
    "ctc_weight",
    "penalty",
    "pre_beam_size",
    "rescore_ctc_weight",
    "guard",
    "dtype",
    "engine",
)


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="model folder of stage 10")
    add("--examples", required=True, help="example dir")
    add("--output_dir", required=True, help="decode dir to write")
    add(
        "--config",
        help="YAML with any of the options below; the command line overrides",
    )
    add("--batch_size", type=int, help="utterances decoded concurrently [16]")
    add("--beam_size", type=int, help="hypotheses in the beam, 1 is greedy search [1]")
    add("--nbest", type=int, help="hypotheses written per utterance [1]")
    add("--ctc_weight", type=float, help="weight of the CTC score, 0 to 1 [0]")
    add("--penalty", type=float, help="score added per token [0]")
    add(
        "--pre_beam_size",
        "--candidates",
        type=int,
        help="tokens per hypothesis that the CTC branch scores [20]",
    )
    add(
        "--rescore_ctc_weight",
        type=float,
        help="weight of the CTC score in rescoring the n-best list [0: no rescoring]",
    )
    add(
        "--guard",
        action=argparse.BooleanOptionalAction,
        help="check hypotheses against the CTC output [if the model has a guard.yaml]",
    )
    add("--num_shards", type=int, default=1, help="shards of the example dir [1]")
    add("--shard", type=int, default=1, help="shard to decode, from 1 [1]")
    add("--device", default="cpu", help="cpu, cuda, … [cpu]")
    add("--dtype", help="float32, bfloat16, float16 or auto [float32]")
    add("--engine", help="inference backend: auto or eager [auto]")
    add(
        "--debug",
        action="store_true",
        help="stop at an unexpected error of an utterance and show its traceback",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Decode the examples that have no hypothesis yet."""
    args = get_parser().parse_args(argv)
    options = current_names(read_yaml(args.config)) if args.config else {}
    for name in OPTIONS:
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    options = check_decoding_options(options, args.config or "command line")
    batch_size = options.pop("batch_size", 16)
    dtype = options.pop("dtype", "float32")
    engine = options.pop("engine", "auto")

    from speechllm.inference.decode_examples import decode_examples

    count = decode_examples(
        args.model,
        args.examples,
        args.output_dir,
        options,
        batch_size=batch_size,
        num_shards=args.num_shards,
        shard=args.shard,
        device=args.device,
        dtype=dtype,
        engine=engine,
        debug=args.debug,
    )
    print(f"{args.output_dir}: {count} utterances decoded now (shard {args.shard})")


if __name__ == "__main__":
    run_main(main)
