"""Trivial baselines: what constants, lengths, k-mer counts and a small network reach on the same rows (A-119)."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from polysome.config import DataError
from polysome.data.ray_capacity import require_capacity
from polysome.data.ray_errors import cause_of
from polysome.evaluation import cnn, linear
from polysome.evaluation.config import BASELINES, CHEAP, Baseline
from polysome.evaluation.features import inverse_deviation, length_bins, length_edges, log_counts
from polysome.evaluation.linear import Told
from polysome.evaluation.measure import Measurement, measure
from polysome.evaluation.parsers import Prediction
from polysome.evaluation.reading import labels_of, read_rows
from polysome.evaluation.targets import target_of
from polysome.specs import Dataset, Split, Task, Value, dataset
from polysome.storage import exists, fingerprint, join, open_atomic, read_json, write_json

logger = logging.getLogger(__name__)

TRAIN_ROWS = 100_000
"""More training rows are not fitted on."""
CNN_SECONDS = 900.0
BASELINES_FILE = "baselines.json"
"""Keeps baselines, which follow from the data alone, from one evaluation to the next."""
BASELINES_FOLDER = "baselines"
"""Holds what baselines say of every row, `<data set>.parquet`."""


@dataclass(frozen=True)
class Baselines:
    """What trivial systems reach on the evaluated rows of a task."""

    dataset: str
    measurements: Mapping[str, Measurement]
    """By baseline; those that do not fit the task's label are absent."""
    train_rows: int = 0
    removed_rows: int = 0
    """Training rows left out because all their sequences stand in an evaluated row (AMB-3)."""
    regularisation: Mapping[str, float] = field(default_factory=dict)
    """The chosen C or alpha, by baseline."""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    predictions: pa.Table | None = None
    """What they say of the evaluated rows: `id`, and a column per baseline, decoded labels (list of float64) or text;
    not in the JSON."""

    def write_predictions(self, folder: str, *, key: str = "") -> None:
        """Write `predictions` below a folder or URL, whole or not at all; nothing where there are none.

        Args:
            key: tells apart the predictions of several settings in one folder.
        """
        if self.predictions is not None:
            with open_atomic(_predictions_file(folder, self.dataset, key)) as handle:
                pq.write_table(self.predictions, handle, compression="zstd")

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "dataset": self.dataset,
            "measurements": {name: measured.to_json() for name, measured in self.measurements.items()},
            "train_rows": self.train_rows,
            "removed_rows": self.removed_rows,
            "regularisation": dict(self.regularisation),
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], predictions: pa.Table | None = None) -> "Baselines":
        """The baselines that `to_json` wrote."""
        measurements = {name: Measurement.from_json(item) for name, item in content["measurements"].items()}
        notes = tuple(content["notes"])
        return cls(**{**content, "measurements": measurements, "notes": notes, "predictions": predictions})


def read_predictions(folder: str, name: str, *, key: str = "") -> pa.Table | None:
    """What `write_predictions` wrote of a data set under that key; None where there is nothing.

    Raises:
        DataError: the file is no Parquet.
    """
    url = _predictions_file(folder, name, key)
    if not exists(url):
        return None
    try:
        with fsspec.open(url, "rb") as handle:
            return pq.read_table(handle)
    except pa.ArrowInvalid as error:
        raise DataError(f"not Parquet: {error}", where=url, fix="remove the file and evaluate again") from error


def baselines(
    spec: Dataset,
    train: pa.Table,
    test: pa.Table,
    *,
    dev: pa.Table | None = None,
    chosen: Sequence[Baseline] = CHEAP,
    groups: NDArray[np.int64] | None = None,
    seed: int = 42,
    resamples: int = 1000,
) -> Baselines:
    """Fit on `train`, measure on `test` by the task's own metrics (tables of schema EXAMPLES).

    k-mer features are counts of all k-mers (k = 1..6 for DNA and RNA, 1..3 for protein), log(1 + count), scaled to unit
    variance; those of two molecules stand side by side. Regularisation is chosen on `dev`, or where there is none
    by 3-fold cross-validation on `train`.

    Args:
        groups: int64 [test rows], leakage groups for the bootstrap.

    Raises:
        DataError: no training row is left, or there is no test row.
    """
    started = time.monotonic()
    task = spec.task
    assert task is not None, "a corpus has no baseline"
    kept = _unseen(train, test)
    if not kept.any() or test.num_rows == 0:
        raise DataError(
            f"{int(kept.sum())} training rows and {test.num_rows} test rows are left",
            where=f"datasets_spec/{spec.name}.yaml",
            fix="declare training rows whose sequences are not those of the test",
        )
    train = train.filter(pa.array(kept))
    labels, test_labels = labels_of(spec, train), labels_of(spec, test)
    subsets = test["subset"].to_pylist()
    kind = pa.string() if task.label.kind == "generation" else pa.list_(pa.float64())
    columns: dict[str, Any] = {}
    found: dict[str, Measurement] = {}

    def measured(name: str, predictions: Sequence[Prediction], scores: NDArray[np.float64] | None = None) -> None:
        columns[name] = pa.array(predictions, kind)
        found[name] = measure(
            task,
            test_labels,
            predictions,
            scores=scores,
            groups=groups,
            seed=seed,
            resamples=resamples,
            parsed=False,
            subsets=subsets,
        )

    for name, value in _constants(task, labels).items():
        if name in chosen:
            measured(name, [value] * test.num_rows)
    told = _fitted(spec, train, test, dev, chosen, seed) if len(set(labels)) > 1 else {}
    target = target_of(task)
    for name, item in told.items():
        assert target is not None
        measured(name, target.decode(item.outputs, item.threshold), target.scores(item.outputs))
    return Baselines(
        spec.name,
        {name: found[name] for name in BASELINES if name in found},
        train_rows=train.num_rows,
        removed_rows=int((~kept).sum()),
        regularisation={name: item.regularisation for name, item in told.items() if item.regularisation},
        seconds=time.monotonic() - started,
        notes=() if len(set(labels)) > 1 else ("all training labels are the same: nothing was fitted",),
        predictions=pa.table({"id": test["id"], **columns}),
    )


def run_baselines(
    names: Sequence[str],
    *,
    split: Split = "test",
    subsets: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 42,
    resamples: int = 1000,
    chosen: Sequence[Baseline] = CHEAP,
    groups: Mapping[str, NDArray[np.int64]] | None = None,
    cache: str | None = None,
    announce: Callable[[str], None] = logger.info,
) -> dict[str, Baselines]:
    """Baselines of several tasks side by side, one Ray task of one CPU each, on the connected cluster.

    Each reads its own data: fitted on the `train` split (of more than `TRAIN_ROWS` rows a draw), tuned on `dev` where
    one is declared and is not `split`, measured on the rows of `split` that an evaluation asks. A task that has no
    baseline, for want of training rows say, gets one without measurements, whose note says why.

    Args:
        groups: leakage groups of the rows of `split`, by data set.
        cache: folder that keeps what was found before, in `BASELINES_FILE` and `BASELINES_FOLDER`; they are made, and
            brought up to date task by task.
        announce: is told in a line of each task whose baselines are done.

    Raises:
        ResourceError: no cluster is connected, or a local one without a CPU.
    """
    import ray

    require_capacity("a baseline", cpus=1, where="baselines", fix="give the local Ray a CPU")
    file = join(cache, BASELINES_FILE) if cache else ""
    known = read_json(file) if cache and exists(file) else {}
    remote: Any = ray.remote(num_cpus=1)(_read_and_fit)
    calls, keys, found = {}, {}, {}
    for name in names:
        spec, own = dataset(name), (groups or {}).get(name)
        # Groups follow from the rows.
        settings = [split, subsets, limit, seed, resamples, sorted(chosen)]
        keys[name] = fingerprint([spec.model_dump(mode="json"), settings])
        record = known.get(name, {}).get(keys[name])
        predictions = read_predictions(cache, name, key=keys[name]) if cache and record else None
        if predictions is not None:
            found[name] = Baselines.from_json(record, predictions)
        else:
            calls[name] = remote.remote(spec, split, subsets, limit, seed, resamples, tuple(chosen), own)
    for place, (name, call) in enumerate(calls.items(), start=1):
        try:
            found[name] = ray.get(call)
            announce(f"  baselines of {name} ({place}/{len(calls)})")
        except ray.exceptions.RayError as error:
            # The answers are there, after hours maybe: what a baseline dies of must not cost them.
            cause = cause_of(error)
            logger.warning("no baselines of %s: %s", name, cause or error)
            why = cause.what if cause else str(error).strip().splitlines()[-1]
            found[name] = Baselines(name, {}, notes=(f"none, {why}",))
            continue
        if cache:
            # What the record speaks of stands before the record.
            found[name].write_predictions(cache, key=keys[name])
            known.setdefault(name, {})[keys[name]] = found[name].to_json()
            write_json(file, known)
    return {name: found[name] for name in names}


def _read_and_fit(
    spec: Dataset,
    split: Split,
    subsets: Sequence[str] | None,
    limit: int | None,
    seed: int,
    resamples: int,
    chosen: tuple[Baseline, ...],
    groups: NDArray[np.int64] | None,
) -> Baselines:
    dev = read_rows(spec, "dev").table if "dev" in spec.splits and split != "dev" else None
    train = read_rows(spec, "train", limit=TRAIN_ROWS, seed=seed, purpose="baseline").table
    test = read_rows(spec, split, subsets=subsets, limit=limit, seed=seed).table
    return baselines(spec, train, test, dev=dev, chosen=chosen, groups=groups, seed=seed, resamples=resamples)


def _fitted(
    spec: Dataset, train: pa.Table, test: pa.Table, dev: pa.Table | None, chosen: Sequence[Baseline], seed: int
) -> dict[str, Told]:
    task = spec.task
    assert task is not None
    target = target_of(task)
    if target is None:
        return {}
    labels: Any = labels_of(spec, train)
    parts = [part["sequences"].to_pylist() for part in (train, test, *([dev] if dev is not None else []))]
    dev_labels: Any = labels_of(spec, dev) if dev is not None else None

    def quality(held: Sequence[Value], told: Sequence[Value]) -> float:
        reached = measure(task, held, told, seed=0, resamples=1, parsed=False).value.value
        return reached if np.isfinite(reached) else -np.inf

    def fit_linear(features: list[Any]) -> Told:
        held_out = (features[2], dev_labels) if dev is not None else None
        return linear.fit(target, features[0], labels, features[1], quality, held_out=held_out, seed=seed)

    told = {}
    if "length" in chosen:
        edges = length_edges(parts[0])
        told["length"] = fit_linear([length_bins(part, edges) for part in parts])
    if "kmer" in chosen:
        counts = [log_counts(spec, part) for part in parts]
        scale = inverse_deviation(counts[0])
        told["kmer"] = fit_linear([part @ scale for part in counts])
    if "cnn" in chosen:
        held_out = (parts[2], dev_labels) if dev is not None else None
        told["cnn"] = cnn.fit(
            spec, target, parts[0], labels, parts[1], quality, held_out=held_out, seed=seed, seconds=CNN_SECONDS
        )
    return told


def _constants(task: Task, labels: Sequence[Value | str]) -> dict[str, Prediction]:
    """The constant answers that fit the task's label, told of the training labels."""
    if task.label.kind not in ("regression", "multi_regression"):
        return {"majority": Counter(labels).most_common(1)[0][0]}
    numbers = np.array(labels, dtype=np.float64)
    found: dict[str, Prediction] = {
        "mean": tuple(numbers.mean(axis=0).tolist()),
        "median": tuple(np.median(numbers, axis=0).tolist()),
    }
    if task.metric == "mixed":
        grid = np.unique(np.quantile(numbers[:, 0], np.arange(101) / 100))
        reached = [
            measure(task, labels, [(value,)] * len(labels), seed=0, resamples=1, parsed=False).value.value
            for value in grid.tolist()
        ]
        found["constant"] = (float(grid[int(np.nanargmax(reached))]),)
    return found


def _predictions_file(folder: str, name: str, key: str) -> str:
    return join(folder, BASELINES_FOLDER, f"{name}-{key[:16]}.parquet" if key else f"{name}.parquet")


def _unseen(train: pa.Table, test: pa.Table) -> NDArray[np.bool_]:
    seen = {tuple(sequences) for sequences in test["sequences"].to_pylist()}
    return np.array([tuple(sequences) not in seen for sequences in train["sequences"].to_pylist()], dtype=bool)
