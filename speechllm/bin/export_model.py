"""Export a trained model as a small folder for decoding (stage 11).

    python -m speechllm.bin.export_model --exp_dir exp/speechllm_train \\
        --output exp/speechllm_train/model
"""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main


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
    return parser


def main(argv: list[str] | None = None) -> None:
    """Export the model and print its size."""
    args = get_parser().parse_args(argv)

    from speechllm.export.exported_model import export_model

    size = export_model(args.exp_dir, args.checkpoint, args.output)
    print(f"{args.output}: {args.checkpoint}, {size / 1e6:.1f} MB of trained weights")


if __name__ == "__main__":
    run_main(main)
