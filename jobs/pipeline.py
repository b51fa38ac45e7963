"""Run a pipeline: python jobs/pipeline.py RECIPE [key=value …], or the same by `ray job submit -- …`."""

import sys

from polysome.operations import jobs, runs
from polysome.operations.program import announcer, program
from polysome.operations.recipes import load_recipe


def main(recipe: str, *overrides: str) -> None:
    """Prepare, train and evaluate stage after stage, compare with baselines, report, serve."""
    loaded = load_recipe(recipe, overrides, job="pipeline")
    run = jobs.execute(loaded, runs.default_root(), announce=announcer(sys.stdout))
    print(f"report: {run.folder}/report.md")


if __name__ == "__main__":
    sys.exit(program(main))
