"""The page is one valid HTML file that fetches nothing, escapes what it quotes, and stays small."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluated import right, write_evaluation

from polysome.evaluation import answers, charts
from polysome.evaluation.answers import Answered, read_answers
from polysome.evaluation.baselines import Baselines
from polysome.evaluation.calibration import Bin
from polysome.evaluation.details import details
from polysome.evaluation.page import Subject, page, read_subject, write_page
from polysome.evaluation.questions import Question
from polysome.evaluation.results import Evaluation
from polysome.evaluation.samples import SAMPLES_FILE
from polysome.specs import dataset

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)> & "quoted"'
VOID = {"meta", "br", "img", "link", "input", "hr"}
"""Elements of HTML without an end."""


class Checker(HTMLParser):
    """Collects elements, and what is not closed or closed wrongly."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    return checker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "good"
    good = right(0.8)
    write_evaluation(
        folder,
        lambda item, generator: HOSTILE if generator.random() < 0.1 else good(item, generator),
        modes=["text", "scores"],
    )
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    other = replace(read_subject(str(folder)), name="again")
    return page(
        [read_subject(str(folder), "first"), other], title="A <title>", command="polysome report x", audit=HOSTILE
    )


def test_the_page_is_well_formed_html_with_distinct_ids_and_no_dead_link(text: str) -> None:
    found = checked(text)
    assert (found.open, found.wrong) == ([], [])
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(attributes["href"]) for tag, attributes in found.elements if tag == "a"]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_nothing_is_fetched_and_nothing_runs(text: str) -> None:
    found = checked(text)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form"}
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        assert not {"src", "srcset", "data", "action"} & set(attributes), tag
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_what_models_say_is_escaped(text: str) -> None:
    assert "<script" not in text
    assert "&lt;script&gt;alert(" in text
    assert "<title>A &lt;title&gt;</title>" in text


def test_every_chart_has_a_table_and_words_for_screen_readers(text: str) -> None:
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(figures) > 10
    for figure in figures:
        assert "<table>" in figure
        assert re.search(r'<svg role="img"[^>]*aria-label="[^"]+"', figure)
        assert "nan" not in figure.partition("</svg>")[0].lower()


def test_the_page_holds_what_a_reader_looks_for(text: str) -> None:
    for words in (
        "Reliability",
        "Confusion: labels down, answers across",
        "Slices",
        "Invalid answers",
        "Worst samples",
        "CC0-1.0 (generated)",
        "Audit of leaks",
        "polysome evaluate models/tiny",
        "polysome report x",
        "SHA-256",
    ):
        assert words in text, words


def test_answers_of_other_settings_in_the_folder_are_told_apart(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path, right(0.9), tasks=["planted_promoter"], model="a" * 64)
    second = write_evaluation(tmp_path, right(0.2), tasks=["planted_promoter"], model="b" * 64)
    for evaluation in (first, second):
        (rows,) = read_answers(evaluation, str(tmp_path)).values()
        told = np.mean([row.strict == row.label for row in rows])
        assert math.isclose(told, evaluation.tasks[0].styles["strict"].extras["accuracy"].value)


def test_answers_that_do_not_give_the_results_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path, right(0.9), tasks=["planted_promoter"])
    lines = (tmp_path / SAMPLES_FILE).read_text().splitlines(keepends=True)
    (tmp_path / SAMPLES_FILE).write_text("".join(lines[:-1]))
    assert read_answers(evaluation, str(tmp_path)) == {}
    assert "not at hand" in page([read_subject(str(tmp_path))], title="t", command="c")


def test_a_task_that_was_scored_alone_shows_what_its_scores_speak_for(tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path, right(0.5), tasks=["planted_promoter"], modes=["scores"])
    found = read_subject(str(tmp_path)).details["planted_promoter"]
    assert found.confusion is not None
    counts = found.confusion.counts
    scored = evaluation.tasks[0].scored
    assert scored is not None
    assert np.trace(counts) / counts.sum() == pytest.approx(scored.extras["accuracy"].value)
    assert (found.unparsable, found.invalid) == (0, ())


def test_a_torn_last_line_is_no_error(tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path, right(0.9), tasks=["planted_promoter"])
    with open(tmp_path / SAMPLES_FILE, "a") as handle:
        handle.write('{"key": "tor')
    assert len(read_answers(evaluation, str(tmp_path))["planted_promoter"]) == 80


def many(evaluation: Evaluation, count: int) -> Subject:
    """The same results with so many answers behind each task."""
    found = {}
    for result in evaluation.tasks:
        task = dataset(result.dataset).task
        assert task is not None
        generator = np.random.default_rng(3)
        size = len(getattr(task.label, "classes", "ab"))
        rows = [
            Answered(
                id=f"{result.dataset}/{row}",
                label=(float(generator.integers(0, size)),),
                strict=(float(generator.integers(0, size)),) if row % 7 else None,
                official=None,
                scores=None,
                asked=answers.clipped("A" * 4000),
                told=answers.clipped(f"{row} " * 900),
                error=None,
                group=row,
            )
            for row in range(count)
        ]
        found[result.dataset] = details(task, rows)
    return Subject(evaluation.name, evaluation, found)


def test_the_page_of_100_000_answers_is_below_2_mb(folder: Path, tmp_path: Path) -> None:
    evaluation = read_subject(str(folder)).evaluation
    write_page(str(tmp_path / "report.html"), [many(evaluation, 25_000)], title="many", command="c")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_answers_with_and_without_reasoning_stand_side_by_side(tmp_path: Path) -> None:
    def reasons(item: Question, generator: np.random.Generator) -> str:
        sequence = item.text.split("<dna>")[1].split("</dna>")[0]
        length = len(sequence) + int(generator.random() < 0.3)
        return f"It has {length} bases. <b>{'x' * 400}</b> Therefore the answer is {good(item, generator)}"

    good = right(0.7)
    write_evaluation(tmp_path / "plain", good, tasks=["planted_promoter"], seed=5)
    write_evaluation(tmp_path / "reasoning", reasons, tasks=["planted_promoter"], prompt="reasoning")
    subjects = [read_subject(str(tmp_path / name), name) for name in ("plain", "reasoning")]
    text = page(subjects, title="t", command="c")
    found = checked(text)
    assert (found.open, found.wrong) == ([], [])
    kinds = ("Right answer, wrong reasoning", "Right with reasoning, wrong without", "Right", "Wrong")
    for kind in kinds:
        assert f"<h4>{kind}</h4>" in text
    assert f"&lt;b&gt;{'x' * 400}&lt;/b&gt;" in text, "whole and escaped"
    reasoned = subjects[1].details["planted_promoter"].reasoned
    assert reasoned is not None
    assert (reasoned.checked, subjects[0].details["planted_promoter"].reasoned) == (80, None)
    assert 0 < reasoned.right_unsound < reasoned.right < 80
    assert f"{reasoned.right_unsound} of the {reasoned.right} right ones among them come from wrong" in text
    study = text.split("<h4>Right answer, wrong reasoning</h4>")[1].split("<h4>")[0]
    assert "Does not hold:" in study
    assert study.count("<details>") == 2
    assert "Case studies" not in page(subjects[:1], title="t", command="c")


def test_a_page_without_a_model_shows_the_baselines(tmp_path: Path) -> None:
    (result,) = write_evaluation(tmp_path, right(0.5), tasks=["planted_promoter"]).tasks
    text = page([], title="t", command="c", baselines={result.dataset: Baselines(result.dataset, result.baselines)})
    assert "majority" in text


def test_charts_survive_empty_and_undefined_values() -> None:
    nan = math.nan
    for svg in (
        charts.radar("t", ["a", "b", "c"], [charts.Series("s", [nan, nan, nan])]),
        charts.bars("t", ["a"], [charts.Series("s", [nan])]),
        charts.forest("t", [("a", [charts.Mark(0, nan, nan, nan)]), ("b", [])]),
        charts.reliability("t", [("before", [Bin(0, 1, 0, nan, nan)])]),
        charts.density("t", [[0, 0], [0, 0]], 0, 1),
    ):
        found = checked(svg)
        assert (found.open, found.wrong) == ([], [])
        assert "nan" not in svg


def test_a_label_of_a_chart_is_escaped() -> None:
    assert "<b>" not in charts.bars("<b>", ["<b>"], [charts.Series("<b>", [1.0])])
