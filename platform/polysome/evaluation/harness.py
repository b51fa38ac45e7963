"""Export to lm-evaluation-harness: declared tasks in; its YAML, documents and metric functions out (E-1).

The files stand by themselves: the harness reads them without Polysome. Every task is `polysome_<name>_text`, an answer
in words, filtered and measured (`generate_until`), and where the label is one class `polysome_<name>_choice` too, the
log-likelihood of one answer wording per class (`multiple_choice`).
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from polysome.config import ConfigurationError
from polysome.data.render import answer, choose_question_template, question
from polysome.evaluation.reading import read_rows
from polysome.specs import (
    BinaryLabel,
    Dataset,
    MulticlassLabel,
    MultilabelLabel,
    MultiRegressionLabel,
    Prompt,
    RegressionLabel,
    Split,
    dataset,
    system_prompt,
)
from polysome.storage import fingerprint, join, make_folder, open_atomic, write_json

PREFIX = "polysome_"
FUNCTIONS = "polysome_functions"
CLASSES = "polysome_classes.json"
INVALID = "[invalid]"
_NUMBER = r"(?<![\w.])(-?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?)"


@dataclass(frozen=True)
class ExportedTask:
    """One task of the harness."""

    name: str
    """Under which the harness knows it."""
    dataset: str
    output_type: str
    documents: int


def export_harness(
    names: Sequence[str],
    folder: str,
    *,
    split: Split = "test",
    limit: int | None = None,
    prompt: Prompt = "concise",
    seed: int = 42,
    wording: int = 0,
    max_new_tokens: int = 64,
) -> tuple[ExportedTask, ...]:
    """Write the tasks of data sets into a folder or to any fsspec URL.

    Rows and questions are those of an evaluation with the same seed and limit, untagged. The system prompt is the
    task's `description`, which the harness sends as the system message where it applies a chat template.

    Args:
        names: of data sets that declare a task.
        limit: only so many examples of each, drawn by the seed.
        wording: which answer template words a class for `multiple_choice`.
        max_new_tokens: of the `generate_until` tasks, which are greedy.

    Raises:
        ConfigurationError: a data set is not declared, has no task, or has fewer answer wordings.
        DataError: its files are missing or not what they should be, or the split is empty.
    """
    specs = [_task_spec(name) for name in names]
    choices = {spec.name: _choices(spec, wording) for spec in specs}
    make_folder(folder)
    exported: list[ExportedTask] = []
    for spec in specs:
        count = _write_documents(spec, join(folder, f"{PREFIX}{spec.name}.jsonl"), split, limit, seed)
        common = _common(spec, split, prompt)
        tasks = {"text": _text_task(spec, max_new_tokens)}
        if choices[spec.name]:
            tasks["choice"] = _choice_task(spec, choices[spec.name])
        for kind, content in tasks.items():
            name = f"{PREFIX}{spec.name}_{kind}"
            with open_atomic(join(folder, f"{name}.yaml"), "w") as handle:
                handle.write(_yaml({"task": name, **common, **content}))
            exported.append(ExportedTask(name, spec.name, content["output_type"], count))
    write_json(join(folder, CLASSES), {spec.name: _columns(spec) for spec in specs if _columns(spec)})
    with open_atomic(join(folder, f"{FUNCTIONS}.py"), "w") as handle:
        handle.write(Path(__file__).with_name("harness_functions.py").read_text(encoding="utf-8"))
    return tuple(exported)


class _Function(str):
    """A function of `polysome_functions.py`, which YAML names by the harness's own tag."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", f"{FUNCTIONS}.{name}"))


def _yaml(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _task_spec(name: str) -> Dataset:
    spec = dataset(name)
    if spec.task is None:
        raise ConfigurationError(
            f"data set {name!r} has no task", where="tasks to export", fix="name data sets that declare a task"
        )
    return spec


def _common(spec: Dataset, split: Split, prompt: Prompt) -> dict[str, Any]:
    return {
        "tag": ["polysome", f"polysome_{spec.omics}"],
        "dataset_path": "json",
        # Relative to the folder in which the harness is started.
        "dataset_kwargs": {"data_files": {split: f"{PREFIX}{spec.name}.jsonl"}},
        "test_split": split,
        "description": system_prompt(prompt) or "",
        "doc_to_text": "question",
        "num_fewshot": 0,
        "metadata": {
            "version": spec.version,
            "dataset": spec.name,
            "task_fingerprint": fingerprint(spec.model_dump(mode="json")),
            "prompt": prompt,
            "licence": spec.licence,
            "citation": spec.citation,
        },
    }


def _text_task(spec: Dataset, max_new_tokens: int) -> dict[str, Any]:
    assert spec.task is not None
    metric = spec.task.metric
    return {
        "output_type": "generate_until",
        "doc_to_target": "target",
        "generation_kwargs": {"until": ["\n\n"], "do_sample": False, "max_gen_toks": max_new_tokens},
        "repeats": 1,
        "filter_list": [{"name": "strict", "filter": [*_filters(spec), {"function": "take_first"}]}],
        "process_results": _Function(f"process_{metric}"),
        "metric_list": [
            {"metric": metric, "aggregation": _Function(metric), "higher_is_better": True},
            {"metric": "parse_rate", "aggregation": _Function("parse_rate"), "higher_is_better": True},
        ],
    }


def _choice_task(spec: Dataset, choices: list[str]) -> dict[str, Any]:
    assert spec.task is not None
    metrics = ["acc", "acc_norm", "mcc"]
    aggregations = {"mcc": "matthews_corrcoef"}
    return {
        "output_type": "multiple_choice",
        "doc_to_target": "choice",
        "doc_to_choice": choices,
        "metric_list": [
            {"metric": name, "aggregation": aggregations.get(name, "mean"), "higher_is_better": True}
            for name in metrics
        ],
    }


def _filters(spec: Dataset) -> list[dict[str, Any]]:
    """What makes of an answer the label's own spelling, or `[invalid]`; labels of several values stay as they are."""
    assert spec.task is not None
    label = spec.task.label
    if isinstance(label, BinaryLabel):
        pools = spec.task.templates.answers
        spellings = {text: told for told, pool in (("yes", "positive"), ("no", "negative")) for text in pools[pool]}
        return _named({**spellings, "yes": "yes", "no": "no"})
    if isinstance(label, MulticlassLabel):
        return _named({name: name for name in label.classes})
    if isinstance(label, RegressionLabel):
        return [{"function": "regex", "regex_pattern": _NUMBER, "fallback": INVALID}]
    return []


def _named(spellings: dict[str, str]) -> list[dict[str, Any]]:
    """The first spelling that stands in the answer, longest first, as what it means."""
    longest_first = sorted(spellings, key=len, reverse=True)
    pattern = "|".join(re.escape(text).replace(r"\ ", " ") for text in longest_first)
    return [
        {"function": "regex", "regex_pattern": rf"(?i)(?<![\w])({pattern})(?![\w])", "fallback": INVALID},
        {"function": "lowercase"},
        {
            "function": "map",
            "mapping_dict": {text.lower(): meaning for text, meaning in spellings.items()},
            "default_value": INVALID,
        },
    ]


def _choices(spec: Dataset, wording: int) -> list[str]:
    """One answer wording per class, in the order of the label's values; none where the label is no class."""
    assert spec.task is not None
    label = spec.task.label
    if not isinstance(label, BinaryLabel | MulticlassLabel):
        return []
    values = range(2 if isinstance(label, BinaryLabel) else len(label.classes))
    pools = spec.task.templates.answers
    shortest, name = min((len(pool), name) for name, pool in pools.items())
    if not 0 <= wording < shortest:
        raise ConfigurationError(
            f"answer wording {wording} of {spec.name!r} is not there: its pool {name!r} has {shortest}",
            where="--wording",
            fix=f"choose 0 to {shortest - 1}",
        )
    return [answer(spec, (float(value),), wording) for value in values]


def _columns(spec: Dataset) -> list[str]:
    """Names that an answer may hold; of a multilabel also how none of them is written."""
    assert spec.task is not None
    label = spec.task.label
    if isinstance(label, BinaryLabel):
        return ["no", "yes"]
    if isinstance(label, MulticlassLabel):
        return label.classes
    if isinstance(label, MultilabelLabel):
        return [*label.classes, *([label.none] if label.none else [])]
    return []


def _write_documents(spec: Dataset, url: str, split: Split, limit: int | None, seed: int) -> int:
    count = 0
    with open_atomic(url, "w") as handle:
        for document in _documents(spec, split, limit, seed):
            handle.write(json.dumps(document, ensure_ascii=False) + "\n")
            count += 1
    if not count:
        raise ConfigurationError(
            f"split {split!r} of {spec.name!r} has no example", where=spec.name, fix="choose another split"
        )
    return count


def _documents(spec: Dataset, split: Split, limit: int | None, seed: int) -> Iterator[dict[str, Any]]:
    assert spec.task is not None
    label = spec.task.label
    for example in read_rows(spec, split, limit=limit, seed=seed).table.to_pylist():
        value = tuple(example["label"] or ())
        template = choose_question_template(spec, example["id"], seed)
        document = {
            "id": example["id"],
            "dataset": spec.name,
            "subset": example["subset"] or "",
            "question": question(spec, example["sequences"], template=template),
            "target": _target(spec, example, value),
            "label": list(value),
        }
        if isinstance(label, BinaryLabel | MulticlassLabel):
            document["choice"] = int(value[0])
        yield document


def _target(spec: Dataset, example: dict[str, Any], value: tuple[float, ...]) -> str:
    assert spec.task is not None
    label = spec.task.label
    if label.kind == "generation":
        return str(example["answer"])
    if isinstance(label, MultiRegressionLabel):
        return ", ".join(label.encode_each(value).values())
    return label.encode(value)
