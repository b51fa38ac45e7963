"""Results: what an evaluation found, to `results.json` and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polysome.config import DataError
from polysome.evaluation.calibration import Calibration
from polysome.evaluation.intervals import Interval
from polysome.evaluation.measure import Measurement
from polysome.evaluation.profile import Profile
from polysome.specs import Omics
from polysome.storage import join, read_json

RESULTS_FILE = "results.json"
FORMAT = 2
"""Of the file. An earlier one held one measurement a task, and neither scores nor baselines."""


@dataclass(frozen=True)
class TaskResult:
    """What a model reached on one task."""

    dataset: str
    title: str
    omics: Omics
    version: int
    """Of the data set's spec."""
    task_fingerprint: str
    """Of the spec and the content of the evaluated files: results with different ones are not of the same rows."""
    licence: str
    data: Mapping[str, Any]
    """`split`, `rows` that were evaluated of `whole`, leakage `groups`, and `files` with address and SHA-256."""
    styles: Mapping[str, Measurement] = field(default_factory=dict)
    """Of the answers in words, by parser: `strict` and `official`; empty where they were not asked for."""
    scored: Measurement | None = None
    """Of the most likely labels and the expected numbers; None where scores were not asked for or cannot be."""
    calibration: Calibration | None = None
    """Of the class probabilities."""
    interval: Interval | None = None
    """Around a regression's numbers in words; None where no dev rows were asked."""
    profiles: tuple[Profile, ...] = ()
    """Of each molecule in the evaluated rows; empty in the results of earlier versions."""
    baselines: Mapping[str, Measurement] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, Measurement]] = field(default_factory=dict)
    """By `length` and `gc`, for each quarter of the rows; of the strict reading, else of the scores."""
    errors: int = 0
    """Evaluated rows that could not be asked, in words or for scores; there they count as wrong. Earlier versions
    counted questions, those on dev rows among them."""
    error_reasons: tuple[tuple[str, int], ...] = ()
    """The most frequent reasons and of how many rows each is."""
    empty: int = 0
    """Answers in words without a letter."""
    notes: tuple[str, ...] = ()

    @property
    def measurement(self) -> Measurement:
        """The headline: by the strict parser, or by scores where nothing was asked in words (AMB-9)."""
        found = self.styles.get("strict", self.scored)
        assert found is not None, f"{self.dataset} was neither asked in words nor scored"
        return found

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "dataset": self.dataset,
            "version": self.version,
            "title": self.title,
            "omics": self.omics,
            "fingerprint": self.task_fingerprint,
            "licence": self.licence,
            "data": dict(self.data),
            "styles": _to_json(self.styles),
            "scored": self.scored.to_json() if self.scored else None,
            "calibration": self.calibration.to_json() if self.calibration else None,
            "interval": self.interval.to_json() if self.interval else None,
            "profiles": [profile.to_json() for profile in self.profiles],
            "baselines": _to_json(self.baselines),
            "slices": {by: _to_json(parts) for by, parts in self.slices.items()},
            "errors": self.errors,
            "error_reasons": [list(reason) for reason in self.error_reasons],
            "empty": self.empty,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TaskResult":
        """The result that `to_json` wrote."""
        rest = {key: value for key, value in content.items() if key != "fingerprint"}
        return cls(
            **{
                **rest,
                "task_fingerprint": content["fingerprint"],
                "styles": _from_json(content["styles"]),
                "scored": Measurement.from_json(content["scored"]) if content["scored"] else None,
                "calibration": Calibration.from_json(content["calibration"]) if content["calibration"] else None,
                # Earlier versions wrote neither.
                "interval": Interval.from_json(content["interval"]) if content.get("interval") else None,
                "profiles": tuple(map(Profile.from_json, content.get("profiles", []))),
                "baselines": _from_json(content["baselines"]),
                "slices": {by: _from_json(parts) for by, parts in content["slices"].items()},
                "error_reasons": tuple((reason, count) for reason, count in content["error_reasons"]),
                "notes": tuple(content["notes"]),
            }
        )


@dataclass(frozen=True)
class Evaluation:
    """What a model reached on all tasks of a recipe; `results.json` holds the same."""

    name: str
    model: str
    model_fingerprint: str
    tasks: tuple[TaskResult, ...]
    asked: int
    """Questions answered in this run."""
    reused: int
    """Questions whose answer an earlier run of the same folder had written."""
    seconds: float
    settings: Mapping[str, Any]
    """The recipe but for name and model: tasks, prompt, decoding and the rest of what the results depend on."""
    adapter: str | None = None
    adapter_fingerprint: str | None = None
    command: str = ""
    """What makes the results again."""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def measurements(self) -> dict[str, Measurement]:
        """Headline measurement per data set, in the recipe's order."""
        return {task.dataset: task.measurement for task in self.tasks}

    def to_json(self) -> dict[str, Any]:
        """JSON-able: the content of `results.json`."""
        return {
            "format": FORMAT,
            "name": self.name,
            "model": self.model,
            "model_fingerprint": self.model_fingerprint,
            "adapter": self.adapter,
            "adapter_fingerprint": self.adapter_fingerprint,
            "settings": dict(self.settings),
            "command": self.command,
            "versions": dict(self.versions),
            "asked": self.asked,
            "reused": self.reused,
            "seconds": round(self.seconds, 3),
            "tasks": [task.to_json() for task in self.tasks],
        }


def read_evaluation(folder: str) -> Evaluation:
    """The evaluation whose `results.json` stands in `folder`.

    Raises:
        DataError: there is none, or it is not of this version.
    """
    url = join(folder, RESULTS_FILE)
    content = read_json(url)
    try:
        found = content.pop("format")
        if found != FORMAT:
            raise DataError(f"results of format {found}, known is {FORMAT}", where=url, fix="run the evaluation again")
        tasks = tuple(TaskResult.from_json(task) for task in content.pop("tasks"))
        return Evaluation(tasks=tasks, **content)
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"not an evaluation's results: {error!r}",
            where=url,
            fix="run the evaluation again; an earlier version wrote other results",
        ) from error


def _to_json(found: Mapping[str, Measurement]) -> dict[str, Any]:
    return {name: measurement.to_json() for name, measurement in found.items()}


def _from_json(content: Mapping[str, Any]) -> dict[str, Measurement]:
    return {name: Measurement.from_json(item) for name, item in content.items()}
