"""Recipes by job, and the messages of wrong ones."""

from pathlib import Path

import pytest

from polysome.config import ConfigurationError
from polysome.data.config import PrepareConfig
from polysome.operations.recipes import JOBS, load_recipe, schemas
from polysome.serving.config import ServeConfig

PREPARE = """
job: prepare
name: light
kind: pretrain
tokenizer: t
max_length: 128
sources: [{dataset: planted_dna}]
"""


def write(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_the_job_key_chooses_the_configuration_and_overrides_reach_into_it(tmp_path):
    recipe = load_recipe(write(tmp_path, PREPARE), ["sources.0.repeat=3", "seed=1"])
    assert (recipe.job, recipe.name) == ("prepare", "light")
    assert isinstance(recipe.config, PrepareConfig)
    assert (recipe.config.sources[0].repeat, recipe.config.seed) == (3, 1)
    served = load_recipe(write(tmp_path, "job: serve\nmodel: m\nport: 81\n"), job="serve")
    assert served.config == ServeConfig(model="m", port=81)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x\n", "job: required"),
        ("job: trian\n", "'train'"),
        (PREPARE + "max_lenght: 3\n", "'max_length'"),
        (PREPARE.replace("max_length: 128", "max_length: 3"), "max_length"),
        (PREPARE + "seed: 1\nseed: 2\n", "stands twice"),
        ("- a\n", "mapping"),
        ("a: [\n", "YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_with_what_is_near(tmp_path, text, told):
    with pytest.raises(ConfigurationError) as caught:
        load_recipe(write(tmp_path, text))
    assert told in str(caught.value)
    assert "recipe.yaml" in caught.value.where


def test_a_recipe_for_another_job_says_which_command_takes_it(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        load_recipe(write(tmp_path, PREPARE), job="train")
    assert "polysome prepare" in caught.value.fix


def test_every_job_has_a_schema_that_requires_its_key():
    found = schemas()
    assert set(found) == {*JOBS, "dataset"}
    for job in JOBS:
        assert "job" in found[job]["required"]
        assert found[job]["properties"]["job"]["const"] == job
        assert found[job]["additionalProperties"] is False
