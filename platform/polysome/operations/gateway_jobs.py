"""The jobs of a gateway: the recipes that its configuration names, submitted by people who do not hold the cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from polysome.config import ConfigurationError, DataError, validate
from polysome.operations.layers import read_layers
from polysome.operations.parameters import Offer
from polysome.operations.runtime import require_checkout
from polysome.operations.submit import ClusterJobs, describe
from polysome.serving.config import ServeSettings
from polysome.serving.jobs_api import JobStatus


@dataclass(frozen=True)
class _Recipe:
    path: str
    """Within the checkout."""
    offer: Offer
    schema: dict[str, Any]


class GatewayJobs:
    """`polysome.serving.jobs_api.Jobs` of one cluster and one runs folder.

    Args:
        address: of the cluster's Jobs API.
        runs_root: where jobs write, and the only place whose jobs are shown.
        recipes: paths within the checkout.

    Raises:
        ConfigurationError: a recipe is not there, offers its parameters wrongly, or has the name of another.
    """

    def __init__(self, address: str, runs_root: str, recipes: Sequence[str]) -> None:
        self._jobs = ClusterJobs(address, runs_root=runs_root)
        self._runs_root = runs_root
        self._recipes: dict[str, _Recipe] = {}
        for path in recipes:
            layered = read_layers(require_checkout() / path)
            name = str(layered.content.get("name", ""))
            if not name or name in self._recipes:
                raise ConfigurationError(
                    f"recipe {path}: {'it has no name' if not name else f'another recipe is called {name!r} as well'}",
                    where="recipes",
                    fix="give each recipe a `name` of its own",
                )
            offer = validate(Offer, layered.offer, where=path)
            values = {item.key: _at(layered.content, item.key) for item in offer.parameters.values()}
            self._recipes[name] = _Recipe(path, offer, offer.schema_of(values))

    @classmethod
    def of(cls, config: ServeSettings) -> Self | None:
        """What the configuration asks for; None where it names no cluster.

        Raises:
            ConfigurationError: it names a cluster and no place for runs.
        """
        if config.jobs_address is None:
            return None
        if config.runs is None:
            raise ConfigurationError(
                "jobs_address needs runs: where shall the jobs write?",
                where="runs",
                fix="name a URL, or an absolute path that every node of both clusters sees",
            )
        return cls(config.jobs_address, config.runs, config.recipes)

    def recipes(self) -> list[dict[str, Any]]:
        """See `Jobs.recipes`."""
        return [
            {"name": name, "description": recipe.offer.description, "parameters": recipe.schema}
            for name, recipe in self._recipes.items()
        ]

    def submit(self, recipe: str, parameters: Mapping[str, Any], *, team: str, user: str) -> JobStatus:
        """See `Jobs.submit`. Its priority is `normal`, its packages are the image's."""
        if recipe not in self._recipes:
            raise ConfigurationError(
                f"no recipe {recipe!r}",
                where="recipe",
                fix=f"choose one of {', '.join(self._recipes)}" if self._recipes else "this server offers none",
            )
        chosen = self._recipes[recipe]
        overrides = chosen.offer.overrides(parameters, where=f"parameters of {recipe}")
        path = str(require_checkout() / chosen.path)
        try:
            described = describe(path, overrides, runs_root=self._runs_root, team=team, user=user)
        except (ConfigurationError, DataError) as error:
            # Values that do not go together: the caller's to mend, whatever file the recipe's own check names.
            raise ConfigurationError(error.what, where=f"parameters of {recipe}", fix=error.fix) from error
        return self._jobs.submit(described)

    def list(self, *, team: str | None) -> list[JobStatus]:
        """See `Jobs.list`."""
        return self._jobs.list(team=team)

    def status(self, job: str) -> JobStatus:
        """See `Jobs.status`."""
        return self._jobs.status(job)

    def logs(self, job: str, *, tail: int) -> str:
        """See `Jobs.logs`."""
        return self._jobs.logs(job, tail=tail)

    def stop(self, job: str) -> JobStatus:
        """See `Jobs.stop`."""
        return self._jobs.stop(job)

    def resume(self, job: str) -> JobStatus:
        """See `Jobs.resume`.

        Raises:
            ConfigurationError: its recipe is none of the gateway's.
        """
        recipe = self._jobs.status(job).recipe
        if recipe not in {offered.path for offered in self._recipes.values()}:
            raise ConfigurationError(
                f"{recipe} is none of this server's recipes",
                where=job,
                fix=f"resume it with `polysome resume {job}` and the cluster's token",
            )
        return self._jobs.resume(job)


def _at(content: Any, key: str) -> Any:
    """The value at a dotted key; None where nothing is set."""
    for part in key.split("."):
        if isinstance(content, list):
            content = content[int(part)] if part.isdigit() and int(part) < len(content) else None
        else:
            content = content.get(part) if isinstance(content, dict) else None
    return content
