"""Comparisons are paired, corrected, and refused where the rows, the task or the reading differ."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from evaluated import right, write_evaluation
from rich.console import Console

from polysome.config import ConfigurationError, DataError
from polysome.evaluation.compare import Comparison, Contestant, compare, read_baseline, read_contestant
from polysome.evaluation.samples import SAMPLES_FILE
from polysome.evaluation.statistics import holm


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_evaluation(folder / "good", right(0.9), seed=1)
    write_evaluation(folder / "alike", right(0.9), seed=2)
    write_evaluation(folder / "poor", right(0.2), seed=3)
    write_evaluation(folder / "scores", right(0.9), modes=["scores"])
    return folder


def contestants(runs: Path, *names: str, style: str = "strict") -> list[Contestant]:
    return [read_contestant(str(runs / name), name, style) for name in names]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def comparison(runs: Path) -> Comparison:
    return compare(contestants(runs, "good", "alike", "poor"), resamples=500)


def test_every_pair_is_compared_on_every_task(comparison: Comparison) -> None:
    assert len(comparison.rows) == 3 * 4
    for row in comparison.rows:
        assert math.isclose(row.difference.value, row.first_value - row.second_value, abs_tol=1e-12)
        assert row.difference.low <= row.difference.value <= row.difference.high
        assert row.difference.minimum_detectable > 0


def test_p_values_are_corrected_over_all_rows_together(comparison: Comparison) -> None:
    assert [row.p_holm for row in comparison.rows] == holm([row.difference.p for row in comparison.rows])
    by_pair = {(row.first, row.second, row.dataset): row for row in comparison.rows}
    assert by_pair["good", "poor", "planted_promoter"].significant
    assert not by_pair["good", "alike", "planted_promoter"].significant


def test_a_system_differs_from_itself_by_nothing(runs: Path) -> None:
    (one,) = contestants(runs, "good")
    for row in compare([one, replace(one, name="twin")], resamples=100).rows:
        assert (row.difference.value, row.difference.low, row.difference.high, row.p_holm) == (0, 0, 0, 1)


def test_scores_are_compared_as_scores(runs: Path) -> None:
    (one,) = contestants(runs, "scores", style="scored")
    assert len(compare([one, replace(one, name="twin")], resamples=100).rows) == 4


def test_official_against_strict_is_refused(runs: Path) -> None:
    good, poor = contestants(runs, "good", "poor")
    with pytest.raises(ConfigurationError, match="strict parser, poor by the official"):
        compare([good, replace(poor, style="official")])


def test_a_style_that_one_has_not_is_refused(runs: Path) -> None:
    with pytest.raises(ConfigurationError, match="no strict values in scores"):
        compare(contestants(runs, "good", "scores"))


@pytest.mark.parametrize(("setting", "value"), [("split", "dev"), ("limit", 40)])
def test_other_rows_are_refused_by_name(runs: Path, tmp_path: Path, setting: str, value: object) -> None:
    write_evaluation(tmp_path, right(0.5), **{setting: value})
    other = read_contestant(str(tmp_path), "other")
    with pytest.raises(ConfigurationError, match=f"{setting} is .* in good and {value!r} in other"):
        compare([*contestants(runs, "good"), other])


def test_a_task_with_another_fingerprint_is_refused_by_name(runs: Path) -> None:
    good, poor = contestants(runs, "good", "poor")
    tasks = [*poor.evaluation.tasks]
    tasks[2] = replace(tasks[2], task_fingerprint="f" * 64)
    with pytest.raises(ConfigurationError, match="planted_thermostability is not the same task"):
        compare([good, replace(poor, evaluation=replace(poor.evaluation, tasks=tuple(tasks)))])


def test_tasks_that_one_alone_has_are_noted_and_none_in_common_is_refused(runs: Path, tmp_path: Path) -> None:
    good = contestants(runs, "good")
    write_evaluation(tmp_path / "some", right(0.5), tasks=["planted_promoter"])
    found = compare([*good, read_contestant(str(tmp_path / "some"), "some")], resamples=100)
    assert [row.dataset for row in found.rows] == ["planted_promoter"]
    assert any("Planted RNA-protein binding has answers of good alone" in note for note in found.notes)
    write_evaluation(tmp_path / "binding", right(0.5), tasks=["planted_binding"])
    with pytest.raises(ConfigurationError, match="no task in common"):
        compare([read_contestant(str(tmp_path / name), name) for name in ("some", "binding")])


def test_one_alone_or_one_twice_is_refused(runs: Path) -> None:
    (good,) = contestants(runs, "good")
    for given in ([good], [good, good]):
        with pytest.raises(ConfigurationError, match="evaluations named good"):
            compare(given)


def test_results_without_their_answers_are_refused(tmp_path: Path) -> None:
    write_evaluation(tmp_path, right(0.5), tasks=["planted_promoter"])
    (tmp_path / SAMPLES_FILE).unlink()
    with pytest.raises(DataError, match="answers behind the results of planted_promoter"):
        read_contestant(str(tmp_path), "x")


def test_a_baseline_is_compared_row_by_row(runs: Path) -> None:
    (good,) = contestants(runs, "good")
    majority = read_baseline(good, str(runs / "good"), "majority")
    rows = compare([good, majority], resamples=200).rows
    assert len(rows) == 4
    for row, result in zip(rows, good.evaluation.tasks, strict=True):
        assert (row.second, row.second_value) == ("majority", result.baselines["majority"].value.value)
        assert row.difference.minimum_detectable > 0
    assert rows[0].significant


def test_a_baseline_stands_beside_scores_too(runs: Path) -> None:
    (scores,) = contestants(runs, "scores", style="scored")
    majority = read_baseline(scores, str(runs / "scores"), "majority")
    row = compare([scores, majority], resamples=200).rows[0]
    assert row.second_value == scores.evaluation.tasks[0].baselines["majority"].value.value


def test_a_baseline_that_is_not_there_is_refused_by_name(runs: Path, tmp_path: Path) -> None:
    (good,) = contestants(runs, "good")
    with pytest.raises(ConfigurationError, match="no baseline 'kmer'; there is majority"):
        read_baseline(good, str(runs / "good"), "kmer")
    with pytest.raises(ConfigurationError, match="says no text"):
        read_baseline(replace(good, style="official"), str(runs / "good"), "majority")
    with pytest.raises(DataError, match="rows of planted_promoter was not kept"):
        read_baseline(good, str(tmp_path), "majority")
    write_evaluation(tmp_path, right(0.5), tasks=["planted_promoter"], limit=40)
    with pytest.raises(DataError, match="of other rows"):
        read_baseline(good, str(tmp_path), "majority")


def test_the_comparison_is_told_as_table_markdown_and_json(comparison: Comparison) -> None:
    screen = io.StringIO()
    Console(file=screen, width=200).print(comparison.rich())
    assert "Planted promoter" in screen.getvalue()
    lines = comparison.markdown().splitlines()
    assert len([line for line in lines if line.startswith("| Planted")]) == 12
    assert len(json.loads(json.dumps(comparison.to_json(), allow_nan=False))["rows"]) == 12
