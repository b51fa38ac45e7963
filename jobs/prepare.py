"""Prepare data: python jobs/prepare.py RECIPE [key=value …], or the same by `ray job submit -- …`."""

import sys

from polysome.operations import jobs, runs
from polysome.operations.program import program
from polysome.operations.recipes import load_recipe


def main(recipe: str, *overrides: str) -> None:
    """Read, clean, render, tokenize, pack, commit."""
    loaded = load_recipe(recipe, overrides, job="prepare")
    run = jobs.execute(loaded, runs.default_root(), announce=print)
    results = run.record.results
    print(f"{results['documents']:,} documents, {results['tokens']:,} tokens in {results['rows']:,} rows")
    print(f"prepared folder: {results['data']}")


if __name__ == "__main__":
    sys.exit(program(main))
