"""Decode an example dir with a trained model (stage 12); a second start goes on."""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main
from speechllm.utils.io import read_yaml


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and decode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder that stage 11 wrote")
    parser.add_argument("--examples", required=True, help="example dir")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--config", help="YAML with any of the options below")
    parser.add_argument("--batch_size", type=int, help="utterances at once [16]")
    parser.add_argument("--beam_size", type=int, help="hypotheses kept [1: greedy]")
    parser.add_argument("--nbest", type=int, help="hypotheses written [1]")
    parser.add_argument("--ctc_weight", type=float, help="share of CTC's score [0]")
    parser.add_argument("--penalty", type=float, help="added for each token [0]")
    parser.add_argument("--candidates", type=int, help="tokens CTC judges [20]")
    parser.add_argument(
        "--rescore_ctc_weight",
        type=float,
        help="share of CTC's score in ranking the n-best anew [0: not]",
    )
    parser.add_argument(
        "--guard",
        action=argparse.BooleanOptionalAction,
        help="check answers against the audio [if the model has a guard.yaml]",
    )
    parser.add_argument("--num_shards", type=int, default=1)
    parser.add_argument("--shard", type=int, default=1, help="from 1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="float32, bfloat16, float16, auto [float32]")
    parser.add_argument("--engine", help="auto, eager, deepspeed [auto]")
    args = parser.parse_args(argv)
    options = read_yaml(args.config) if args.config else {}
    named = "batch_size beam_size nbest ctc_weight penalty candidates "
    named += "rescore_ctc_weight guard dtype engine"
    for name in named.split():
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
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
    )
    print(f"{args.output_dir}: {count} utterances decoded now (shard {args.shard})")


if __name__ == "__main__":
    run_main(main)
