"""An evaluation in this process with a fake engine: what is asked, kept, measured and told."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asked import Picky, chat, evaluated, lines, recipe, right
from recorded_meters import recorded
from served_model import write_llama, write_lora
from tiny_tasks import labelled

from polysome.config import ConfigurationError, DataError, validate
from polysome.evaluation.actors import ActorOptions, Answerer, Batch
from polysome.evaluation.answers import read_answers
from polysome.evaluation.choices import choices
from polysome.evaluation.compare import compare, read_baseline, read_contestant
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.questions import sample_key
from polysome.evaluation.results import RESULTS_FILE
from polysome.evaluation.run import read_evaluation
from polysome.inference.batch import BatchEngine
from polysome.inference.engine import Conversation, Generation, Scores
from polysome.inference.fake import FakeEngine
from polysome.inference.folder import adapter_fingerprint
from polysome.specs import dataset


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


def test_asked_rows_are_counted_with_their_outcome() -> None:
    options = ActorOptions("fake:Yes.", 1, 1, 0, max_batch_tokens=64, max_new_tokens=8, start_timeout=1.0)
    actor = Answerer(options)
    actor._engine = Picky("LONG", DataError("the prompt has 5 tokens"))
    with recorded() as found:
        actor.answer(Batch([chat(text) for text in ("AC", "TOO LONG", "GT")]))
    assert found["polysome_evaluation_rows_total"] == {("text", "answered"): [2], ("text", "refused"): [1]}
