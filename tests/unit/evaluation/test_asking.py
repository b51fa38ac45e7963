"""An evaluation in this process with a fake engine: what is asked, kept, refused, measured and told."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded_meters import recorded
from served_model import write_llama, write_lora
from tiny_tasks import labelled, rows_of

from polysome.config import ConfigurationError, DataError, ResourceError, validate
from polysome.evaluation import actors, run
from polysome.evaluation.actors import ActorOptions, Answered, Answerer, Batch, Refusal, ask
from polysome.evaluation.answers import read_answers
from polysome.evaluation.baselines import Baselines, _read_and_fit
from polysome.evaluation.choices import choices
from polysome.evaluation.compare import compare, read_baseline, read_contestant
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.questions import sample_key
from polysome.evaluation.report import table
from polysome.evaluation.results import RESULTS_FILE
from polysome.evaluation.run import Evaluation, evaluate, read_evaluation
from polysome.evaluation.samples import SAMPLES_FILE
from polysome.inference.batch import BatchEngine
from polysome.inference.engine import Conversation, Generation, Scores
from polysome.inference.fake import FakeEngine
from polysome.inference.folder import adapter_fingerprint
from polysome.specs import dataset

TOLD = {
    "binary": lambda label: "Yes, it is." if label == "1" else "No, it is not.",
    "multiclass": "It is {}.".format,
    "multilabel": "The marks are {}.".format,
    "regression": "It is {}.".format,
    "multi_regression": lambda label: "up {}, down {}.".format(*label.split(";")),
    "generation": str,
}


def chat(text: str) -> Conversation:
    return [{"role": "user", "content": text}]


def right(kind: str) -> FakeEngine:
    """An engine that knows the answer to every question of a tiny task."""

    def answer(conversation: Conversation) -> str:
        sequence = conversation[-1]["content"].partition("<dna>")[2].partition("</dna>")[0]
        return TOLD[kind](labelled(kind, sequence)) if sequence else "It is."

    return FakeEngine(answer)


class Picky(FakeEngine):
    """Fails at questions that hold a text, with an error."""

    def __init__(self, text: str, error: Exception, *, healthy: bool = True) -> None:
        super().__init__("Yes.")
        self.text, self.error, self.healthy, self.calls = text, error, healthy, 0

    def generate(self, conversations: Sequence[Conversation], **settings: object) -> list[Generation]:
        self.calls += 1
        if any(self.text in conversation[-1]["content"] for conversation in conversations):
            raise self.error
        return super().generate(conversations, **settings)

    def health(self) -> None:
        if not self.healthy:
            raise ResourceError("the endpoint is gone")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeEngine], None]:
    """Actors and baselines run in this process, and the actors' engine is the given one."""

    def answered(batches: Sequence[Batch], options: ActorOptions) -> Iterator[tuple[int, Answered]]:
        actor = Answerer(options)
        actor.load()
        for index, batch in enumerate(batches):
            yield index, actor.answer(batch)

    def fitted(names: Sequence[str], **settings: object) -> dict[str, Baselines]:
        found = {}
        for name in names:
            own = [settings[key] for key in ("split", "subsets", "limit", "seed", "resamples", "chosen")]
            try:
                found[name] = _read_and_fit(dataset(name), *own, settings["groups"][name])
                found[name].write_predictions(settings["cache"])
            except DataError as error:
                found[name] = Baselines(name, {}, notes=(error.what,))
        return found

    monkeypatch.setattr(run, "answer_batches", answered)
    monkeypatch.setattr(run, "run_baselines", fitted)
    return lambda engine: monkeypatch.setattr(actors, "open_engine", lambda *_, **__: engine)


def recipe(*tasks: str, **changes: object) -> EvaluationConfig:
    settings = {"batch_size": 8, "resamples": 100, "baselines": ["majority", "mean"]} | changes
    return EvaluationConfig(name="tiny", model="fake:Yes.", tasks=list(tasks), **settings)


def evaluated(config: EvaluationConfig, folder: Path) -> Evaluation:
    return evaluate(config, str(folder), command="polysome evaluate tiny.yaml", versions={"polysome": "1"})


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / SAMPLES_FILE).read_text().splitlines()]


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


def test_a_sample_key_follows_everything_that_an_answer_depends_on() -> None:
    base = ("task", "id", "model", chat("ACGT?"), {"max_new_tokens": 8})
    changed = [("task2",), ("id2",), ("model2",), (chat("ACGA?"),), ({"max_new_tokens": 9},)]
    keys = {sample_key(*base[:place], *change, *base[place + 1 :]) for place, change in enumerate(changed)}
    assert sample_key(*base) == sample_key("task", "id", "model", [dict(base[3][0])], {"max_new_tokens": 8})
    assert len(keys | {sample_key(*base)}) == 6


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression", "multi_regression", "generation"])
def test_right_answers_measure_as_right_however_they_are_read(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
    kind: str,
) -> None:
    name = declare(kind)
    in_process(right(kind))
    modes = ["text"] if kind == "generation" else ["text", "scores"]
    config = recipe(name, modes=modes, baselines=["majority", "mean", "median", "constant", "length", "kmer"])
    evaluation = evaluated(config, tmp_path / "out")
    [result] = evaluation.tasks
    assert (result.errors, result.empty, result.measurement.n) == (0, 0, 48)
    assert result.measurement is result.styles["strict"]
    assert result.measurement.value.value > 0.99
    assert result.styles["official"].style == "official"
    # Some numbers of the test stand in no training row, so that the fake engine finds none of the grid likely.
    if least := {"binary": 0.99, "multiclass": 0.99, "regression": 0.8, "multi_regression": 0.6}.get(kind):
        assert result.scored is not None
        assert result.scored.value.value > least
    if kind in ("binary", "multiclass"):
        assert result.calibration is not None
        assert result.calibration.dev_n == 40
    assert set(result.baselines) == {
        "generation": {"majority"},
        "regression": {"mean", "median", "constant", "length", "kmer"},
        "multi_regression": {"mean", "median", "length", "kmer"},
    }.get(kind, {"majority", "length", "kmer"})
    assert all(measured.n == 48 for measured in result.baselines.values())
    assert sum(part.n for part in result.slices["length"].values()) == 48
    assert set(result.slices) == {"length", "gc"}
    assert len(result.data["files"][0]["sha256"]) == 64
    content = json.loads((tmp_path / "out" / RESULTS_FILE).read_text())
    assert (content["format"], content["command"]) == (2, "polysome evaluate tiny.yaml")
    assert read_evaluation(str(tmp_path / "out")).to_json() == content
    again = evaluated(config, tmp_path / "out")
    assert (again.asked, again.reused) == (0, evaluation.asked)
    assert [task.to_json() for task in again.tasks] == content["tasks"]


def test_what_is_asked_follows_the_recipe_and_only_what_changed_is_asked_again(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    name = declare("binary")
    in_process(FakeEngine("Yes."))
    first = evaluated(recipe(name, limit=10, prompt="none"), tmp_path)
    assert (first.asked, first.tasks[0].measurement.n) == (10, 10)
    assert any("10 of the 48 rows of test" in note for note in first.tasks[0].notes)
    more = evaluated(recipe(name, limit=10, prompt="none", modes=["text", "scores"], calibration_rows=5), tmp_path)
    assert (more.asked, more.reused) == (15, 10)
    tagged = evaluated(recipe(name, limit=10, prompt="none", tagged=True), tmp_path)
    assert tagged.asked == 10
    assert "[Test: binary]" in lines(tmp_path)[-1]["input"]
    other_model = recipe(name, limit=10, prompt="none").model_copy(update={"model": "fake:No."})
    assert evaluated(other_model, tmp_path).asked == 10
    assert {(line["mode"], line["split"]) for line in lines(tmp_path)} == {
        ("text", "test"),
        ("scores", "test"),
        ("scores", "dev"),
    }


def test_a_folder_with_an_adapter_is_another_model_and_asked_anew(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tiny_tokenizer: str,
    tmp_path: Path,
) -> None:
    model = write_llama(tmp_path / "model", tiny_tokenizer, max_position_embeddings=512, initializer_range=0.5)
    adapter = write_lora(model, tmp_path / "adapter", seed=0)
    settings = {"limit": 6, "modes": ["text", "scores"], "calibration_rows": 2, "prompt": "none", "baselines": []}
    plain = recipe(declare("binary"), max_new_tokens=4, **settings).model_copy(update={"model": model})
    tuned = plain.model_copy(update={"adapter": adapter})
    out = tmp_path / "out"
    first, second = evaluated(plain, out), evaluated(tuned, out)
    assert [(one.asked, one.reused, one.tasks[0].errors) for one in (first, second)] == [(14, 0, 0)] * 2
    assert (second.adapter, second.adapter_fingerprint) == (adapter, adapter_fingerprint(adapter))
    assert first.adapter_fingerprint is None
    assert second.model_fingerprint == first.model_fingerprint

    told = lines(out)
    assert len({line["key"] for line in told}) == 28
    without, with_adapter = ({(line["id"], line["mode"]): line for line in part} for part in (told[:14], told[14:]))
    assert without.keys() == with_adapter.keys()
    engine = BatchEngine(model, adapter=adapter)
    closed = choices(dataset("tiny_binary"), [], seed=plain.seed)
    for place, line in with_adapter.items():
        assert line["input"] == without[place]["input"]
        asked = [chat(line["input"])]
        if line["mode"] == "scores":
            expected = closed.read(engine.score(asked, closed.texts)[0].sums, None)
            assert line["scores"] == pytest.approx(expected, abs=1e-3)
            assert line["scores"] != pytest.approx(without[place]["scores"], abs=0.1)
        else:
            assert line["model_output"] == engine.generate(asked, max_new_tokens=4)[0].text
            assert line["model_output"] != without[place]["model_output"]
    for config in (tuned, plain):
        again = evaluated(config, out)
        assert (again.asked, again.reused) == (0, 14)


def test_replicas_are_drawn_apart_kept_apart_and_measured_together(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    class Wavering(FakeEngine):
        """Says yes and no by the seed, and two of three times what is right."""

        def __init__(self) -> None:
            super().__init__("Yes.")
            self.seeds: list[int] = []

        def generate(self, conversations: Sequence[Conversation], **settings: Any) -> list[Generation]:
            assert settings["temperature"] == 0.7
            self.seeds += settings["seed"]
            answers = []
            for conversation in conversations:
                sequence = conversation[-1]["content"].partition("<dna>")[2].partition("</dna>")[0]
                asked[sequence] += 1
                right = asked[sequence] % 3 != 0
                answers.append("Yes." if (labelled("binary", sequence) == "1") == right else "No.")
            return [Generation(text, 1, 1, "stop") for text in answers]

    asked: Counter[str] = Counter()
    name = declare("binary")
    engine = Wavering()
    in_process(engine)
    once = evaluated(recipe(name, temperature=0.7), tmp_path)
    assert (once.asked, once.tasks[0].measurement.n) == (48, 48)
    thrice = evaluated(recipe(name, temperature=0.7, replicas=3), tmp_path)
    assert (thrice.asked, thrice.reused) == (96, 48)
    assert len(set(engine.seeds)) == len(engine.seeds) == 144
    assert Counter(line["replica"] for line in lines(tmp_path)) == {0: 48, 1: 48, 2: 48}
    [result] = thrice.tasks
    assert (result.measurement.n, result.measurement.value.value) == (48, 1)
    assert any("3 answers to each question at temperature 0.7" in note and "66.7 %" in note for note in result.notes)
    # What reports and comparisons read is what was measured.
    [rows] = read_answers(thrice, str(tmp_path)).values()
    assert all(row.strict == row.label and row.told in ("Yes.", "No.") for row in rows)
    assert len(read_answers(once, str(tmp_path))[name]) == 48
    with pytest.raises(ConfigurationError, match="set a temperature above 0"):
        validate(EvaluationConfig, {"name": "x", "model": "m", "tasks": [name], "replicas": 3}, where="recipe")


def test_scores_relative_to_the_question_without_molecules(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    """An engine that answers alike whatever the molecule says nothing beyond its prior."""
    name = declare("multiclass")
    in_process(FakeEngine("It is tRNA."))
    settings = {"modes": ["scores"], "baselines": [], "calibration_rows": 0}
    evaluated(recipe(name, **settings, prior_correction=True), tmp_path)
    assert all(line["scores"] == pytest.approx([0, 0, 0]) for line in lines(tmp_path))
    plain = evaluated(recipe(name, **settings), tmp_path)
    assert plain.asked == 48
    assert lines(tmp_path)[-1]["scores"][2] == max(lines(tmp_path)[-1]["scores"])
    assert plain.tasks[0].measurement is plain.tasks[0].scored


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


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [({}, 32), ({"style": "open_llm"}, 64), ({"prompt": "reasoning"}, 1024), ({"max_new_tokens": 7}, 7)],
)
def test_an_answer_has_the_tokens_of_its_prompt(settings: dict[str, Any], tokens: int) -> None:
    """A-134."""
    assert recipe("core_promoter", **settings).answer_tokens == tokens


def test_a_bias_towards_one_answer_is_found_on_dev_and_told_beside_the_scores(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
) -> None:
    class Biased(FakeEngine):
        """Finds yes likelier than no whatever it is asked, and by how much follows from the molecule."""

        def score(self, conversations: Sequence[Conversation], choices: Sequence[str]) -> list[Scores]:
            found = []
            for conversation in conversations:
                sequence = conversation[-1]["content"].partition("<dna>")[2].partition("</dna>")[0]
                yes = 10 + 20 * (sequence.count("A") / len(sequence) - 0.3)
                sums = tuple(yes if choice.startswith("Yes") else 0.0 for choice in choices)
                found.append(Scores(sums, (1,) * len(choices)))
            return found

    in_process(Biased("Yes."))
    [result] = evaluated(recipe(declare("binary"), modes=["scores"]), tmp_path).tasks
    assert result.scored is not None
    assert result.scored.value.value == 0
    assert result.scored.extras["auroc_scored"].value == 1
    assert result.scored.extras["mcc_calibrated"].value > 0.8


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


@pytest.mark.parametrize("modes", [["text"], ["scores"], ["text", "scores"]])
@pytest.mark.parametrize("limit", [1, None])
def test_sets_are_read_back_and_compared_even_where_the_headline_is_undefined(
    declare: Callable[..., str],
    in_process: Callable[[FakeEngine], None],
    tmp_path: Path,
    modes: list[str],
    limit: int | None,
) -> None:
    class Counting(FakeEngine):
        def score(self, conversations, choices):
            texts = [conversation[-1]["content"] for conversation in conversations]
            return [
                Scores(tuple(float((len(choice) * text.count("A")) % 7) for choice in choices), (1,) * len(choices))
                for text in texts
            ]

    name = declare("multilabel")
    in_process(Counting("The marks are m6A, Psi."))
    [result] = evaluated(recipe(name, modes=modes, limit=limit, baselines=["majority"]), tmp_path).tasks
    assert math.isnan(result.measurement.value.value) == (limit == 1)
    if result.scored is not None and limit is None:
        assert result.scored.value == result.scored.extras["auc_scored"]
        assert result.scored.value.value != result.scored.extras["auc"].value
    style = "strict" if modes == ["text"] else "scored"
    one = read_contestant(str(tmp_path), "one", style)
    [row] = compare([one, replace(one, name="twin")], resamples=20).rows
    assert row.difference.value == 0 or limit == 1
    baseline = read_baseline(one, str(tmp_path), "majority")
    told = compare([one, baseline], resamples=20)
    assert any("says sets without scores" in note for note in told.notes) == (style == "scored")


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


def test_questions_may_be_worded_by_task() -> None:
    content = {
        "name": "e",
        "model": "m",
        "tasks": ["tf_human", "planted_promoter"],
        "wording": {"tf_human": "conditioned"},
    }
    config = validate(EvaluationConfig, content, where="recipe.yaml")
    assert [config.wording_of(name) for name in config.tasks] == ["conditioned", "faithful"]
    with pytest.raises(ConfigurationError, match=r"wording names \['tf_human'\]"):
        validate(EvaluationConfig, content | {"tasks": ["planted_promoter"]}, where="recipe.yaml")


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


def test_asked_rows_are_counted_with_their_outcome() -> None:
    options = ActorOptions("fake:Yes.", 1, 1, 0, max_batch_tokens=64, max_new_tokens=8, start_timeout=1.0)
    actor = Answerer(options)
    actor._engine = Picky("LONG", DataError("the prompt has 5 tokens"))
    with recorded() as found:
        actor.answer(Batch([chat(text) for text in ("AC", "TOO LONG", "GT")]))
    assert found["polysome_evaluation_rows_total"] == {("text", "answered"): [2], ("text", "refused"): [1]}
