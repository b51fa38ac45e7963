"""Serve a model until Ctrl-C: python jobs/serve.py RECIPE [key=value …], or the same by `ray job submit -- …`."""

import sys

from polysome.operations import jobs
from polysome.operations.program import program
from polysome.operations.recipes import load_recipe
from polysome.serving.config import ServeConfig


def main(recipe: str, *overrides: str) -> None:
    """Check model and port, start gateway and pool, wait."""
    loaded = load_recipe(recipe, overrides, job="serve").config
    assert isinstance(loaded, ServeConfig)
    jobs.serve(loaded, ready)


def ready(url: str, config: ServeConfig) -> None:
    """Say that the model is served."""
    print(f"{config.name} is served at {url}; Ctrl-C ends it", flush=True)


if __name__ == "__main__":
    sys.exit(program(main))
