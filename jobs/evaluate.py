"""Evaluate a model: python jobs/evaluate.py RECIPE [key=value …], or the same by `ray job submit -- …`."""

import sys

from polysome.operations import jobs, runs
from polysome.operations.program import program
from polysome.operations.recipes import load_recipe


def main(recipe: str, *overrides: str) -> None:
    """Ask every question of the tasks, parse the answers, measure them."""
    loaded = load_recipe(recipe, overrides, job="evaluate")
    run = jobs.execute(loaded, runs.default_root(), announce=print)
    for task, found in run.record.results.items():
        interval = f"95 % CI {found['ci_low']} to {found['ci_high']}"
        print(f"{task}: {found['metric']} {found['value']} ({interval}, n {found['n']})")
    print(f"run: {run.folder}")


if __name__ == "__main__":
    sys.exit(program(main))
