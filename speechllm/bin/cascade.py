"""Translate the transcripts of a model's recognition with the same LLM: a baseline."""

from __future__ import annotations

import argparse

from speechllm.errors import run_main


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train the translator and translate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder that stage 11 wrote")
    parser.add_argument("--train_examples", required=True, help="pairs to learn from")
    parser.add_argument("--examples", required=True, help="example dir to translate")
    parser.add_argument("--hypotheses", required=True, help="decode dir of the model")
    parser.add_argument("--output", required=True, help="decode dir to write")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--beam_size", type=int, default=4)
    args = parser.parse_args(argv)
    from speechllm.cascade import run_cascade
    from speechllm.model.search import SearchOptions

    count = run_cascade(
        args.model,
        args.train_examples,
        args.examples,
        args.hypotheses,
        args.output,
        args.epochs,
        args.learning_rate,
        args.batch_size,
        SearchOptions(beam_size=args.beam_size),
    )
    print(f"{args.output}: {count} transcripts translated")


if __name__ == "__main__":
    run_main(main)
