"""The report lays systems side by side and says what a reader must know about each number."""

import io

import numpy as np
from rich.console import Console

from polysome.evaluation.baselines import Baselines
from polysome.evaluation.measure import measure
from polysome.evaluation.report import Published, table
from polysome.evaluation.run import Evaluation, TaskResult
from polysome.specs import dataset

NAME = "planted_promoter"


def evaluation(told: list[float], **settings: object) -> Evaluation:
    task = dataset(NAME).task
    assert task is not None
    labels = np.array([1.0, 0.0] * (len(told) // 2))
    measurement = measure(task, labels, np.array(told), seed=1, subsets=["a", "b", "b", "a"])
    result = TaskResult(NAME, task.title, measurement, 1, (("the prompt has 99 tokens", 1),), "f")
    return Evaluation("e", "m", "f", (result,), 4, 0, 1.0, settings)


def report():
    good, poor = evaluation([1, 0, 1, 0]), evaluation([float("nan"), 0, 1, 1], limit=4)
    trivial = Baselines(
        NAME, *[poor.measurements[NAME]] * 2, train_rows=90, removed_rows=3, regularisation=1, seconds=1
    )
    return table(
        {"with stage 1": good, "without": poor}, {NAME: trivial}, published=[Published(NAME, "paper", 44.54, "Table 2")]
    )


def test_markdown_holds_values_intervals_parse_rates_subsets_and_notes() -> None:
    text = report().markdown()
    header, _, row, *rest = text.splitlines()
    assert header == "| task | metric | n | majority | k-mer | with stage 1 | without |"
    assert "| mcc | 4 |" in row
    assert "| 100.00 [0.00, 100.00] p 100.0 % |" in row
    assert "p 75.0 %" in row
    assert any(line.startswith("| … a | mcc | 2 |") for line in rest)
    assert "| paper | 44.54 | Table 2 |" in text
    assert "3 whose sequences stand in the test were left out" in text
    assert "without: only the first 4 rows" in text
    assert "1 rows could not be asked (the prompt has 99 tokens)" in text


def test_the_terminal_table_shows_the_same_columns() -> None:
    screen = io.StringIO()
    Console(file=screen, width=200).print(report().rich("Results"))
    for word in ("majority", "k-mer", "with stage 1", "without", "100.00"):
        assert word in screen.getvalue()
