"""Which steps a pipeline runs: what chains have in common is prepared and trained once."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from polysome.config import ConfigurationError, PolysomeError, validate
from polysome.operations import jobs, runs
from polysome.operations.pipeline import _Pipeline
from polysome.operations.pipeline_check import changed_steps, check, require_unchanged
from polysome.operations.pipeline_config import PipelineConfig

PREPARE = {"kind": "pretrain", "max_length": 64, "sources": [{"dataset": "planted_dna"}]}
TRAIN = {"trainability": [{"match": ".", "mode": "full"}], "optimizer": {"learning_rate": 1e-3}, "epochs": 1}


def recipe(**changes: Any) -> PipelineConfig:
    other = {**TRAIN, "epochs": 2}
    content = {
        "name": "chains",
        "tokenizer": "t",
        "model": {"path": "base"},
        "stages": {
            "first": {"prepare": PREPARE, "train": TRAIN},
            "second": {"prepare": {**PREPARE, "seed": 7}, "train": TRAIN},
            "variant": {"prepare": {**PREPARE, "seed": 7}, "train": other},
        },
        "chain": ["first", "second"],
        "ablations": {"varied": ["first", "variant"], "alone": ["second"]},
        **changes,
    }
    return validate(PipelineConfig, content, where="recipe")


def test_chains_share_prepared_data_and_the_stages_that_they_begin_with(monkeypatch):
    trained: dict[str, tuple[str | None, str, list[str]]] = {}

    def step(name: str, **results: Any) -> Any:
        found = {"documents": 1, "tokens": 1, "packing_efficiency": 1.0, "sources": [], "updates": 1, "final_loss": 1.0}
        found |= {"trainable_parameters": 1, "total_parameters": 1, "optimizer": "x", **results}
        return SimpleNamespace(id=name, record=SimpleNamespace(job=name.partition("-")[0], results=found))

    def prepare(config: Any, root: str, *, run_id: str, **_: Any) -> Any:
        return step(run_id, data=f"{root}/{run_id}/data")

    def train(config: Any, root: str, *, run_id: str, parents: list[str], **_: Any) -> Any:
        trained[run_id] = (config.model.path, config.data, parents)
        done = step(run_id, export=f"{root}/{run_id}/export")
        done.record.job = "train"
        return done

    monkeypatch.setattr(jobs, "prepare", prepare)
    monkeypatch.setattr(jobs, "train", train)
    record: Any = SimpleNamespace(folder="r", id="r", update=lambda **_: None)
    _Pipeline(recipe(), record, lambda _: None).run()
    assert trained == {
        "first": ("base", "r/prepare-first/data", ["r", "prepare-first"]),
        "second": ("r/first/export", "r/prepare-second/data", ["r", "prepare-second"]),
        "varied-variant": ("r/first/export", "r/prepare-second/data", ["r", "prepare-second"]),
        "alone-second": ("base", "r/prepare-second/data", ["r", "prepare-second"]),
    }


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"chain": ["first", "third"]}, "chain needs stages"),
        ({"chain": ["first", "first"]}, "each once"),
        ({"ablations": {"varied": []}}, "ablation 'varied' needs stages"),
        ({"evaluation": {"tasks": ["planted_promoter"], "after": ["variant"]}}, "evaluation.after names"),
        (
            {"evaluation": {"tasks": ["planted_promoter"], "variants": {"late": {"tagged": True, "after": ["third"]}}}},
            r"evaluation.variants.late.after names \['third'\]",
        ),
    ],
)
def test_a_chain_of_stages_that_are_not_there_is_refused(changes, told):
    with pytest.raises(ConfigurationError, match=told):
        recipe(**changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trackers": ["mlflow"]}, "mlflow"),
        ({"dev": {"every_updates": 1, "tasks": ["planted_dna"]}}, "stages.second.train.dev.tasks"),
        ({"number_loss": {"weight": 0.3}}, "no source of the data asks for a number"),
    ],
)
def test_what_a_later_stage_lacks_is_told_before_the_first_begins(changes, told, monkeypatch):
    from polysome.training import trackers

    monkeypatch.setitem(trackers._NEEDED, "mlflow", "no_such_module")
    stages = {"first": {"prepare": PREPARE, "train": TRAIN}, "second": {"prepare": PREPARE, "train": TRAIN | changes}}
    model = {"config": {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}}
    tokenizer = {"vocabulary_size": 300}
    config = recipe(stages=stages, ablations={}, model=model, tokenizer=tokenizer)
    with pytest.raises(PolysomeError) as error:
        check(config)
    assert re.search(told, str(error.value)), str(error.value)


ASKED = {"tasks": ["planted_promoter"], "limit": 9}


def test_a_variant_is_the_evaluation_but_for_what_it_says():
    variants = {"reasoning": {"prompt": "reasoning", "after": ["first"]}, "tagged": {"tagged": True, "limit": 5}}
    config = recipe(seed=3, evaluation={**ASKED, "after": ["second"], "variants": variants})
    assert config.evaluation is not None
    assert config.evaluation.changes("reasoning") == {"prompt": "reasoning"}
    assert config.evaluation.changes("tagged") == {"tagged": True, "limit": 5}
    assert {asking.seed for asking in config.evaluation.askings.values()} == {3}
    main, varied = config.chains["main"], config.chains["varied"]
    assert list(config.askings("main", main, 0)) == ["reasoning"]
    assert list(config.askings("main", main, 1)) == ["", "tagged"]
    assert list(config.askings("varied", varied, 0)) == []
    assert list(config.askings("varied", varied, 1)) == ["", "reasoning", "tagged"]


def test_a_variant_inherits_the_wordings_of_its_own_tasks():
    asked = {"tasks": ["tf_human", "core_promoter"], "wording": {"tf_human": "conditioned"}}
    config = recipe(evaluation={**asked, "variants": {"one": {"tasks": ["core_promoter"]}, "both": {"tagged": True}}})
    assert config.evaluation is not None
    assert [config.evaluation.variants[name].wording for name in ("one", "both")] == [{}, asked["wording"]]


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ({"promt": "reasoning"}, "unknown key 'evaluation.variants.odd.promt', did you mean 'prompt'"),
        ({"max_new_tokens": 0}, "evaluation.variants.odd.max_new_tokens: "),
        ({"limit": 9, "after": ["first"]}, "variant 'odd' asks what the evaluation asks"),
        ({"style": "closed_llm", "prompt": "reasoning"}, "evaluation.variants.odd: style 'closed_llm' brings"),
        ("tagged", "evaluation.variants.odd: "),
    ],
)
def test_what_is_wrong_with_a_variant_is_said_with_its_name(variant, told):
    with pytest.raises(ConfigurationError) as error:
        recipe(evaluation={**ASKED, "variants": {"odd": variant}})
    assert told in error.value.what


def test_a_variant_does_not_repeat_what_is_wrong_with_the_evaluation():
    with pytest.raises(ConfigurationError) as error:
        recipe(evaluation={"limit": 0, "variants": {"tagged": {"tagged": True}}})
    assert "variants" not in error.value.what


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ({"tasks": ["planted_dna"]}, "evaluation.variants.odd.tasks"),
        ({"wording": "conditioned"}, "conditioned"),
        ({"sentiment": "nowhere"}, "nowhere"),
    ],
)
def test_a_variant_that_cannot_be_asked_is_told_before_the_first_step(variant, told):
    model = {"config": {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}}
    config = recipe(evaluation={**ASKED, "variants": {"odd": variant}}, model=model, tokenizer={"vocabulary_size": 300})
    with pytest.raises(PolysomeError, match=told):
        check(config)


def test_a_variant_that_changed_is_refused_and_a_new_one_is_not(tmp_path):
    first = recipe(evaluation={**ASKED, "variants": {"tagged": {"tagged": True}}})
    assert first.evaluation is not None
    settings = first.evaluation.variants["tagged"].model_dump(mode="json", exclude={"after"})
    name = "evaluate-second.tagged"
    with runs.start(str(tmp_path), "evaluate", name, {**settings, "name": name, "model": "m"}, run_id=name):
        pass
    assert changed_steps(first, str(tmp_path)) == {}
    more = {"tagged": {"tagged": True}, "reasoning": {"prompt": "reasoning"}}
    assert changed_steps(recipe(evaluation={**ASKED, "variants": more}), str(tmp_path)) == {}
    other = recipe(evaluation={**ASKED, "variants": {"tagged": {"tagged": True, "max_new_tokens": 7}}})
    assert changed_steps(other, str(tmp_path)) == {name: ["max_new_tokens"]}


def test_a_recipe_that_changes_a_step_that_stands_is_refused_before_anything_is_touched(tmp_path):
    config = recipe(model={"path": "base"})
    stage = {**config.stages["first"].train.model_dump(mode="json"), "model": {"path": "base", "config": None}}
    folder = tmp_path / "first"
    with runs.start(str(tmp_path), "train", "first", {**stage, "data": "here", "name": "first"}, run_id="first"):
        pass
    before = (folder / "run.json").read_bytes()
    assert changed_steps(config, str(tmp_path)) == {}
    require_unchanged(config, str(tmp_path))
    stages = {**config.model_dump(mode="json")["stages"]}
    stages["first"] = {"prepare": PREPARE, "train": {**TRAIN, "optimizer": {"learning_rate": 2e-3}}}
    other = recipe(stages=stages)
    assert changed_steps(other, str(tmp_path)) == {"first": ["optimizer"]}
    with pytest.raises(ConfigurationError, match="first differs in optimizer"):
        require_unchanged(other, str(tmp_path))
    assert changed_steps(recipe(model={"path": "other"}), str(tmp_path)) == {"first": ["model"]}
    assert (folder / "run.json").read_bytes() == before


def test_a_vocabulary_that_prepared_data_go_by_is_not_built_anew(tmp_path):
    built = recipe(tokenizer={"vocabulary_size": 300})
    with runs.start(str(tmp_path), "pipeline", "chains", built, run_id="run"):
        pass
    assert changed_steps(recipe(tokenizer={"vocabulary_size": 300, "kmer": 3}), str(tmp_path / "run")) == {}
    (tmp_path / "run/tokenizer").mkdir()
    assert changed_steps(built, str(tmp_path / "run")) == {}
    other = recipe(tokenizer={"vocabulary_size": 300, "kmer": 3})
    assert changed_steps(other, str(tmp_path / "run")) == {"tokenizer": ["tokenizer"]}
    stages = built.model_dump(mode="json")["stages"]
    stages["second"]["prepare"]["sources"] = [{"dataset": "planted_rna"}]
    assert changed_steps(recipe(tokenizer={"vocabulary_size": 300}, stages=stages), str(tmp_path / "run")) == {
        "tokenizer": ["data sets of the stages"]
    }
