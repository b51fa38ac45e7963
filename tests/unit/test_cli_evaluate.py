"""`polysome evaluate` makes a recipe of a file or a model and of its options."""

from pathlib import Path
from typing import Any

import pytest

from polysome.cli import main
from polysome.config import ResourceError
from polysome.evaluation.config import EvaluationConfig
from polysome.operations import jobs


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EvaluationConfig]:
    """The configurations of the evaluations that the command starts, none of which runs."""
    found: list[EvaluationConfig] = []

    def execute(recipe: Any, *_: Any, **__: Any) -> None:
        found.append(recipe.config)
        raise ResourceError("not here")

    monkeypatch.setattr(jobs, "execute", execute)
    return found


def test_a_model_and_tasks_are_a_recipe(asked: list[EvaluationConfig], capsys: pytest.CaptureFixture[str]) -> None:
    options = "--tasks planted_promoter,planted_binding --limit 5 --split dev --modes text,scores --prompt reasoning"
    code = main(["evaluate", "export", "seed=7", *options.split(), "--tagged", "--adapter", "adapter"])
    assert code == 3
    [config] = asked
    assert (config.model, config.adapter, config.seed, config.tagged) == ("export", "adapter", 7, True)
    assert config.tasks == ["planted_promoter", "planted_binding"]
    assert (config.limit, config.split, config.modes, config.prompt) == (5, "dev", ["text", "scores"], "reasoning")


def test_options_go_before_what_the_recipe_says(asked: list[EvaluationConfig], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("job: evaluate\nname: e\nmodel: m\ntasks: [planted_promoter]\nlimit: 9\ntagged: true\n")
    main(["evaluate", str(recipe), "--limit", "3", "--untagged", "--modes", "scores"])
    [config] = asked
    assert (config.name, config.limit, config.tagged, config.modes) == ("e", 3, False, ["scores"])


def test_an_address_is_an_endpoint(asked: list[EvaluationConfig]) -> None:
    main(["evaluate", "https://api.example.org/v1", "--tasks", "planted_promoter"])
    assert asked[0].source == "https://api.example.org/v1"
    assert not isinstance(asked[0].model, str)


def test_a_model_alone_is_asked_nothing(asked: list[EvaluationConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "export"]) == 2
    assert "no task to ask it" in capsys.readouterr().err
    assert not asked
