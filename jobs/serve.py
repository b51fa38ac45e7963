"""Serve a model until Ctrl-C: python jobs/serve.py RECIPE [key=value …], or the same by `ray job submit -- …`."""

import sys

from polysome.operations.cluster import connect
from polysome.operations.program import program
from polysome.operations.recipes import load_recipe
from polysome.serving.checks import check
from polysome.serving.config import ServeConfig


def main(recipe: str, *overrides: str) -> None:
    """Check model and port, start gateway and pool, wait."""
    loaded = load_recipe(recipe, overrides, job="serve").config
    assert isinstance(loaded, ServeConfig)
    config = check(loaded)
    with connect(cpus=config.cpus_per_replica):
        from polysome.serving import app

        with app.serving(config) as url:
            print(f"{config.name} is served at {url}; Ctrl-C ends it", flush=True)
            app.wait()


if __name__ == "__main__":
    sys.exit(program(main))
