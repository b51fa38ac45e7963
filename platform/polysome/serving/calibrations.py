"""Calibrations: a finished evaluation in; what it knows of a task, where that holds as the task is asked here, out."""

from dataclasses import dataclass

from polysome.config import ConfigurationError
from polysome.evaluation.calibration import Calibration
from polysome.evaluation.intervals import Interval
from polysome.evaluation.profile import Profile
from polysome.evaluation.results import Evaluation, TaskResult, read_evaluation
from polysome.serving.adapters import Published
from polysome.serving.calls import Target
from polysome.serving.config import ServeConfig
from polysome.specs import Dataset
from polysome.storage import absolute, fingerprint


@dataclass(frozen=True)
class Evidence:
    """What is known of a model's answers to one task."""

    note: str
    """How its probabilities or intervals were fitted and how good they are; or why there are none."""
    calibration: Calibration | None = None
    interval: Interval | None = None
    profiles: tuple[Profile, ...] = ()
    """Of the evaluated rows, whatever model was asked."""


UNKNOWN = Evidence("not calibrated: the server names no evaluation")


@dataclass(frozen=True)
class Calibrations:
    """The evaluation that a server names, or none."""

    config: ServeConfig
    evaluation: Evaluation | None = None

    @classmethod
    def read(cls, config: ServeConfig, model: str) -> "Calibrations":
        """Read the evaluation of `config.calibration`.

        Args:
            model: fingerprint of the served model.

        Raises:
            DataError: there is no finished evaluation of this version.
            ConfigurationError: it is of another model.
        """
        if config.calibration is None:
            return cls(config)
        evaluation = read_evaluation(absolute(config.calibration))
        if evaluation.model_fingerprint != model:
            raise ConfigurationError(
                f"the evaluation is of model {evaluation.model_fingerprint}, served is {model}",
                where=f"calibration: {config.calibration}",
                fix="evaluate the served model, and name that run; or leave calibration out",
            )
        return cls(config, evaluation)

    def result(self, spec: Dataset) -> TaskResult | None:
        """What the evaluation found on the task; None where it did not ask it, or the task has changed since."""
        for result in self.evaluation.tasks if self.evaluation else ():
            files = [file["sha256"] for file in result.data["files"]]
            if result.dataset == spec.name and result.task_fingerprint == fingerprint(
                [fingerprint(spec.model_dump(mode="json")), files]
            ):
                return result
        return None

    def of(self, spec: Dataset, target: Target) -> Evidence:
        """What holds for the task as it is asked here, of base or adapter."""
        if self.evaluation is None:
            return UNKNOWN
        result = self.result(spec)
        if result is None:
            return Evidence(
                f"not calibrated: evaluation {self.evaluation.name!r} is not of this task as it is declared"
            )
        obstacle = self._asked_otherwise(spec)
        if obstacle is None and not self._is_of(target.adapter):
            obstacle = "another adapter" if self.evaluation.adapter_fingerprint else "the base model"
        if obstacle is not None:
            return Evidence(
                f"not calibrated: evaluation {self.evaluation.name!r} is of {obstacle}", profiles=result.profiles
            )
        return self._evidence(self.evaluation, result)

    def _evidence(self, evaluation: Evaluation, result: TaskResult) -> Evidence:
        calibration, band = result.calibration, result.interval
        if calibration is not None and calibration.method is not None and calibration.after is not None:
            note = (
                f"{calibration.method}, fitted on {calibration.dev_n} dev rows; expected calibration error "
                f"{calibration.after.ece:.3f} on {calibration.n} test rows"
            )
            return Evidence(f"{note} (evaluation {evaluation.name!r})", calibration, profiles=result.profiles)
        if band is not None and evaluation.settings["temperature"] == 0:
            return Evidence(f"{band} (evaluation {evaluation.name!r})", interval=band, profiles=result.profiles)
        reason = "the evaluation asked no dev rows of it that a fit or an interval could come from"
        if calibration is not None and calibration.notes:
            reason = calibration.notes[-1]
        return Evidence(f"not calibrated: {reason.removeprefix('not calibrated: ')}", profiles=result.profiles)

    def _asked_otherwise(self, spec: Dataset) -> str | None:
        """How the evaluation's questions differ from those asked here; None where they do not."""
        assert self.evaluation is not None
        settings = self.evaluation.settings
        wording = settings["wording"]
        asked = {
            "style": (settings["style"], "chat"),
            "prompt": (settings["prompt"], self.config.prompt),
            "tagged": (settings["tagged"], False),
            "prior_correction": (settings["prior_correction"], False),
            "wording": (wording.get(spec.name, "faithful") if isinstance(wording, dict) else wording, "faithful"),
        }
        return next(
            (f"{name} {there}, asked here is {here}" for name, (there, here) in asked.items() if there != here), None
        )

    def _is_of(self, adapter: Published | None) -> bool:
        assert self.evaluation is not None
        return self.evaluation.adapter_fingerprint == (adapter.adapter_fingerprint if adapter else None)
