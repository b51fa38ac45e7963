"""The report lays systems side by side by omics and says what a reader must know about each number."""

import io
from dataclasses import replace

import pytest
from evaluated import right, write_evaluation
from rich.console import Console

from polysome.evaluation.report import Published, Report, table
from polysome.evaluation.results import Evaluation


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Evaluation]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "good": write_evaluation(folder / "good", right(0.9), modes=["text", "scores"]),
        "poor": write_evaluation(folder / "poor", right(0.3)),
    }


@pytest.fixture
def report(evaluations: dict[str, Evaluation]) -> Report:
    return table(evaluations, published=[Published("planted_promoter", "elsewhere", 44.54, "Table 2")])


def row_of(text: str, title: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {title} |") and "[" in line][:1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_omics_has_a_table_with_baselines_first_and_readings_apart(report: Report) -> None:
    text = report.markdown()
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[:4] == ["## DNA", "## RNA", "## Protein", "## Multi-molecule"]
    header = text.splitlines()[2]
    assert header == ("| task | metric | n | majority | good | good, official | good, scored | poor | poor, official |")


def test_a_cell_holds_value_interval_and_parse_rate(report: Report, evaluations: dict[str, Evaluation]) -> None:
    cells = row_of(report.markdown(), "Planted ncRNA family")
    value, low, high = evaluations["good"].measurements["planted_ncrna_family"].value.scaled()
    assert cells[1:3] == ["accuracy", "80"]
    assert cells[4] == f"{value:.2f} [{low:.2f}, {high:.2f}] p 100.0 %"
    assert "p " not in cells[6], "scores are not parsed"


def test_official_values_stand_in_no_strict_column(report: Report) -> None:
    for column in report.columns:
        styles = {measurement.style for measurement in column.measurements.values()}
        assert styles <= ({"strict"} if column.reading == "baseline" else {column.reading})


def test_the_best_of_a_row_is_a_baseline_or_strict_value(report: Report, evaluations: dict[str, Evaluation]) -> None:
    assert report.best("planted_promoter") is evaluations["good"].measurements["planted_promoter"]


def test_further_metrics_are_told_errors_in_the_labels_unit_and_scores_as_scores(
    report: Report, evaluations: dict[str, Evaluation]
) -> None:
    (line,) = [row for row in report.markdown().splitlines() if row.startswith("| Planted thermostability | mae |")]
    result = evaluations["good"].tasks[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert float(cells[2]) == pytest.approx(result.styles["strict"].extras["mae"].value, rel=1e-3), "degrees, not x100"
    assert result.scored is not None
    assert float(cells[4]) == pytest.approx(result.scored.extras["mae_scored"].value, rel=1e-3)


def test_a_remark_on_all_is_told_once(report: Report) -> None:
    told = [note for note in report.notes if "Planted promoter: leakage groups" in note]
    assert len(told) == 1


def test_notes_tell_of_limits_and_of_training_rows_left_out(report: Report) -> None:
    text = report.markdown()
    assert "- good: at most 80 rows of each task" in text
    assert "3 whose sequences stand in the evaluated rows were left out" in text
    assert "| Planted promoter | elsewhere | 44.54 | Table 2 |" in text


def test_published_numbers_have_columns_of_their_own_with_caveats(evaluations: dict[str, Evaluation]) -> None:
    base = evaluations["poor"]
    result = replace(base.tasks[0], dataset="core_promoter", title="Core promoter detection")
    text = table({"mine": replace(base, tasks=(result,))}).markdown()
    header, _, row = text.splitlines()[2:5]
    assert header.endswith("| ChatMultiOmics, published | GPT-4o, published | literature, published |")
    assert row.endswith("| 44.54 | -0.84 | 71.07 (DNABERT2) |")
    assert "hold every sequence twice" in text


def test_the_terminal_table_shows_the_same_columns(report: Report) -> None:
    screen = io.StringIO()
    Console(file=screen, width=260).print(report.rich("Results"))
    for word in ("majority", "good, official", "good, scored", "poor", "Planted RNA-protein binding"):
        assert word in screen.getvalue()
