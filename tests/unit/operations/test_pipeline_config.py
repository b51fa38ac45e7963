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
