"""An evaluation and a pipeline end with their page; where an evaluation's cannot be written, the results stay."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from evaluated import right, write_evaluation

from polysome.config import ResourceError
from polysome.evaluation import page, run
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.results import read_evaluation
from polysome.operations import jobs, runs
from polysome.operations.pipeline import _Pipeline
from polysome.operations.recipes import load_recipe
from polysome.operations.runs import read_run


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster, and answers by a rule."""

    def evaluate(config: EvaluationConfig, folder: str, **_: Any) -> Any:
        return write_evaluation(Path(folder), right(0.8), name=config.name, tasks=config.tasks)

    monkeypatch.setattr(jobs, "connect", lambda **_: nullcontext())
    monkeypatch.setattr(run, "evaluate", evaluate)


def test_the_page_is_written_and_its_path_is_said(
    answered: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluationConfig(name="e", model="fake:Yes.", tasks=["planted_promoter"])
    said: list[str] = []
    folder = tmp_path / "one"

    def full(*_: Any, **__: Any) -> None:
        raise ResourceError("no space is left", where=str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(page, "write_page", full)
        with pytest.raises(ResourceError, match="no space is left"):
            jobs.evaluate(config, str(tmp_path), run_id="one", announce=said.append)
    assert read_run(str(folder)).status == "failed"
    assert read_evaluation(str(folder)).tasks

    done = jobs.evaluate(config, str(tmp_path), run_id="one", announce=said.append)
    assert done.record.status == "finished"
    assert said == [f"report: {folder / 'report.html'}"]
    assert "Worst samples" in (folder / "report.html").read_text()


def test_the_page_of_a_pipeline_has_a_column_per_stage(tmp_path: Path) -> None:
    config = load_recipe(str(Path(__file__).parents[2] / "e2e" / "tiny_pipeline.yaml"), []).config
    for name in ("evaluate-stage1", "evaluate-stage2"):
        write_evaluation(tmp_path / name, right(0.8), name=name, tasks=["planted_promoter"])
    said: list[Any] = []
    with runs.start(str(tmp_path / "runs"), "pipeline", "tiny", config, run_id="tiny") as record:
        pipeline = _Pipeline(config, record, said.append)
        pipeline.evaluations = {f"after {name}": str(tmp_path / f"evaluate-{name}") for name in ("stage1", "stage2")}
        pipeline._report({})
    text = Path(record.folder, "report.html").read_text()
    assert said[-1] == f"report: {record.folder}/report.html"
    for column in ("majority", "after stage1, official", "after stage2, official"):
        assert column in text
