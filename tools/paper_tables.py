#!/usr/bin/env python3
"""Print the result tables of a recipe, or update them in the READMEs."""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="folder below egs2, such as csj")
    parser.add_argument(
        "--results",
        help="RESULTS.json of our figures [those in the recipe's experiment folders]",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="replace the tables in egs2/<recipe>/speechllm1/README.md and README.md, "
        "between the lines '<!-- paper_tables.py <recipe>[: <title>] -->' and "
        "'<!-- end -->'",
    )
    args = parser.parse_args()
    from speechllm.evaluation.paper_tables import (
        find_results,
        recipe_markdown,
        update_readmes,
    )

    results = find_results(args.recipe, args.results)
    if args.update:
        for path in update_readmes(args.recipe, results):
            print(f"{path}: tables updated")
    else:
        print(recipe_markdown(args.recipe, results), end="")


if __name__ == "__main__":
    run_main(main)
