"""The Serve application, for `serve run serve.app:application model=<folder>`, a Serve config file, or a RayService.

Run it from the root of the checkout. The keys are those of `polysome config-schema serve`; a recipe file may give them:
`serve run serve.app:application recipe=serve/recipe.yaml`.
"""

import sys
from pathlib import Path

# A Serve replica starts in the checkout; an installed Polysome needs nothing here.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from ray.serve import Application

from polysome.config import ConfigurationError, validate
from polysome.operations.jobs import views_of
from polysome.serving.app import build
from polysome.serving.config import ServeConfig


def application(arguments: dict[str, object]) -> Application:
    """Gateway and model pool for the arguments of the config file or the command line."""
    settings = dict(arguments)
    recipe = settings.pop("recipe", None)
    if recipe is not None:
        from polysome.operations.recipes import load_recipe

        overrides = [f"{key}={value}" for key, value in settings.items()]
        config = load_recipe(str(recipe), overrides, job="serve").config
        if not isinstance(config, ServeConfig):
            raise ConfigurationError(f"{recipe} is no recipe for serving", where=str(recipe))
    else:
        config = validate(ServeConfig, settings, where="the application's args")
    return build(config, views_of(config))
