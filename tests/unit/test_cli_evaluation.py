"""`polysome report`, `compare`, `grade` and `datasets export-harness` for people, for programs, and their errors."""

import json
from pathlib import Path

import pytest
from evaluated import right, write_evaluation

from polysome.cli import main
from polysome.operations.runs import start


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, share in (("good", 0.9), ("poor", 0.2)):
        write_evaluation(folder / name, right(share), tasks=["planted_promoter", "planted_thermostability"], limit=40)
    return folder


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_report_is_printed_and_written(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, markdown, audit = tmp_path / "report.html", tmp_path / "report.md", tmp_path / "audit.md"
    audit.write_text("2 rows in common")
    code, out, _ = told(
        capsys, "report", str(runs / "good"), str(runs / "poor"), "--html", str(page), "--markdown", str(markdown),
        "--audit", str(audit),
    )  # fmt: skip
    assert code == 0
    assert "Planted thermostability" in out
    assert "2 rows in common" in page.read_text()
    assert "## Protein" in markdown.read_text()


def test_a_run_is_found_by_its_id(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "report", "good", "--runs", str(runs), "--json")
    assert code == 0
    content = json.loads(out)
    assert content["evaluations"] == {"good": str(runs / "good")}
    (column, *_) = [item for item in content["tasks"][0]["columns"] if item["title"] == "good"]
    assert (column["reading"], column["n"]) == ("strict", 40)


def test_a_comparison_is_printed_and_told_as_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("compare", str(runs / "good"), str(runs / "poor"), "--resamples", "200")
    code, out, _ = told(capsys, *arguments)
    assert code == 0
    assert "Planted promoter" in out
    code, out, _ = told(capsys, *arguments, "--json")
    rows = json.loads(out)["rows"]
    assert [row["dataset"] for row in rows] == ["planted_promoter", "planted_thermostability"]
    assert rows[0]["first"] == "good"


def test_a_run_is_compared_with_its_baseline(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(
        capsys, "compare", "good", "--baseline", "majority", "--runs", str(runs), "--resamples", "200", "--json"
    )
    assert code == 0
    assert {(row["first"], row["second"]) for row in json.loads(out)["rows"]} == {("good", "majority")}


def test_tasks_are_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(
        capsys,
        "datasets",
        "export-harness",
        str(tmp_path),
        "--tasks",
        "planted_promoter,planted_binding",
        "--limit",
        "5",
    )
    assert code == 0
    assert "--tasks polysome_planted_promoter_text,polysome_planted_promoter_choice," in out
    assert len((tmp_path / "polysome_planted_binding.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report", "nowhere"), "there is no run 'nowhere'"),
        (("compare", "good", "--runs", "RUNS"), "1 evaluations named good"),
        (("compare", "good", "poor", "--runs", "RUNS", "--style", "loose"), "no style 'loose'"),
        (("compare", "good", "poor", "--runs", "RUNS", "--style", "scored"), "no scored values in good"),
        (("datasets", "export-harness", "RUNS", "--tasks", "core_promotor"), "did you mean 'core_promoter'"),
        (("datasets", "export-harness", "RUNS", "--tasks", "planted_promoter", "--split", "tets"), "no split 'tets'"),
        (("compare", "good", "--baseline", "best", "--runs", "RUNS"), "no baseline 'best'; there is majority"),
        (("grade", "good", "--runs", "RUNS"), "no grader is named"),
        (("grade", "good", "--runs", "RUNS", "--rule"), "no answer in free text"),
        (("report", "good", "--runs", "RUNS", "--html", "x.html", "--audit", "absent.md"), "cannot read the audit"),
    ],
)
def test_errors_name_what_is_wrong_and_exit_with_2(
    runs: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = told(capsys, *(argument.replace("RUNS", str(runs)) for argument in arguments))
    assert code == 2
    assert words in err
    assert "fix:" in err


def test_a_run_without_results_is_told_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), start(str(tmp_path), "evaluate", "cp", {}, run_id="cp"):
        raise KeyboardInterrupt
    code, _, err = told(capsys, "report", "cp", "--runs", str(tmp_path))
    assert code == 2
    assert "go on with the run, which is interrupted" in err
    assert "--run-id cp" in err
