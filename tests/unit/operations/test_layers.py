"""What a recipe is merged from: files it extends, presets, overrides, copied stages; and where each value came from."""

from pathlib import Path

import pytest
import yaml

from polysome.config import ConfigurationError
from polysome.operations.layers import read_layers
from polysome.operations.recipes import load_recipe

BASE = """
job: evaluate
name: base
model: m
tasks: [planted_promoter, planted_binding]
limit: 10
preset: fast
presets:
  fast: {batch_size: 8, limit: 2}
  thorough: {limit: null}
"""


def write(folder: Path, **files: str) -> str:
    """Write `name.yaml` of every file; the path of the last."""
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.write_text(text)
    return str(path)


def test_overrides_win_over_presets_presets_over_the_file_and_the_file_over_what_it_extends(tmp_path):
    path = write(
        tmp_path,
        base=BASE,
        child="extends: base.yaml\nname: child\nseed: 1\nlimit: 5\npresets: {fast: {resamples: 200, seed: 2}}\n",
    )
    recipe = load_recipe(path, ["resamples=300"])
    config = recipe.config.model_dump()
    assert (config["model"], config["name"]) == ("m", "child")
    assert (config["limit"], config["batch_size"], config["seed"], config["resamples"]) == (2, 8, 2, 300)
    assert recipe.preset == "fast"
    assert [file.name for file in recipe.files] == ["base.yaml", "child.yaml"]
    named = ("model", "name", "limit", "seed", "resamples", "tasks.1", "tasks", "actors")
    assert [recipe.origin(key) for key in named] == [
        "base.yaml", "child.yaml", "preset fast", "preset fast", "override", "base.yaml", "default", "default"
    ]  # fmt: skip


def test_the_command_line_chooses_another_preset_or_none_and_null_sets_null(tmp_path):
    path = write(tmp_path, base=BASE)
    assert load_recipe(path, ["preset=thorough"]).config.model_dump()["limit"] is None
    bare = load_recipe(path, ["preset=null"])
    assert (bare.preset, bare.config.model_dump()["limit"]) == (None, 10)


def test_lists_are_replaced_whole_and_leave_no_origin_behind(tmp_path):
    path = write(tmp_path, base=BASE, child="extends: base.yaml\ntasks: [planted_promoter]\n")
    layered = read_layers(path, ["tasks.0=planted_binding"])
    assert layered.content["tasks"] == ["planted_binding"]
    assert {key: origin for key, origin in layered.origins.items() if key.startswith("tasks")} == {
        "tasks.0": "override"
    }


def test_a_file_that_two_others_extend_is_merged_once_before_both(tmp_path):
    path = write(
        tmp_path,
        root="seed: 1\nname: root\n",
        left="extends: root.yaml\nseed: 2\n",
        right="extends: root.yaml\nlimit: 3\n",
        both="extends: [left.yaml, right.yaml]\n",
    )
    layered = read_layers(path)
    assert layered.content == {"seed": 2, "name": "root", "limit": 3}
    assert [file.stem for file in layered.files] == ["root", "left", "right", "both"]


def test_a_copied_stage_follows_presets_and_overrides_of_its_original(tmp_path):
    path = write(
        tmp_path,
        recipe="""
stages:
  first: {prepare: {max_length: 8, sources: [{dataset: a}]}, train: {epochs: 1, seed: 1}}
  second: {like: first, train: {seed: 2}}
preset: long
presets: {long: {stages: {first: {train: {epochs: 9}}}}}
""",
    )
    overrides = ["stages.second.prepare.sources.0.dataset=b", "stages.first.prepare.max_length=16"]
    layered = read_layers(path, overrides)
    assert layered.content["stages"] == {
        "first": {"prepare": {"max_length": 16, "sources": [{"dataset": "a"}]}, "train": {"epochs": 9, "seed": 1}},
        "second": {"prepare": {"max_length": 16, "sources": [{"dataset": "b"}]}, "train": {"epochs": 9, "seed": 2}},
    }
    assert {key: origin for key, origin in layered.origins.items() if key.startswith("stages.second")} == {
        "stages.second.prepare.max_length": "override",
        "stages.second.prepare.sources.0.dataset": "override",
        "stages.second.train.epochs": "preset long",
        "stages.second.train.seed": "recipe.yaml",
    }


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("extends: recipe.yaml\n", [], "recipe.yaml extends"),
        ("extends: other.yaml\n", [], "other.yaml is not there"),
        ("extends: {a: b}\n", [], "a file or a list of files"),
        ("presets: [a]\n", [], "presets: a map"),
        ("presets: {a: 1}\n", [], "presets: a map"),
        ("presets: {paper: {}, tiny: {}}\n", ["preset=papper"], "did you mean 'paper'"),
        ("preset: paper\n", [], "this recipe has no presets"),
        ("stages: {a: {}, b: {like: c}}\n", [], "name one of a"),
        ("stages: {a: {}, b: {like: a}, c: {like: b}}\n", [], "name one of a"),
        ("stages: {b: {like: b}}\n", [], "'b' is no stage"),
    ],
)
def test_a_wrong_layer_is_refused_with_how_to_mend_it(tmp_path, text, overrides, told):
    with pytest.raises(ConfigurationError) as caught:
        read_layers(write(tmp_path, recipe=text), overrides)
    assert told in str(caught.value)


def test_a_preset_holds_no_layers_of_its_own(tmp_path):
    path = write(tmp_path, recipe=yaml.safe_dump({**yaml.safe_load(BASE), "presets": {"fast": {"extends": "a.yaml"}}}))
    with pytest.raises(ConfigurationError, match="unknown key 'extends'"):
        load_recipe(path)


def test_a_wrong_value_is_told_with_the_files_and_the_preset_that_it_may_stand_in(tmp_path):
    path = write(tmp_path, base=BASE, child="extends: base.yaml\nactors: 0\n")
    with pytest.raises(ConfigurationError) as caught:
        load_recipe(path)
    assert "base.yaml, preset fast" in caught.value.where
