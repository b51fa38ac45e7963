"""Train one stage: python jobs/train.py RECIPE [key=value …], or the same by `ray job submit -- …`."""

import sys

from polysome.operations import jobs, runs
from polysome.operations.program import program
from polysome.operations.recipes import load_recipe


def main(recipe: str, *overrides: str) -> None:
    """Open data, build the model, choose what trains, train with checkpoints, merge, export."""
    loaded = load_recipe(recipe, overrides, job="train")
    run = jobs.execute(loaded, runs.default_root(), announce=print)
    results = run.record.results
    print(f"{results['updates']:,} updates, {results['tokens']:,} tokens, final loss {results['final_loss']:.4f}")
    print(f"model: {results['export']}")


if __name__ == "__main__":
    sys.exit(program(main))
