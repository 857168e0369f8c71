#!/usr/bin/env python3
"""Print the result tables of a recipe's README, or update them in the README."""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="folder below egs2, such as csj")
    parser.add_argument(
        "--results",
        help="RESULTS.json of our figures [exp/RESULTS.json of the recipe]",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="replace the tables in egs2/<recipe>/speechllm1/README.md, between the "
        "lines '<!-- paper_tables.py <recipe> -->' and '<!-- end -->'",
    )
    args = parser.parse_args()
    from speechllm.evaluation.paper_tables import (
        find_results,
        recipe_markdown,
        update_readme,
    )

    text = recipe_markdown(args.recipe, find_results(args.recipe, args.results))
    if args.update:
        print(f"{update_readme(args.recipe, text)}: tables updated")
    else:
        print(text, end="")


if __name__ == "__main__":
    run_main(main)
