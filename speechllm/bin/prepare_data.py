"""Turn a corpus as it lies on disk into data dirs: prepare_data CORPUS --help."""

from __future__ import annotations

import argparse
import importlib
import sys

from speechllm.corpora import corpus_names
from speechllm.utils.errors import run_main


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", choices=corpus_names())
    name = parser.parse_args(argv[:1]).corpus
    corpus = importlib.import_module(f"speechllm.corpora.{name}")
    parser = argparse.ArgumentParser(
        prog=f"{parser.prog} {name}",
        description=corpus.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    corpus.add_arguments(parser)
    corpus.run(parser.parse_args(argv[1:]))


if __name__ == "__main__":
    run_main(main)
