"""Check a GPU and write gpu_report.md.

    python -m speechllm.bin.check_gpu
    python -m speechllm.bin.check_gpu --device cpu --size tiny

It takes at most 28 minutes on one card and needs nothing but the repository and its
environment. Without a GPU it stops; ``--device cpu --size tiny`` runs each part in its
CPU form. The exit status is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from speechllm.benchmarks.gpu import PARTS, check_gpu
from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="tools/check_gpu.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=["cuda", "cpu"], default="cuda", help="device [cuda]")
    add("--size", choices=["full", "tiny"], default="full", help="model sizes [full]")
    add("--output", default="gpu_report.md", help="file to write [gpu_report.md]")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts [all]")
    add("--part", choices=PARTS, help=argparse.SUPPRESS)  # in a process of its own
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the check, or one part of it."""
    args = get_parser().parse_args(argv)
    if args.part is None:
        passed = check_gpu(args.parts, args.device, args.size, args.output)
        print(args.output)
        return 0 if passed else 1
    from speechllm.benchmarks import gpu_parts

    result = getattr(gpu_parts, f"check_{args.part}")(args.device, args.size)
    Path(args.output).write_text(json.dumps(asdict(result)), "utf-8")
    return 0


if __name__ == "__main__":
    run_main(main)
