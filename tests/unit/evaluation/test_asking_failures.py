"""Rows, answers and data that are not as they should be: an evaluation tells them and goes on, or refuses at once."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from asked import Picky, chat, evaluated, lines, recipe
from tiny_tasks import rows_of

from polysome.config import ConfigurationError, DataError, ResourceError, validate
from polysome.evaluation.actors import Refusal, ask
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.report import table
from polysome.evaluation.results import RESULTS_FILE
from polysome.evaluation.run import evaluate
from polysome.evaluation.samples import SAMPLES_FILE
from polysome.inference.engine import Conversation, Generation, Scores
from polysome.inference.fake import FakeEngine


def test_refused_conversations_do_not_spoil_the_others() -> None:
    texts = ["AC", "TOO LONG", "GT", "T", "TOO LONG", "C", "A", "TT"]
    engine = Picky("LONG", DataError("the prompt has 5 tokens"))
    answers = ask(engine, [chat(text) for text in texts], 8)
    assert [isinstance(answer, Generation) for answer in answers] == ["LONG" not in text for text in texts]
    assert answers[1] == Refusal("the prompt has 5 tokens")
    assert engine.calls < 2 * len(texts)


def test_a_failure_that_may_pass_is_told_so_and_one_of_the_whole_engine_ends_it() -> None:
    asked = [chat("A"), chat("B"), chat("C")]
    answers = ask(Picky("B", ResourceError("the endpoint answered 500")), asked, 8)
    assert answers[1] == Refusal("the endpoint answered 500", transient=True)
    assert all(isinstance(answers[place], Generation) for place in (0, 2))
    with pytest.raises(ResourceError, match="the endpoint is gone"):
        ask(Picky("B", ResourceError("connection refused"), healthy=False), asked, 8)
    with pytest.raises(ConfigurationError, match="cannot score"):
        ask(Picky("B", ConfigurationError("the engine cannot score")), asked, 8)


def test_a_row_that_breaks_the_engine_is_an_error_row() -> None:
    answers = ask(Picky("B", KeyError("B")), [chat("A"), chat("B")], 8)
    assert isinstance(answers[0], Generation)
    assert answers[1] == Refusal("KeyError: 'B'", transient=True)


def test_a_question_without_molecules_that_fails_costs_its_rows_alone(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    name = declare("multiclass")

    class Bare(FakeEngine):
        """Cannot read one wording of the question without a molecule."""

        unread = ""

        def score(self, conversations: Sequence[Conversation], choices: Sequence[str]) -> list[Scores]:
            for conversation in conversations:
                text = conversation[-1]["content"]
                if not re.search("[ACGTU]{6}", text):
                    self.unread = self.unread or text
                    if text == self.unread:
                        raise ValueError("no molecule")
            return super().score(conversations, choices)

    in_process(Bare("It is tRNA."))
    settings = {"modes": ["scores"], "baselines": [], "calibration_rows": 0, "prior_correction": True}
    [result] = evaluated(recipe(name, **settings), tmp_path).tasks
    assert 0 < result.errors < 48
    failed = [line["error"] for line in lines(tmp_path) if line["error"]]
    assert len(failed) == result.errors
    assert {error[:35] for error in failed} == {"the question without its molecules: "[:35]}


def test_answers_that_were_cut_are_told(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    in_process(FakeEngine("It is a tRNA of the kind that is found everywhere."))
    settings = {"baselines": [], "calibration_rows": 0}
    for tokens, told in ((4, True), (32, False)):
        folder = tmp_path / str(tokens)
        folder.mkdir()
        [result] = evaluated(recipe(declare("multiclass"), **settings, max_new_tokens=tokens), folder).tasks
        assert ("48 of 48 answers were cut at 4 tokens (max_new_tokens)" in result.notes) is told


def test_rows_that_failed_in_passing_are_asked_again(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    name = declare(
        "binary", test=[("ACGTACGTAA", "1"), ("CCCCCCCCGG", "0"), ("GGGTTTTTCC", "0")], train=[("ACGG", "1")]
    )
    in_process(Picky("CCCCCCCCGG", ResourceError("the endpoint answered 500 six times")))
    [result] = evaluated(recipe(name), tmp_path).tasks
    assert (result.errors, result.measurement.n) == (1, 3)
    assert result.error_reasons == (("the endpoint answered 500 six times", 1),)
    in_process(Picky("CCCCCCCCGG", DataError("the prompt is too long")))
    again = evaluated(recipe(name), tmp_path)
    assert (again.asked, again.reused, again.tasks[0].errors) == (1, 2, 1)
    assert evaluated(recipe(name), tmp_path).asked == 0


def test_rows_are_counted_once_and_failures_on_dev_apart(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    class Deaf(Picky):
        def score(self, conversations, choices):
            if any(self.text in conversation[-1]["content"] for conversation in conversations):
                raise self.error
            return super().score(conversations, choices)

    name = declare(
        "binary",
        test=[("ACGTACGTAA", "1"), ("CCCCCCCCGG", "0"), ("GGGTTTTTCC", "0")],
        train=[("ACGG", "1")],
        dev=[("ACGTTTGTAA", "1"), ("CCCCCCCCAA", "1"), ("CCCCCCCCTT", "1")],
    )
    in_process(Deaf("CCCCCCCC", DataError("the prompt is too long")))
    evaluation = evaluated(recipe(name, modes=["text", "scores"]), tmp_path)
    [result] = evaluation.tasks
    assert (result.errors, result.error_reasons) == (1, (("the prompt is too long", 1),))
    remarks = table({"deaf": evaluation}).notes
    for told in (
        "1 rows could not be asked (the prompt is too long) and count as wrong",
        "2 of 3 dev questions could not be asked (the prompt is too long)",
        "2 dev rows have no scores and are left out of the calibration",
        "not calibrated: the 1 dev rows hold fewer than two classes",
    ):
        assert f"Tiny binary: {told}." in remarks


def test_a_row_that_some_replicas_answered_is_no_error(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    class Flaky(FakeEngine):
        calls = 0

        def generate(self, conversations, **settings):
            Flaky.calls += 1
            if Flaky.calls == 2:
                raise DataError("no")
            return super().generate(conversations, **settings)

    name = declare("binary", test=[("ACGTACGTAA", "1"), ("GGGTTTTTCC", "0")], train=[("ACGG", "1")])
    in_process(Flaky("Yes."))
    [result] = evaluated(recipe(name, temperature=0.7, replicas=2, batch_size=1), tmp_path).tasks
    assert result.errors == 0
    assert any(note.startswith("1 answers to rows that other replicas answered") for note in result.notes)


def test_an_outage_ends_the_asking_and_keeps_what_was_answered(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    name = declare("binary")

    class Spent(FakeEngine):
        calls = 0

        def generate(self, conversations, **settings):
            Spent.calls += 1
            if Spent.calls > 2:
                raise ResourceError("the budget is spent")
            return super().generate(conversations, **settings)

    in_process(Spent("Yes."))
    with pytest.raises(ResourceError, match=r"no question could be asked in 3 batches in a row: the budget is spent"):
        evaluated(recipe(name), tmp_path)
    assert sum(line["error"] is None for line in lines(tmp_path)) == 16
    assert not (tmp_path / RESULTS_FILE).exists()
    in_process(FakeEngine("Yes."))
    done = evaluated(recipe(name), tmp_path)
    assert (done.asked, done.reused) == (32, 16)


def test_poor_data_is_named_and_ends_nothing(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    """No dev, no train, one class in the test, records without a label, empty answers: all in one evaluation."""
    alone = declare("regression", "alone", test=rows_of("regression", 12, 5))
    one_class = declare(
        "binary", "one_class", test=[("ACGTACGTAA", "1")] * 5 + [("ACGTACGTAC", "")], train=[("A", "1")]
    )
    in_process(FakeEngine(""))
    evaluation = evaluated(recipe(alone, one_class, modes=["text", "scores"]), tmp_path)
    number, binary = evaluation.tasks
    assert (number.empty, binary.empty) == (12, 5)
    assert number.scored is None
    assert number.baselines == {}
    told = " ".join(number.notes)
    assert "not scored: there are no training labels" in told
    assert "has no split 'train'" in told
    assert binary.measurement.n == 5
    assert any("the same class" in note for note in binary.styles["strict"].notes + binary.baselines["majority"].notes)
    assert "not calibrated: the data set has no dev split" in binary.notes
    assert any("1 of 6 records" in note and "no label" in note for note in binary.notes)
    assert all(task.styles["strict"].parse_rate.value == 0 for task in evaluation.tasks)
    remarks = table({"poor": evaluation}).notes
    assert "Tiny regression: 12 answers in words are empty." in remarks
    assert sum("not calibrated: the data set has no dev split" in remark for remark in remarks) == 1


def test_a_label_that_is_no_number_is_told_before_anything_is_asked(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    name = declare("regression", test=[("ACGT", "1.0"), ("ACGA", "nan")])
    in_process(FakeEngine("1.0"))
    with pytest.raises(DataError, match="label 'nan' is not finite"):
        evaluated(recipe(name), tmp_path)
    assert not (tmp_path / SAMPLES_FILE).exists()


def test_scores_that_are_not_finite_are_error_rows(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    class Broken(FakeEngine):
        def score(self, conversations, choices):
            return [Scores((float("nan"),) * len(choices), (1,) * len(choices)) for _ in conversations]

    name = declare("binary")
    in_process(Broken("Yes."))
    [result] = evaluated(recipe(name, modes=["scores"]), tmp_path).tasks
    assert result.error_reasons[0][0] == "the model's scores are not finite"
    assert result.scored is not None
    assert any("48 rows have no scores" in note for note in result.scored.notes)


def test_a_task_that_is_no_task_or_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="unlabelled corpus"):
        evaluate(EvaluationConfig(name="e", model=str(tmp_path), tasks=["planted_dna"]), str(tmp_path / "out"))
    with pytest.raises(ConfigurationError, match="did you mean 'planted_promoter'"):
        evaluate(EvaluationConfig(name="e", model=str(tmp_path), tasks=["planted_promotr"]), str(tmp_path / "out"))
    content = {"name": "e", "model": "m", "tasks": ["planted_promoter", "planted_promoter"]}
    with pytest.raises(ConfigurationError, match="each may stand once"):
        validate(EvaluationConfig, content, where="recipe.yaml")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "absent"}, "no model folder"),
        ({"model": "fake:Yes.", "subsets": ["none"]}, "no subset 'none'"),
        ({"model": "fake:Yes.", "split": "dev", "tasks": ["mol_instructions_domain_motif"]}, "no split 'dev'"),
        ({"model": "fake:Yes.", "wording": "conditioned"}, "no conditioned questions"),
        ({"model": "fake:Yes.", "wording": {"planted_promoter": "conditioned"}}, "no conditioned questions"),
    ],
)
def test_what_can_be_known_at_once_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    config = EvaluationConfig(**{"name": "e", "tasks": ["planted_promoter"]} | settings)
    with pytest.raises((ConfigurationError, DataError), match=told):
        evaluate(config, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
