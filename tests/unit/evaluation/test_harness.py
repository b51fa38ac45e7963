"""What is exported for lm-evaluation-harness holds the evaluation's rows and questions, and measures as it does."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from evaluated import right, write_evaluation

from polysome.config import ConfigurationError
from polysome.data.render import answer
from polysome.evaluation.harness import INVALID, export_harness
from polysome.evaluation.measure import measure
from polysome.evaluation.parsers import Prediction
from polysome.evaluation.samples import SAMPLES_FILE
from polysome.specs import METRICS, Dataset, Task, dataset

TASKS = ["planted_promoter", "planted_ncrna_family", "planted_thermostability", "planted_binding"]


class Loader(yaml.SafeLoader):
    """Reads the harness's tag for functions."""


Loader.add_constructor("!function", lambda loader, node: SimpleNamespace(function=loader.construct_scalar(node)))


def read_task(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.load(path.read_text(), Loader=Loader)
    return content


def functions(folder: Path) -> ModuleType:
    """The exported functions, as the harness imports them."""
    spec = importlib.util.spec_from_file_location("polysome_functions", folder / "polysome_functions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    exported = export_harness(TASKS, str(folder), limit=20)
    kinds = [item.name.rpartition("_")[2] for item in exported]
    assert kinds == ["text", "choice", "text", "choice", "text", "text", "choice"]
    return folder


def documents(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"polysome_{name}.jsonl").read_text().splitlines()]


def filtered(task: dict[str, Any], said: str) -> str:
    """An answer after the filters of a task, as the harness applies them."""
    for step in task["filter_list"][0]["filter"]:
        if step["function"] == "regex":
            found = re.findall(step["regex_pattern"], said)
            said = found[0].strip() if found else step["fallback"]
        elif step["function"] == "lowercase":
            said = said.lower()
        elif step["function"] == "map":
            said = step["mapping_dict"].get(said, step["default_value"])
        else:
            assert step == {"function": "take_first"}
    return said


def test_rows_and_questions_are_those_of_an_evaluation(folder: Path, tmp_path: Path) -> None:
    write_evaluation(tmp_path, right(1.0), tasks=TASKS, limit=20)
    asked = {}
    for line in (tmp_path / SAMPLES_FILE).read_text().splitlines():
        sample = json.loads(line)
        if sample["split"] == "test":  # dev rows are asked for the calibration alone
            asked[sample["id"]] = (sample["input"], sample["label"])
    exported = {item["id"]: (item["question"], item["label"]) for name in TASKS for item in documents(folder, name)}
    assert exported == asked


def test_a_choice_task_has_a_wording_per_class_and_names_the_label(folder: Path) -> None:
    for name in TASKS:
        path = folder / f"polysome_{name}_choice.yaml"
        spec = dataset(name)
        assert spec.task is not None
        assert path.exists() == (spec.task.label.kind in ("binary", "multiclass"))
        if path.exists():
            task = read_task(path)
            assert task["output_type"] == "multiple_choice"
            for item in documents(folder, name):
                assert task["doc_to_choice"][item["choice"]] == answer(spec, tuple(item["label"]))


def test_a_text_task_carries_version_prompt_licence_and_greedy_decoding(folder: Path) -> None:
    task = read_task(folder / "polysome_planted_promoter_text.yaml")
    assert task["output_type"] == "generate_until"
    assert task["generation_kwargs"]["do_sample"] is False
    assert task["repeats"] == 1
    assert task["metadata"]["version"] == 1
    assert task["metadata"]["licence"].startswith("CC0")
    assert task["description"].startswith("You are a knowledgeable and helpful biology assistant.")
    assert task["process_results"].function == "polysome_functions.process_mcc"


@pytest.mark.parametrize("name", TASKS)
def test_every_answer_wording_is_read_back_as_its_label(folder: Path, name: str) -> None:
    task, module = read_task(folder / f"polysome_{name}_text.yaml"), functions(folder)
    spec = dataset(name)
    assert spec.task is not None
    process = getattr(module, task["process_results"].function.partition(".")[2])
    for item in documents(folder, name):
        label = tuple(item["label"])
        for template in range(len(spec.task.templates.answers[spec.task.label.pool(label)])):
            said = filtered(task, answer(spec, label, template))
            metric, told, _ = process(item, [said])[spec.task.metric]
            assert told == metric, answer(spec, label, template)
        assert process(item, [filtered(task, "I cannot say.")])["parse_rate"] is False


def made_up(spec: Dataset, generator: np.random.Generator) -> tuple[list[Any], list[Prediction], list[str]]:
    """Labels, predictions and the texts that say them, some of them nothing."""
    assert spec.task is not None
    label: Any = spec.task.label
    labels, predictions, texts = [], [], []
    for row in range(60):
        pair: list[Any] = []
        for _ in range(2):
            if label.kind == "multilabel":
                size = generator.integers(0 if label.none else 1, 4)
                pair.append(tuple(sorted(float(x) for x in generator.choice(len(label.classes), size, replace=False))))
            elif label.kind in ("binary", "multiclass"):
                pair.append((float(generator.integers(0, len(getattr(label, "classes", "ab")))),))
            else:
                pair.append(tuple(np.round(generator.normal(40, 20, len(getattr(label, "outputs", "a"))), 2).tolist()))
        if generator.random() < 0.4:
            pair[1] = pair[0]
        lost = row % 9 == 4
        labels.append(pair[0])
        predictions.append(None if lost else pair[1])
        said = ", ".join(map(str, pair[1])) if "regression" in label.kind else label.encode(pair[1])
        texts.append(INVALID if lost else said)
    return labels, predictions, texts


MEASURED = {
    "core_promoter": "mcc",
    "ncrna_family": "accuracy",
    "stability": "spearman",
    "enhancer_activity": "pearson",
    "apa_isoform": "pearson_r2",
    "toehold_switches": "mean_pearson_r2",
    "sirna_efficacy": "mixed",
    "rna_modification": "auc",
    "ec_number": "fmax",
}


@pytest.mark.parametrize(("name", "metric"), MEASURED.items())
def test_exported_metrics_give_the_platforms_values(name: str, metric: str, tmp_path: Path) -> None:
    from polysome.evaluation.harness import _columns

    spec = dataset(name)
    task: Task | None = spec.task
    assert task is not None
    assert task.metric == metric
    labels, predictions, texts = made_up(spec, np.random.default_rng(5))
    (tmp_path / "polysome_classes.json").write_text(json.dumps({name: _columns(spec)}))
    source = Path(sys.modules["polysome.evaluation.harness"].__file__ or "").with_name("harness_functions.py")
    (tmp_path / "polysome_functions.py").write_text(source.read_text())
    module = functions(tmp_path)
    process = getattr(module, f"process_{metric}")
    items = [
        process({"label": list(label), "target": "", "dataset": name}, [said])[metric]
        for label, said in zip(labels, texts, strict=True)
    ]
    expected = measure(task, labels, predictions, seed=0, resamples=0).value.value
    assert getattr(module, metric)(items) == pytest.approx(expected, abs=1e-9)


def test_rouge_l_gives_the_platforms_value(tmp_path: Path) -> None:
    spec = dataset("mol_instructions_protein_function")
    assert spec.task is not None
    (tmp_path / "polysome_functions.py").write_text(
        Path(sys.modules["polysome.evaluation.harness"].__file__ or "").with_name("harness_functions.py").read_text()
    )
    module = functions(tmp_path)
    labels = ["binds zinc ions and DNA", "a kinase of the cell wall", "transports sugars"]
    told: list[Prediction] = ["binds DNA and zinc", None, "transporting of sugar"]
    items = [
        module.process_rouge_l({"target": label, "label": [], "dataset": spec.name}, [said or ""])["rouge_l"]
        for label, said in zip(labels, told, strict=True)
    ]
    expected = measure(spec.task, labels, told, seed=0, resamples=0).value.value
    assert module.rouge_l(items) == pytest.approx(expected, abs=1e-9)


def test_every_metric_of_a_task_can_be_exported() -> None:
    from polysome.evaluation import harness_functions

    for metric in {metric for metrics in METRICS.values() for metric in metrics}:
        assert callable(getattr(harness_functions, f"process_{metric}"))
        assert callable(getattr(harness_functions, metric))


def test_a_wording_that_is_not_there_and_a_corpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="answer wording 99"):
        export_harness(["planted_promoter"], str(tmp_path), wording=99)
    with pytest.raises(ConfigurationError, match="has no task"):
        export_harness(["planted_dna"], str(tmp_path))


def test_the_harness_itself_reads_the_tasks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    monkeypatch.chdir(folder)
    manager = tasks.TaskManager(include_path=str(folder), include_defaults=False)
    for path in sorted(folder.glob("*.yaml")):
        (task,) = manager.load_task_or_group(path.stem).values()
        assert len(task.eval_docs) == 20
        assert task.VERSION == 1
