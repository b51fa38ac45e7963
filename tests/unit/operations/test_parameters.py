"""What people without the cluster may set: declared parameters within their bounds, and nothing else."""

from pathlib import Path

import pytest

from polysome.config import ConfigurationError
from polysome.operations import gateway_jobs
from polysome.operations.gateway_jobs import GatewayJobs
from polysome.operations.recipes import load_recipe
from polysome.operations.submission import Submission
from polysome.serving.config import ServeConfig

RECIPE = """
job: prepare
name: light
kind: pretrain
tokenizer: t
max_length: 128
seed: 3
sources: [{dataset: planted_dna, limit: 10}]
description: Prepares a little.
parameters:
  length: {key: max_length, type: integer, minimum: 16, maximum: 256, description: Tokens of a row.}
  rows: {key: sources.0.limit, type: integer, minimum: 1, maximum: 100, description: Rows., required: true}
  corpus: {key: sources.0.dataset, type: string, choices: [planted_dna, planted_rna], description: What is read.}
  tokenizer: {key: tokenizer, type: string, pattern: "[a-z]+", description: Its name.}
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setattr(gateway_jobs, "require_checkout", lambda: tmp_path)
    monkeypatch.setattr("polysome.operations.submit.require_checkout", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Submission]:
    found: list[Submission] = []
    monkeypatch.setattr("polysome.operations.submit.ClusterJobs.submit", lambda _, submission: found.append(submission))
    return found


def test_an_offer_is_told_as_json_schema_with_the_recipes_values_as_defaults(checkout):
    ((told),) = GatewayJobs("http://127.0.0.1:1", "s3://b/runs", ["recipe.yaml"]).recipes()
    assert (told["name"], told["description"]) == ("light", "Prepares a little.")
    schema = told["parameters"]
    assert (schema["additionalProperties"], schema["required"]) == (False, ["rows"])
    length = schema["properties"]["length"]
    assert [length[key] for key in ("type", "minimum", "maximum", "default")] == ["integer", 16, 256, 128]
    assert schema["properties"]["corpus"]["enum"] == ["planted_dna", "planted_rna"]
    assert schema["properties"]["tokenizer"]["pattern"] == "^(?:[a-z]+)$"


def test_parameters_become_overrides_of_the_recipe(checkout, sent):
    jobs = GatewayJobs("http://127.0.0.1:1", "s3://b/runs", ["recipe.yaml"])
    jobs.submit("light", {"rows": 7, "corpus": "planted_rna"}, team="wet", user="k1")
    (submission,) = sent
    assert (submission.team, submission.user, submission.runs) == ("wet", "k1", "s3://b/runs")
    assert (submission.priority, submission.packages) == ("normal", "image")
    assert submission.run.startswith("light-")
    config = load_recipe(checkout / submission.recipe, submission.overrides).config
    assert (config.sources[0].limit, config.sources[0].dataset, config.max_length) == (7, "planted_rna", 128)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "rows: required"),
        ({"rows": 101}, "rows"),
        ({"rows": 0}, "rows"),
        ({"rows": "7"}, "rows"),
        ({"rows": 1.5}, "rows"),
        ({"rows": True}, "rows"),
        ({"rows": 1, "corpus": "planted_protein"}, "corpus"),
        ({"rows": 1, "tokenizer": "../../etc"}, "tokenizer"),
        ({"rows": 1, "tokenizer": "a\nb"}, "tokenizer"),
        ({"rows": 1, "lenght": 16}, "did you mean 'length'"),
        ({"rows": 1, "seed": 4}, "seed"),
        ({"rows": 1, "sources.0.limit": 4}, "sources.0.limit"),
    ],
)
def test_what_is_not_offered_or_out_of_bounds_is_refused_and_nothing_is_sent(checkout, sent, given, told):
    jobs = GatewayJobs("http://127.0.0.1:1", "s3://b/runs", ["recipe.yaml"])
    with pytest.raises(ConfigurationError) as caught:
        jobs.submit("light", given, team="", user="")
    assert told in str(caught.value)
    assert not sent


def test_an_unknown_recipe_is_refused_with_those_that_are_offered(checkout, sent):
    jobs = GatewayJobs("http://127.0.0.1:1", "s3://b/runs", ["recipe.yaml"])
    for name in ("recipe.yaml", "../recipe", "other"):
        with pytest.raises(ConfigurationError, match="no recipe") as caught:
            jobs.submit(name, {}, team="", user="")
        assert "light" in caught.value.fix
    assert not sent


@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        ("{key: seed, type: integer, description: x}", "minimum and maximum"),
        ("{key: seed, type: integer, minimum: 1, description: x}", "minimum and maximum"),
        ("{key: tokenizer, type: string, description: x}", "choices or a pattern"),
        ("{key: tokenizer, type: string, choices: [a], pattern: a, description: x}", "choices or a pattern"),
        ("{key: seed, type: path, description: x}", "type"),
    ],
)
def test_an_offer_without_bounds_is_no_offer(checkout, parameter, told):
    (checkout / "recipe.yaml").write_text(RECIPE + f"  other: {parameter}\n")
    with pytest.raises(ConfigurationError, match=told):
        GatewayJobs("http://127.0.0.1:1", "s3://b/runs", ["recipe.yaml"])
    with pytest.raises(ConfigurationError, match=told):
        load_recipe(checkout / "recipe.yaml")


def test_an_offer_changes_nothing_of_the_recipe(checkout):
    with_offer = load_recipe(checkout / "recipe.yaml")
    (checkout / "recipe.yaml").write_text(RECIPE.partition("description:")[0])
    assert with_offer.config == load_recipe(checkout / "recipe.yaml").config
    assert "description" not in with_offer.origins


@pytest.mark.parametrize("recipe", ["jobs/recipes/demo_training.yaml"])
def test_what_a_shipped_recipe_offers_is_valid_at_its_bounds(recipe):
    jobs = GatewayJobs("http://127.0.0.1:1", "s3://b/runs", [recipe])
    (offered,) = jobs.recipes()
    assert offered["description"]
    offer = jobs._recipes[offered["name"]].offer
    for bound in ("minimum", "maximum"):
        given = {name: field[bound] for name, field in offered["parameters"]["properties"].items()}
        config = load_recipe(recipe, offer.overrides(given, where=recipe)).config
        assert config.seed == given["seed"]
        assert config.stages["stage2"].train.epochs == given["instruction_epochs"]
        assert config.stages["stage2"].train.optimizer.learning_rate == given["learning_rate"]


def test_a_gateway_takes_jobs_where_it_is_told_a_cluster_and_a_place_for_runs(checkout):
    config = ServeConfig(model="m")
    assert GatewayJobs.of(config) is None
    with pytest.raises(ConfigurationError, match="runs"):
        GatewayJobs.of(config.model_copy(update={"jobs_address": "http://127.0.0.1:1"}))
    twice = {"jobs_address": "http://127.0.0.1:1", "runs": "s3://b/runs", "recipes": ["recipe.yaml", "recipe.yaml"]}
    with pytest.raises(ConfigurationError, match="another recipe"):
        GatewayJobs.of(config.model_copy(update=twice))
