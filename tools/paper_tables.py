#!/usr/bin/env python3
"""Print the papers' tables with our figures, as Markdown for a recipe's README."""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="folder below egs2: csj, must_c, reazonspeech")
    parser.add_argument("--results", help="[the recipe's exp/RESULTS.json, if any]")
    args = parser.parse_args()
    from speechllm.evaluation.paper_tables import recipe_markdown

    print(recipe_markdown(args.recipe, args.results), end="")


if __name__ == "__main__":
    run_main(main)
