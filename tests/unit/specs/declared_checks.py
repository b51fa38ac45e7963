"""What every declared data set must satisfy: distinct wordings, answers that parse back, shares that divide."""

import itertools
import os
import re
from collections import Counter
from dataclasses import dataclass

from polysome.data.examples import FileReport, read_file
from polysome.evaluation.parsers import numbers, parse_binary, parse_class
from polysome.specs import Dataset, MultiRegressionLabel, SourceFile, Split, Task, dataset
from polysome.storage import resolve

WORDINGS = 10
"""Question templates of a task, and answer templates of a pool, at least (A-50)."""

_UNEVEN = 0.1
"""How far a part's size may be from its share: whole leakage groups are dealt out."""


@dataclass(frozen=True)
class Declared:
    """One file of one split of a declared data set."""

    spec: str
    split: Split
    number: int

    @property
    def file(self) -> SourceFile:
        return dataset(self.spec).splits[self.split][self.number]

    @property
    def in_mirror(self) -> bool:
        return os.path.exists(resolve(self.file.uri, self.file.mirror_path))

    def __str__(self) -> str:
        return f"{self.spec}-{self.split}-{self.file.subset or self.number}"


def declared_files(names: list[str]) -> list[Declared]:
    """Every file of the data sets, each once however many splits it is divided over."""
    found: dict[str, Declared] = {}
    for name in names:
        for split, files in dataset(name).splits.items():
            for number, file in enumerate(files):
                content = file.model_dump_json(exclude={"share"})
                found.setdefault(f"{name} {content}", Declared(name, split, number))
    return list(found.values())


def subtask_rows(names: list[str], split: Split = "train") -> Counter[str]:
    """Rows per sub-task, named as in the authors' `task` field: `<task>-<subset>` (A-6)."""
    rows: Counter[str] = Counter()
    for name in names:
        spec = dataset(name)
        assert spec.task is not None
        task = {"tf_h": "tf-h", "tf_m": "tf-m"}.get(spec.task.name, spec.task.name)
        for file in spec.splits[split]:
            assert file.rows is not None
            rows[f"{task}-{file.subset}" if file.subset else task] += file.rows
    return rows


def check_wordings(spec: Dataset) -> None:
    """Enough wordings, no two alike, the sequence first, the sentence whole (A-50, A-51)."""
    task = _task(spec)
    pools = {"questions": task.templates.questions, **task.templates.answers}
    if task.templates.conditioned:
        pools["conditioned"] = task.templates.conditioned
    for pool, wordings in pools.items():
        assert len(wordings) >= WORDINGS, pool
        alike = Counter(re.sub(r"\W+", " ", re.sub(r"{\w+}", "X", wording)).strip().lower() for wording in wordings)
        assert alike.most_common(1)[0][1] == 1, alike.most_common(1)
        for wording in wordings:
            assert wording[-1] in ".?}", wording
            assert not re.search(r"\s\s|\s[,.;?]|[ ]$", wording), wording
    if len(spec.molecules) == 1:
        for wording in [*task.templates.questions, *task.templates.conditioned]:
            assert wording.startswith("{" + spec.molecules[0].role + "} "), wording


def check_answers(task: Task) -> None:
    """Every answer wording, read by the strict parser without knowing it, gives the label it was told from (A-53)."""
    label = task.label
    for pool, wordings in task.templates.answers.items():
        for wording in wordings:
            if label.kind == "binary":
                assert parse_binary(wording) == (1.0 if pool == "positive" else 0.0), wording
                # The authors' rule takes any "no" for a negation, as in "adenosine", unless there is a "yes" (A-101).
                assert pool == "negative" or "yes" in wording.lower() or "no" not in wording.lower(), wording
            elif label.kind == "multiclass":
                for index, name in enumerate(label.classes):
                    assert parse_class(wording.format(label=name), label.classes) == index, wording
            elif label.kind == "multilabel":
                assert parse_class(wording.format(label="X"), label.classes) is None, wording
            elif isinstance(label, MultiRegressionLabel):
                value = tuple(0.25 + 0.5 * place for place in range(len(label.outputs)))
                assert tuple(numbers(wording.format(**label.encode_each(value)))) == value, wording
            else:
                for number in (0.43, -1.25):
                    assert numbers(wording.format(label=label.encode((number,)))) == [number], wording


def check_shares(spec: Dataset) -> None:
    """A divided file is divided whole and without overlap, and stands in every split beside the same divided files, so
    that its leakage groups are the same wherever a part is taken (AMB-20)."""
    divided = {
        split: [file.model_copy(update={"share": None}) for file in files if file.share]
        for split, files in spec.splits.items()
    }
    for files in divided.values():
        for others in divided.values():
            assert files == others or not any(file in others for file in files)
    shares: dict[str, list[tuple[float, float]]] = {}
    for files in spec.splits.values():
        for file in files:
            if file.share:
                shares.setdefault(f"{file.uri} {file.subset}", []).append(file.share)
    for parts in shares.values():
        parts.sort()
        assert parts[0][0] == 0.0
        assert parts[-1][1] == 1.0
        assert all(before[1] == after[0] for before, after in itertools.pairwise(parts))


def check_parts(spec: Dataset) -> None:
    """The parts of every divided file are disjoint, together the whole, and about as large as declared (AMB-20)."""
    numbers: dict[tuple[str, str | None], list[str]] = {}
    sizes: dict[tuple[str, str | None], list[tuple[int, float]]] = {}
    for split, files in spec.splits.items():
        for file in files:
            if file.share:
                batches = read_file(spec, split, file, FileReport(file.uri))
                found = [key.rpartition("/")[2] for batch in batches for key in batch.examples["id"].to_pylist()]
                numbers.setdefault((file.uri, file.subset), []).extend(found)
                sizes.setdefault((file.uri, file.subset), []).append((len(found), file.share[1] - file.share[0]))
    for key, whole in numbers.items():
        assert len(set(whole)) == len(whole)
        for size, share in sizes[key]:
            assert size > 0
            assert abs(size / len(whole) - share) < _UNEVEN, (key, size, share)


def _task(spec: Dataset) -> Task:
    assert spec.task is not None
    return spec.task
