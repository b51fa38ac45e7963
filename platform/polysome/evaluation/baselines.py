"""Trivial baselines: what the majority class and a linear model on k-mer counts reach on the same rows (A-119)."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from polysome.config import DataError
from polysome.data.examples import read_examples
from polysome.data.ray_capacity import require_capacity
from polysome.data.ray_errors import cause_of
from polysome.evaluation.measure import Measurement, measure
from polysome.specs import Dataset, MoleculeType, Split, Task, dataset
from polysome.storage import write_json

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

logger = logging.getLogger(__name__)

_ALPHABETS: dict[MoleculeType, str] = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}
_LONGEST_KMER: dict[MoleculeType, int] = {"dna": 6, "rna": 6, "protein": 3}
LOGISTIC_C = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.1)
"""Inverse regularisation strengths to choose from."""
RIDGE_ALPHA = (10000.0, 1000.0, 100.0, 10.0, 1.0)
_FOLDS = 3


@dataclass(frozen=True)
class Baselines:
    """What trivial systems reach on a task's test rows."""

    dataset: str
    majority: Measurement
    """The most frequent class of the training rows; for a number their mean."""
    kmer: Measurement
    """Logistic or ridge regression on overlapping k-mer counts."""
    train_rows: int
    removed_rows: int
    """Training rows left out because all their sequences stand in a test row (AMB-3)."""
    regularisation: float
    """The chosen C or alpha."""
    seconds: float


def baselines(
    spec: Dataset,
    train: pa.Table,
    test: pa.Table,
    *,
    dev: pa.Table | None = None,
    seed: int = 42,
    resamples: int = 1000,
) -> Baselines:
    """Fit on `train`, measure on `test` by the task's own metric (tables of schema EXAMPLES).

    Features are counts of all k-mers (k = 1..6 for DNA and RNA, 1..3 for protein), log(1 + count), scaled to unit
    variance; those of two molecules stand side by side. Regularisation is chosen on `dev`, or where there is none
    by 3-fold cross-validation on `train`.

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
    removed = int((~kept).sum())
    train = train.filter(pa.array(kept))
    labels, test_labels = _labels(train), _labels(test)
    subsets = test["subset"].to_pylist()
    constant = _constant(task, labels)

    def measured(predictions: NDArray[np.float64]) -> Measurement:
        return measure(task, test_labels, predictions, seed=seed, resamples=resamples, parsed=False, subsets=subsets)

    majority = measured(np.full(test.num_rows, constant))
    if len(np.unique(labels)) < 2:
        return Baselines(spec.name, majority, majority, train.num_rows, removed, 0.0, time.monotonic() - started)
    parts = [train, test] if dev is None else [train, test, dev]
    features, test_features, *dev_features = (
        log_counts(spec, part.select(["sequences"]).column(0).to_pylist()) for part in parts
    )
    scale = _inverse_deviation(features)
    features, test_features, *dev_features = (part @ scale for part in (features, test_features, *dev_features))
    held_out = (
        [(features, labels, dev_features[0], _labels(dev))] if dev is not None else _folds(features, labels, seed)
    )
    regularisation = _choose(task, held_out)
    fitted = _model(task, regularisation).fit(features, labels)
    kmer = measured(np.asarray(fitted.predict(test_features), dtype=np.float64))
    return Baselines(spec.name, majority, kmer, train.num_rows, removed, regularisation, time.monotonic() - started)


def run_baselines(
    names: Sequence[str], *, split: Split = "test", limit: int | None = None, seed: int = 42, resamples: int = 1000
) -> dict[str, Baselines]:
    """Baselines of several tasks side by side, one Ray task of one CPU each, on the connected cluster.

    Each reads its own data: fitted on the whole `train` split, tuned on `dev` where one is declared (and is not
    `split`), measured on `split`, of which `limit` takes the first rows as an evaluation does.

    Raises:
        DataError: see `read_examples` and `baselines`.
        ResourceError: no cluster is connected, or a local one without a CPU.
    """
    import ray

    require_capacity("a baseline", cpus=1, where="baselines", fix="give the local Ray a CPU")
    specs = {name: dataset(name) for name in names}
    task: Any = ray.remote(num_cpus=1)(_read_and_fit)
    calls = {name: task.remote(spec, split, limit, seed, resamples) for name, spec in specs.items()}
    found = {}
    for name, call in calls.items():
        try:
            found[name] = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            cause = cause_of(error)
            if cause is not None:
                raise cause from None
            raise
    return found


def write_baselines(url: str, found: Mapping[str, Baselines]) -> None:
    """Write baselines as JSON, atomically, values scaled and raw as in `results.json`."""
    write_json(
        url,
        {
            name: {
                **{key: value for key, value in asdict(item).items() if key not in ("majority", "kmer")},
                "majority": item.majority.to_json(),
                "kmer": item.kmer.to_json(),
            }
            for name, item in found.items()
        },
    )


def log_counts(spec: Dataset, examples: list[list[str]]) -> "csr_matrix":
    """log(1 + k-mer count): float32 CSR [examples, k-mers of the first molecule + those of the second]."""
    from scipy.sparse import hstack

    blocks = [
        _kmer_counts([sequences[position] for sequences in examples], molecule.type)
        for position, molecule in enumerate(spec.molecules)
    ]
    counts = blocks[0] if len(blocks) == 1 else hstack(blocks, format="csr")
    counts.data = np.log1p(counts.data)
    return counts


def _kmer_counts(sequences: list[str], molecule: MoleculeType) -> "csr_matrix":
    """Counts of every k-mer of the plain alphabet; a k-mer with another letter (N, X) is left out."""
    from scipy.sparse import csr_matrix

    alphabet = _ALPHABETS[molecule]
    longest, letters = _LONGEST_KMER[molecule], len(alphabet)
    codes_of_bytes = np.full(256, -1, dtype=np.int32)
    for code, letter in enumerate(alphabet):
        codes_of_bytes[ord(letter)] = codes_of_bytes[ord(letter.lower())] = code
    lengths = np.array([len(sequence) for sequence in sequences])
    codes = codes_of_bytes[np.frombuffer("".join(sequences).encode("ascii", "replace"), dtype=np.uint8)]
    owners = np.repeat(np.arange(len(sequences), dtype=np.int64), lengths)
    width = sum(letters**k for k in range(1, longest + 1))
    # One k-mer per position and k: grown from the one of k - 1, void where it leaves the sequence or the alphabet.
    kmers, plain = np.zeros(len(codes), dtype=np.int64), np.ones(len(codes), dtype=bool)
    cells, offset = [], 0
    for k in range(1, longest + 1):
        last = np.roll(codes, 1 - k)
        kmers = kmers * letters + last
        plain = plain & (last >= 0) & (np.roll(owners, 1 - k) == owners)
        if k > 1:
            plain[len(plain) - k + 1 :] = False
        cells.append(owners[plain] * width + offset + kmers[plain])
        offset += letters**k
    unique, counts = np.unique(np.concatenate(cells), return_counts=True)
    rows, columns = np.divmod(unique, width)
    starts = np.searchsorted(rows, np.arange(len(sequences) + 1))
    return csr_matrix((counts.astype(np.float32), columns.astype(np.int32), starts), shape=(len(sequences), width))


def _inverse_deviation(features: "csr_matrix") -> Any:
    """Diagonal matrix that scales columns to unit variance without centring, so that they stay sparse."""
    from scipy.sparse import diags

    mean = np.asarray(features.mean(axis=0)).ravel()
    variance = np.asarray(features.multiply(features).mean(axis=0)).ravel() - mean**2
    deviation = np.sqrt(np.maximum(variance, 0))
    return diags(np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0).astype(np.float32))


def _model(task: Task, regularisation: float) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    if task.label.kind == "regression":
        return Ridge(alpha=regularisation, solver="sparse_cg", tol=1e-4)
    return LogisticRegression(C=regularisation, max_iter=200, tol=1e-3)


def _choose(task: Task, held_out: list[tuple[Any, NDArray[np.float64], Any, NDArray[np.float64]]]) -> float:
    """The regularisation with the best mean metric on the held-out parts; the strongest one of equals."""
    grid = RIDGE_ALPHA if task.label.kind == "regression" else LOGISTIC_C
    best, best_value = grid[0], -np.inf
    for candidate in grid:
        values = []
        for features, labels, held_features, held_labels in held_out:
            told = np.asarray(_model(task, candidate).fit(features, labels).predict(held_features), dtype=np.float64)
            values.append(measure(task, held_labels, told, seed=0, resamples=1).value.value)
        if np.mean(values) > best_value + 1e-9:
            best, best_value = candidate, float(np.mean(values))
    return best


def _folds(features: Any, labels: NDArray[np.float64], seed: int) -> list[tuple[Any, NDArray[np.float64], Any, Any]]:
    if len(labels) < _FOLDS:
        return [(features, labels, features, labels)]
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = [order[start::_FOLDS] for start in range(_FOLDS)]
    folds = []
    for held in parts:
        rest = np.setdiff1d(order, held)
        if len(np.unique(labels[rest])) > 1:
            folds.append((features[rest], labels[rest], features[held], labels[held]))
    return folds or [(features, labels, features, labels)]


def _read_and_fit(spec: Dataset, split: Split, limit: int | None, seed: int, resamples: int) -> Baselines:
    dev = read_examples(spec, "dev") if "dev" in spec.splits and split != "dev" else None
    train, test = read_examples(spec, "train"), read_examples(spec, split, limit=limit)
    return baselines(spec, train, test, dev=dev, seed=seed, resamples=resamples)


def _unseen(train: pa.Table, test: pa.Table) -> NDArray[np.bool_]:
    seen = {tuple(sequences) for sequences in test["sequences"].to_pylist()}
    return np.array([tuple(sequences) not in seen for sequences in train["sequences"].to_pylist()], dtype=bool)


def _labels(table: pa.Table) -> NDArray[np.float64]:
    """float64 [rows]: the one number of each label."""
    return table["label"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64)


def _constant(task: Task, labels: NDArray[np.float64]) -> float:
    if task.label.kind == "regression":
        return float(labels.mean())
    values, counts = np.unique(labels, return_counts=True)
    return float(values[counts.argmax()])
