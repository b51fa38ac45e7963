"""What runs use and cost: hours of CPUs and GPUs that they held, priced by the rates of their runs folder."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from polysome.config import Config, validate
from polysome.storage import absolute, exists, join, read_json

if TYPE_CHECKING:
    from polysome.operations.runs import RunRecord

RATES = "rates.json"


class Rates(Config):
    """`rates.json` in a runs folder: what its team pays. Without the file hours are counted and nothing is priced."""

    currency: Annotated[str, Field(min_length=1, max_length=8)]
    cpu_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    gpu_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Usage(Config):
    """What was held."""

    seconds: float = 0.0
    """Wall time with CPUs and GPUs at hand; waiting in a queue is not in it."""
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0

    def and_held(self, seconds: float, *, cpus: float, gpus: float) -> "Usage":
        """With so many seconds more."""
        return Usage(
            seconds=self.seconds + seconds,
            cpu_hours=self.cpu_hours + seconds * cpus / 3600,
            gpu_hours=self.gpu_hours + seconds * gpus / 3600,
        )

    def cost(self, rates: Rates | None) -> float | None:
        """In the currency of the rates; None where there are none."""
        return None if rates is None else self.cpu_hours * rates.cpu_hour + self.gpu_hours * rates.gpu_hour


def read_rates(runs_root: str) -> Rates | None:
    """The rates of a runs folder; None where it has none.

    Raises:
        ConfigurationError, DataError: the file is wrong.
    """
    path = join(absolute(runs_root), RATES)
    return validate(Rates, read_json(path), where=path) if exists(path) else None


def by_team(records: "Iterable[RunRecord]") -> dict[str, tuple[Usage, float | None]]:
    """Sum and cost over the runs of each team, in order of names; runs without rates have no part in the cost.

    Of a pipeline give the pipeline alone: what it held covers its steps.
    """
    sums: dict[str, tuple[Usage, float | None]] = {}
    for record in records:
        before, cost = sums.get(record.team, (Usage(), None))
        used = Usage(
            seconds=before.seconds + record.usage.seconds,
            cpu_hours=before.cpu_hours + record.usage.cpu_hours,
            gpu_hours=before.gpu_hours + record.usage.gpu_hours,
        )
        sums[record.team] = used, cost if record.cost is None else (cost or 0.0) + record.cost
    return dict(sorted(sums.items()))
