"""Write a trained model as a small folder for decoding (stage 11)."""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp_dir", required=True, help="folder of the training")
    parser.add_argument("--checkpoint", default="valid.acc.ave.pth")
    parser.add_argument("--output", required=True, help="folder to write")
    args = parser.parse_args(argv)
    from speechllm.export.exported_model import export_model

    size = export_model(args.exp_dir, args.checkpoint, args.output)
    print(f"{args.output}: {args.checkpoint}, {size / 1e6:.1f} MB of trained weights")


if __name__ == "__main__":
    run_main(main)
