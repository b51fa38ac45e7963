"""Outcome: the answers to a task's questions in; its measurements, calibration and slices out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from polysome.evaluation import parsers
from polysome.evaluation.baselines import Baselines
from polysome.evaluation.calibration import Calibration, calibrate
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.intervals import Interval, conformal_interval
from polysome.evaluation.measure import Estimate, Measurement, Style, measure, predictions_of
from polysome.evaluation.parsers import Prediction, Sentiment
from polysome.evaluation.profile import profiles
from polysome.evaluation.questions import PlannedTask, Question
from polysome.evaluation.replicas import agreement, vote
from polysome.evaluation.results import TaskResult
from polysome.evaluation.samples import Sample
from polysome.evaluation.statistics import share_interval
from polysome.specs import Dataset
from polysome.storage import fingerprint

STYLES: tuple[Literal["strict", "official"], ...] = ("strict", "official")
CALIBRATED = "_calibrated"
"""End of the id of a yes-no task's metric where the answer is the one that the calibration on dev finds likelier."""
SLICE_RESAMPLES = 200
"""Of a slice's interval, at most."""
_SHOWN_ERRORS = 5
_QUARTERS = 4


def outcome(
    planned: PlannedTask,
    known: Mapping[str, Sample],
    config: EvaluationConfig,
    baselines: Baselines,
    sentiment: Sentiment | None = None,
) -> TaskResult:
    """Measure one task.

    Args:
        known: samples by key; each of the task's questions has one.
        sentiment: judges answers for the official parser.
    """
    spec, task, table = planned.spec, planned.task, planned.rows.table
    labels = planned.labels
    subsets = table["subset"].to_pylist()

    def measured(
        predictions: Sequence[Prediction], style: Style, scores: NDArray[np.float64] | None = None
    ) -> Measurement:
        return measure(
            task,
            labels,
            predictions,
            style=style,
            scores=scores,
            groups=planned.groups,
            seed=config.seed,
            resamples=config.resamples,
            parsed=scores is None,
            subsets=subsets,
        )

    headline: tuple[Sequence[Prediction], NDArray[np.float64] | None] = ([], None)
    notes = [*planned.notes, *(f"baselines: {note}" for note in baselines.notes)]
    if baselines.removed_rows:
        notes.append(
            f"baselines: fitted on {baselines.train_rows} rows; {baselines.removed_rows} whose sequences stand in the "
            "evaluated rows were left out"
        )
    styles: dict[str, Measurement] = {}
    scored, calibration = None, None
    band: Interval | None = None
    dev = planned.calibration if isinstance(planned.calibration, list) else []
    dev_labels = [item.label for item in dev]
    if "scores" in planned.questions:
        scores = _scores(planned, planned.questions["scores"], known)
        headline = predictions_of(task, scores), scores
        scored = measured(headline[0], "scored", scores)
        missing = planned.calibration if isinstance(planned.calibration, str) else "no dev row was asked"
        held_out = (dev_labels, _scores(planned, dev, known)) if dev and dev[0].mode == "scores" else missing
        calibration = calibrate(task, labels, scores, held_out)
        if calibration and calibration.method == "platt":
            value = measured(_calibrated(scores, calibration), "scored", scores).value
            scored = replace(scored, extras={**scored.extras, f"{task.metric}{CALIBRATED}": value})
    said = [known[item.key] for item in planned.questions.get("text", [])]
    texts = [sample.model_output for sample in said]
    if cut := sum(sample.finish_reason == "length" for sample in said):
        notes.append(f"{cut} of {len(said)} answers were cut at {config.answer_tokens} tokens (max_new_tokens)")
    for style in STYLES if texts else ():
        parse = parsers.parser(task, style=style, sentiment=sentiment)
        told = [None if text is None else parse(text) for text in texts]
        rows = [told[start : start + config.replicas] for start in range(0, len(told), config.replicas)]
        predictions = [vote(task, row) for row in rows]
        styles[style] = measured(predictions, style)
        if config.replicas > 1:
            # Of all answers: one that can be read is enough for a vote, and would hide the others.
            rate = sum(answer is not None for answer in told) / len(told)
            interval = share_interval(round(rate * len(rows)), len(rows))
            styles[style] = replace(styles[style], parse_rate=Estimate(rate, *interval))
        if style == "strict":
            headline = predictions, None
            if dev and dev[0].mode == "text":
                answers = [known[item.key].model_output for item in dev]
                read = [None if answer is None else parse(answer) for answer in answers]
                band = conformal_interval(task, labels, predictions, (dev_labels, read))
                notes.append(str(band) if band else f"no interval: too few of {len(dev)} dev answers say a number")
            if config.replicas > 1:
                asked = f"{config.replicas} answers to each question at temperature {config.temperature:g}"
                notes.append(f"{asked}: {agreement(task, rows)}")
    failed, lost = _failures(planned, known)
    if lost:
        notes.append(f"{lost} answers to rows that other replicas answered are missing: they could not be asked")
    if unasked := [error for item in dev if (error := known[item.key].error) is not None]:
        notes.append(f"{len(unasked)} of {len(dev)} dev questions could not be asked ({unasked[0]})")
    reasons = Counter(failed.values())
    return TaskResult(
        dataset=spec.name,
        title=task.title,
        omics=spec.omics,
        version=spec.version,
        task_fingerprint=fingerprint([planned.fingerprint, [file["sha256"] for file in planned.rows.files]]),
        licence=spec.licence,
        data={
            "split": config.split,
            "rows": table.num_rows,
            "whole": planned.rows.whole,
            "groups": int(planned.groups.max()) + 1,
            "files": list(planned.rows.files),
        },
        styles=styles,
        scored=scored,
        calibration=calibration,
        interval=band,
        profiles=profiles(spec, table),
        baselines=baselines.measurements,
        slices=_slices(planned, labels, *headline, config) if headline[0] else {},
        errors=reasons.total(),
        error_reasons=tuple(reasons.most_common(_SHOWN_ERRORS)),
        empty=sum(text is not None and not text.strip() for text in texts),
        notes=tuple(notes),
    )


def _failures(planned: PlannedTask, known: Mapping[str, Sample]) -> tuple[dict[str, str], int]:
    """Why a row could not be asked in a mode, by its id, the first mode's reason; and how many answers of replicas are
    missing beside others of their row."""
    failed: dict[str, str] = {}
    lost = 0
    for items in planned.questions.values():
        answered = {item.id for item in items if known[item.key].error is None}
        for item in items:
            error = known[item.key].error
            if error is not None and item.id in answered:
                lost += 1
            elif error is not None:
                failed.setdefault(item.id, error)
    return failed, lost


def _scores(planned: PlannedTask, asked: Sequence[Question], known: Mapping[str, Sample]) -> NDArray[np.float64]:
    """float64 [rows, classes or outputs], nan where a row could not be asked."""
    found = [known[item.key].scores for item in asked]
    width = max((len(scores) for scores in found if scores is not None), default=_width(planned))
    return np.array([[np.nan] * width if scores is None else scores for scores in found], dtype=np.float64)


def _calibrated(scores: NDArray[np.float64], calibration: Calibration) -> list[Prediction]:
    """Yes or no by the fitted probability; a temperature moves no decision between classes, so it has none of this."""
    positive = calibration.probabilities(scores)[:, 1]
    return [None if np.isnan(probability) else (float(probability > 0.5),) for probability in positive]


def _width(planned: PlannedTask) -> int:
    """How many scores a row would have, had any row been scored."""
    label: Any = planned.task.label
    return {"binary": 2, "regression": 1}.get(label.kind) or len(getattr(label, "classes", None) or label.outputs)


def _slices(
    planned: PlannedTask,
    labels: Sequence[Any],
    predictions: Sequence[Prediction],
    scores: NDArray[np.float64] | None,
    config: EvaluationConfig,
) -> dict[str, dict[str, Measurement]]:
    """Quarters of the rows by total length, and by GC content of nucleotides."""
    found = {}
    for by, values in _quantities(planned.spec, planned.rows.table).items():
        edges = np.unique(np.quantile(values, np.arange(1, _QUARTERS) / _QUARTERS, method="lower"))
        places = np.searchsorted(edges, values)
        names = {}
        for place in np.unique(places):
            inside = values[places == place]
            names[int(place)] = f"{inside.min():.3g} to {inside.max():.3g}"
        measured = measure(
            planned.task,
            labels,
            predictions,
            style="strict" if scores is None else "scored",
            scores=scores,
            groups=planned.groups,
            seed=config.seed,
            resamples=min(config.resamples, SLICE_RESAMPLES),
            parsed=scores is None,
            subsets=[names[int(place)] for place in places],
        )
        if measured.subsets:
            found[by] = {name: measured.subsets[name] for name in dict.fromkeys(names.values())}
    return found


def _quantities(spec: Dataset, table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """What slices are made by: letters of all molecules, and the share of G and C among those of DNA and RNA."""
    examples = table["sequences"].to_pylist()
    nucleotides = [place for place, molecule in enumerate(spec.molecules) if molecule.type != "protein"]
    found = {"length": np.array([sum(map(len, sequences)) for sequences in examples], dtype=np.float64)}
    if nucleotides:
        letters = ["".join(sequences[place] for place in nucleotides).upper() for sequences in examples]
        found["gc"] = np.array([(text.count("G") + text.count("C")) / max(1, len(text)) for text in letters])
    return found
