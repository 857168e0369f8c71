"""Export a trained model as a small folder for decoding (stage 10).

    python -m speechllm.bin.export_model --exp_dir exp/speechllm_train \\
        --output exp/speechllm_train/model

With --merged, the folder holds the LLM alone with its adapters merged, as
transformers' AutoModelForCausalLM and vLLM load it.
"""

from __future__ import annotations

import argparse

from speechllm.decoding.options import check_decoding_options
from speechllm.utils.errors import run_main
from speechllm.utils.io import read_yaml


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.export_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--exp_dir", required=True, help="folder of the training")
    parser.add_argument(
        "--checkpoint",
        default="valid.acc.ave.pth",
        help="checkpoint in that folder [valid.acc.ave.pth]",
    )
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--config",
        help="decoding config to write there as generation_config.yaml [none]",
    )
    parser.add_argument(
        "--first_pass",
        help="folder of the fine-tuned model of the first pass [none: as pretrained]",
    )
    parser.add_argument(
        "--merged",
        action="store_true",
        help="write the LLM alone, adapters merged, in transformers' format",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Export the model and print its size."""
    args = get_parser().parse_args(argv)
    if args.config:  # before the export
        check_decoding_options(read_yaml(args.config), args.config)

    from speechllm.export.exported_model import export_merged_llm, export_model

    if args.merged:
        size = export_merged_llm(args.exp_dir, args.checkpoint, args.output)
    else:
        size = export_model(args.exp_dir, args.checkpoint, args.output, args.first_pass)
    weights = "merged" if args.merged else "trained"
    if args.config and not args.merged:
        from speechllm.inference.generation_config import write_generation_config

        print(write_generation_config(args.output, args.config))
    print(f"{args.output}: {args.checkpoint}, {size / 1e6:.1f} MB of {weights} weights")


if __name__ == "__main__":
    run_main(main)
