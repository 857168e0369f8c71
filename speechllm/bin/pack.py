"""Pack an exported model into one zip with a manifest, or unpack such a zip.

    python -m speechllm.bin.pack --model exp/speechllm_train/model --output model.zip
    python -m speechllm.bin.pack --unpack model.zip --output model

Unpacking verifies the checksums of the manifest.
"""

from __future__ import annotations

import argparse

from speechllm.utils.errors import UserError, run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--model", help="exported model folder to pack")
    mode.add_argument("--unpack", metavar="ZIP", help="packed model to unpack")
    parser.add_argument(
        "--output", required=True, help="zip to write, or folder to unpack into"
    )
    parser.add_argument(
        "--include",
        nargs="+",
        default=[],
        metavar="FILE",
        help="further files to pack, e.g. results or training curves",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace an existing output"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Pack or unpack."""
    args = get_parser().parse_args(argv)

    from speechllm.export.pack import pack, unpack

    if args.unpack is not None:
        if args.include:
            raise UserError("--include belongs to --model, not to --unpack")
        unpack(args.unpack, args.output, force=args.force)
        print(f"{args.output}: unpacked and checked")
    else:
        manifest = pack(args.model, args.output, args.include, force=args.force)
        size = sum(entry["size"] for entry in manifest["files"].values())
        count = len(manifest["files"])
        print(f"{args.output}: {count} files, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_main(main)
