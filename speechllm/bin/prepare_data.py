"""Convert a corpus to Kaldi-style data dirs (stage 1).

    python -m speechllm.bin.prepare_data CORPUS --help

CORPUS is a module of speechllm.corpora; each corpus has its own options.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from speechllm.corpora import corpus_names
from speechllm.utils.errors import run_main

PROG = "python -m speechllm.bin.prepare_data"


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the first argument; each corpus adds its own options."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", choices=corpus_names(), help="name of the corpus")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse the options of the corpus and convert it."""
    argv = sys.argv[1:] if argv is None else argv
    name = get_parser().parse_args(argv[:1]).corpus
    corpus = importlib.import_module(f"speechllm.corpora.{name}")
    parser = argparse.ArgumentParser(
        prog=f"{PROG} {name}",
        description=corpus.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    corpus.add_arguments(parser)
    corpus.run(parser.parse_args(argv[1:]))


if __name__ == "__main__":
    run_main(main)
