"""What a pipeline's report says of the steps in its folder: learning curves and leaks, as the steps wrote them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from polysome.data.audit_report import AUDIT, AuditReport, DatasetAudit, Overlap, SplitAudit
from polysome.evaluation.report import table
from polysome.operations import runs
from polysome.operations.pipeline_config import PipelineConfig
from polysome.operations.pipeline_report import markdown
from polysome.training.metrics import METRICS

CONFIG = PipelineConfig.model_validate(
    {
        "name": "p",
        "tokenizer": "tokens",
        "model": {"path": "model"},
        "stages": {
            "stage1": {
                "prepare": {"kind": "pretrain", "max_length": 64, "sources": [{"dataset": "planted_dna"}]},
                "train": {
                    "trainability": [{"match": ".", "mode": "full"}],
                    "optimizer": {"learning_rate": 0.1},
                    "epochs": 1,
                },
            }
        },
        "notes": ["A sentence of ours."],
    }
)


def told(folder: Path, steps: list[tuple[str, str, dict[str, object]]], metrics: Sequence[object] = ()) -> str:
    """The report of a pipeline whose steps (name, job, results) are finished, each with the same metrics."""
    run = runs.start(str(folder), "pipeline", "p", CONFIG, run_id="p")
    with run:
        for name, job, results in steps:
            with runs.start(run.folder, job, name, {}, run_id=name) as step:
                step.update(results=results)
                (Path(step.folder) / METRICS).write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return markdown(CONFIG, table({}, {}), run.record, run.folder)


PREPARED = {"documents": 10, "tokens": 90, "packing_efficiency": 0.9, "sources": []}
TRAINED = {
    "updates": 20,
    "tokens": 4000,
    "final_loss": 0.5,
    "trainable_parameters": 7,
    "total_parameters": 9,
    "optimizer": "adamw",
}


def test_dev_measurements_of_all_stages_are_one_learning_curve(tmp_path: Path) -> None:
    rows = [
        {"update": 5, "tokens": 1000, "loss": 1.25},
        {"update": 10, "tokens": 2000, "loss": 1.0, "dev": {"loss": 1.5, "tasks": {"cp": {"value": 0.25, "n": 300}}}},
        {"update": 20, "tokens": 4000, "loss": 0.5, "dev": {"loss": 1.4, "tasks": {"cp": {"value": None, "n": 300}}}},
    ]
    report = told(tmp_path, [("stage1", "train", TRAINED)], rows)
    assert "| stage | update | tokens | training loss | dev loss | cp |" in report
    assert "| stage1 | 10 | 2,000 | 1.0000 | 1.5000 | 25.0 |\n| stage1 | 20 | 4,000 | 0.5000 | 1.4000 | - |" in report
    assert "1,000" not in report
    assert "(n: cp 300)" in report
    assert "A sentence of ours." in report


def test_leaks_that_an_audit_found_stand_beside_the_results(tmp_path: Path) -> None:
    split = SplitAudit(
        split="test",
        records=40,
        rows=40,
        quarantined=0,
        reasons={},
        changed={},
        duplicates=0,
        duplicates_across_subsets=0,
        reverse_complement_duplicates=0,
        conflicting=0,
        conflicting_rows=0,
        classes={},
        quantiles={},
        lengths={},
        unusual_letters={},
    )
    overlap = Overlap(
        split="test", other="train", exact=3, exact_distinct=2, other_strand=1, near=9, exact_by_subset={"a": 3}
    )
    found = DatasetAudit(dataset="cp", version=1, splits=[split], overlaps=[overlap], corpora=[], near_method="own")
    data = tmp_path / "data"
    data.mkdir()
    (data / AUDIT).write_text(AuditReport(datasets=[found]).model_dump_json())
    report = told(tmp_path, [("prepare-stage1", "prepare", {**PREPARED, "data": str(data)})])
    assert "| cp | test | train | 3 of 40 | 2 | 1 | 9 | a 3 |" in report
    assert "## Learning curve" not in report


def test_steps_of_other_recipes_and_unfinished_ones_are_not_told(tmp_path: Path) -> None:
    """Recipes of experiments share a run folder, so that what they have in common is made once."""
    run = runs.start(str(tmp_path), "pipeline", "p", CONFIG, run_id="p")
    with run:
        for name, results in (("stage1", TRAINED), ("stage9", TRAINED)):
            with runs.start(run.folder, "train", name, {}, run_id=name) as step:
                step.update(results=results)
        with (
            pytest.raises(KeyboardInterrupt),
            runs.start(run.folder, "prepare", "prepare-stage1", {}, run_id="prepare-stage1"),
        ):
            raise KeyboardInterrupt
    report = markdown(CONFIG, table({}, {}), run.record, run.folder)
    assert "| stage1 |" in report
    assert "stage9" not in report
    assert "prepare-stage1" not in report


def test_without_audits_and_measurements_there_are_no_empty_sections(tmp_path: Path) -> None:
    report = told(tmp_path, [("stage1", "train", TRAINED)])
    assert "Leaks" not in report
    assert "Learning" not in report
    assert "| stage1 | 20 updates, 4,000 tokens, loss 0.5000; 7 of 9 parameters trained; adamw |" in report
