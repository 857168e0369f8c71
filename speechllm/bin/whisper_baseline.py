"""Decode an example dir with Whisper's own decoder: a baseline."""

from __future__ import annotations

import argparse

from speechllm.errors import run_main


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and decode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="openai/whisper-base", help="hub id, folder")
    parser.add_argument("--examples", required=True, help="example dir")
    parser.add_argument("--output", required=True, help="decode dir to write")
    parser.add_argument("--batch_size", type=int, default=8)
    args = parser.parse_args(argv)
    from speechllm.whisper_baseline import transcribe_with_whisper

    count = transcribe_with_whisper(
        args.model, args.examples, args.output, args.batch_size
    )
    print(f"{args.output}: {count} utterances decoded by {args.model}")


if __name__ == "__main__":
    run_main(main)
