"""Small declared data sets in a folder, one of each kind of label, for tests of evaluation."""

import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

CLASSES = ["Intron_gpI", "Intron_gpII", "tRNA"]
MARKS = ["m6A", "m5C", "Psi"]
KINDS: dict[str, tuple[dict[str, Any], str, dict[str, list[str]]]] = {
    "binary": ({"kind": "binary"}, "mcc", {"positive": ["Yes, it is.", "Yes."], "negative": ["No, it is not."]}),
    "multiclass": ({"kind": "multiclass", "classes": CLASSES}, "accuracy", {"any": ["{label}", "It is {label}."]}),
    "multilabel": (
        {"kind": "multilabel", "classes": MARKS, "none": "none"},
        "auc",
        {"any": ["The marks are {label}."]},
    ),
    "regression": ({"kind": "regression", "decimals": 1}, "mixed", {"any": ["It is {label}."]}),
    "multi_regression": (
        {"kind": "multi_regression", "outputs": ["up", "down"], "decimals": 1},
        "mean_pearson_r2",
        {"any": ["up {label_up}, down {label_down}."]},
    ),
    "generation": ({"kind": "generation"}, "rouge_l", {}),
}

Row = tuple[str, str]


def labelled(kind: str, sequence: str) -> str:
    """A label that follows from the sequence's composition."""
    share = sequence.count("A") / len(sequence)
    if kind == "binary":
        return str(int(share > 0.3))
    if kind == "multiclass":
        return CLASSES[min(2, int(share * 6))]
    if kind == "multilabel":
        return ",".join(mark for mark, base in zip(MARKS, "ACG", strict=True) if sequence.count(base) > 9) or "none"
    if kind == "regression":
        return f"{100 * share:.1f}"
    if kind == "multi_regression":
        return f"{10 * share:.1f};{-5 * share:.1f}"
    return "binds a metal" if share > 0.3 else "cuts a bond"


def rows_of(kind: str, count: int, seed: int) -> list[Row]:
    """Rows with labels that follow from the sequences."""
    draw = random.Random(seed)
    sequences = ["".join(draw.choices("ACGT", k=draw.randint(25, 40))) for _ in range(count)]
    return [(sequence, labelled(kind, sequence)) for sequence in sequences]


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Declares a data set of a kind with rows by split, and returns its name."""
    folder = tmp_path / "specs"
    folder.mkdir()
    monkeypatch.setenv("POLYSOME_DATASETS", str(folder))

    def declare(kind: str, name: str = "", /, **splits: Sequence[Row]) -> str:
        name = name or f"tiny_{kind}"
        label, metric, answers = KINDS[kind]
        splits = splits or {
            split: rows_of(kind, count, seed)
            for seed, (split, count) in enumerate({"train": 120, "dev": 40, "test": 48}.items())
        }
        for split, rows in splits.items():
            with open(folder / f"{name}.{split}.csv", "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["sequence", "label"])
                writer.writerows(rows)
        spec = {
            "name": name,
            "title": f"Tiny {kind}",
            "homepage": "https://example.org",
            "licence": "CC0-1.0",
            "citation": "made for a test",
            "format": "csv",
            "molecules": [{"type": "dna"}],
            "splits": {split: [{"uri": str(folder / f"{name}.{split}.csv")}] for split in splits},
            "maximum_quarantined": 0.5,
            "task": {
                "name": name,
                "title": f"Tiny {kind}",
                "label": label,
                "metric": metric,
                "tag": f"[Test: {kind}]",
                "hint": "Return yes or no.",
                "templates": {"questions": ["{sequence} What is it?", "{sequence} And this?"], "answers": answers},
            },
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec))
        return name

    return declare
