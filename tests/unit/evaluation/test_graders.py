"""Graders grade as they say, agreement is Cohen's kappa, and `polysome grade` brings both together."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from evaluated import write_evaluation
from sklearn.metrics import cohen_kappa_score

from polysome.cli import main
from polysome.config import ConfigurationError, DataError
from polysome.evaluation.agreement import grade, resampled_kappa
from polysome.evaluation.graders import (
    Grade,
    HumanGrader,
    Item,
    JudgeGrader,
    RuleGrader,
    named_facts,
    read_human,
)
from polysome.evaluation.questions import Question
from polysome.inference.fake import FakeEngine


def items(count: int, answer: str = "binds ATP") -> list[Item]:
    return [Item(f"key{row}", "planted_promoter", row // 2, "What?", "Binds ATP.", answer) for row in range(count)]


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("ATP + H2O = ADP (GO:0005524).", "It turns atp and H2O into ADP, see GO:0005524", 1),
        ("ATP + H2O = ADP (GO:0005524).", "It turns ATP and H2O into ADP, see GO:0005525", 0),
        ("EC 2.7.11.1", "EC 2.7.11.10", 0),
        ("It binds a metal.", "It binds a metal.", None),
    ],
)
def test_the_rule_looks_for_identifiers_and_numbers(reference: str, answer: str, expected: int | None) -> None:
    assert named_facts(reference, answer).value == expected


def test_any_rule_will_do_and_an_empty_answer_is_0() -> None:
    grader = RuleGrader(lambda reference, answer: Grade(int(answer in reference)), "contained")
    found = grader.grade([*items(1, "Binds"), *items(1, "cuts"), *items(1, " ")])
    assert [one and one.value for one in found] == [1, 0, 0]


@pytest.mark.parametrize(
    ("said", "expected"),
    [("1", 1), ("The facts are there.\n\nGrade: 0.", 0), ("0 of 10 facts; so 1", 1), ("Yes", None)],
)
def test_a_judge_is_read(said: str, expected: int | None) -> None:
    (found,) = JudgeGrader(FakeEngine(said)).grade(items(1))
    assert found is not None
    assert (found.value, found.why) == (expected, said)


def test_a_judge_sees_question_reference_and_answer_and_one_that_it_refuses_is_not_graded() -> None:
    engine = FakeEngine({"Question:\nWhat?\n\nReference:\nBinds ATP.\n\nAnswer:\nbinds ATP": "1"})
    other, empty = (
        Item(key, "planted_promoter", 9, "Why?", "So.", answer) for key, answer in (("a", "why"), ("b", ""))
    )
    found = JudgeGrader(engine).grade([*items(1), other, empty])
    assert [one and one.value for one in found] == [1, None, 0]
    assert found[1] is not None
    assert "no answer is given" in found[1].why


def test_a_judge_tells_how_far_it_is() -> None:
    told: list[str] = []
    JudgeGrader(FakeEngine("1"), announce=told.append).grade(items(130))
    assert [line.split()[0] for line in told] == ["64/130", "128/130", "130/130"]


def human(name: str, grades: dict[int, int]) -> HumanGrader:
    return HumanGrader(name, {f"key{row}": value for row, value in grades.items()})


def test_kappa_is_that_of_the_answers_that_both_graded() -> None:
    """20 both 1, 5 and 10 apart, 15 both 0: observed 0.7, expected 0.5, kappa 0.4."""
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    graders = [
        human("first", dict(enumerate(first))),
        human("second", {**dict(enumerate(second)), 50: 1}),
        human("third", {row: 1 for row in range(10)}),
    ]
    found = grade(items(60), graders, resamples=300)
    one, other, constant = found.agreements
    assert (one.first, one.second, one.n) == ("first", "second", 50)
    assert one.equal == pytest.approx(0.7)
    assert one.kappa == pytest.approx(0.4)
    assert one.low < 0.4 < one.high
    assert other.n == 10
    assert math.isnan(other.kappa), "both gave one and the same grade alone"
    assert (constant.n, found.graded[0].truthful, found.graded[1].n) == (10, 25, 51)
    json.dumps(found.to_json(), allow_nan=False)


def test_resampled_kappa_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    one, other = generator.integers(0, 2, size=(2, 30)).astype(float)
    weights = generator.integers(0, 4, size=(20, 30)).astype(float)
    expected = [cohen_kappa_score(one, other, sample_weight=drawn) for drawn in weights]
    assert resampled_kappa(one, other)(weights) == pytest.approx(expected)


def test_no_grader_or_one_twice_is_refused() -> None:
    for graders in ([], [RuleGrader(), RuleGrader()]):
        with pytest.raises(ConfigurationError, match="graders named"):
            grade(items(2), graders)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("key0,2,Ada", "grade '2' is not 1 or 0"),
        ("key0,1,", "no grader is named"),
        ("key9,1,Ada", "no answer of this run has the key 'key9'"),
        ("key0,1,Ada\nkey0,0,Ada", "Ada graded 'key0' twice"),
        ("key0,,Ada", "holds no grade"),
    ],
)
def test_what_is_wrong_in_a_file_of_grades_is_named(tmp_path: Path, rows: str, words: str) -> None:
    path = tmp_path / "grades.csv"
    path.write_text(f"key,grade,grader\n{rows}\n")
    with pytest.raises(DataError, match=words):
        read_human(str(path), items(2))
    path.write_text("key,grade\n")
    with pytest.raises(DataError, match="no column grader"):
        read_human(str(path), items(2))


@pytest.fixture
def run(declare: Callable[..., str], tmp_path: Path) -> Path:
    rows = [("ACGT" * 5 + "A" * row, f"binds Zn2+ at H{row}") for row in range(12)]
    name = declare("generation", "tiny_text", train=rows, test=rows)

    def say(question: Question, generator: np.random.Generator) -> str:
        return str(question.reference) if generator.random() < 0.5 else "cuts"

    write_evaluation(tmp_path / "run", say, tasks=[name])
    return tmp_path / "run"


def test_a_sheet_is_filled_in_and_read(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.csv"
    assert main(["grade", str(run), "--sheet", str(sheet)]) == 0
    with open(sheet, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["grade"] for row in rows} == {""}
    for row in rows:
        row |= {"grade": str(int(row["answer"] == row["reference"])), "grader": "Ada"}
    with open(sheet, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    capsys.readouterr()
    markdown = tmp_path / "grades.md"
    arguments = ["grade", str(run), "--human", str(sheet), "--markdown", str(markdown)]
    assert main([*arguments, "--rule", "--judge", "fake:0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    agreements = {(one["first"], one["second"]): one for one in told["agreements"]}
    assert agreements["Ada", "rule"]["kappa"] == 1
    assert agreements["Ada", "judge"]["kappa"] == pytest.approx(0)
    grades = [json.loads(line) for line in (run / "grades.jsonl").read_text().splitlines()]
    assert len(grades) == 36
    assert {line["why"] for line in grades if line["grader"] == "judge"} == {"0"}
    assert "| Tiny generation | Ada - rule | 12 | 100.0 % | 1.00 |" in markdown.read_text()
    assert main(arguments) == 0
    assert "Ada" in capsys.readouterr().out
    # The others' grades stay, and Ada's stand once.
    graders = [json.loads(line)["grader"] for line in (run / "grades.jsonl").read_text().splitlines()]
    assert {name: graders.count(name) for name in graders} == {"Ada": 12, "rule": 12, "judge": 12}
