"""docs/training.md names what is there: commands, recipes, every key of a stage, its own sections."""

import re
from pathlib import Path

import pytest

from polysome.cli.app import app
from polysome.config import Config
from polysome.models.trainability import Rule
from polysome.training.config import Checkpointing, Dev, NumberLoss, Optimizer, Schedule, StageSettings, Workers

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", [StageSettings, Rule, Optimizer, Schedule, Workers, Checkpointing, Dev, NumberLoss])
def test_every_key_of_a_stage_is_explained(part: type[Config]) -> None:
    section = TEXT.split("## Every key of a stage")[1].split("\n## ")[0]
    assert not {name for name in part.model_fields if f"`{name}`" not in section}


def test_every_command_and_every_file_that_it_names_exists() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    commands |= {group.name for group in app.registered_groups if group.name}
    assert set(re.findall(r"\bpolysome ([a-z][a-z-]*)\b", TEXT)) <= commands
    files = set(re.findall(r"\b(?:jobs|docs|tests)/[\w./-]+\.\w+", TEXT))
    assert files
    assert not {file for file in files if not (ROOT / file).is_file()}


def test_its_contents_lead_to_its_sections() -> None:
    sections = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", TEXT, re.M)
    }
    assert sections == set(re.findall(r"\]\(#([\w-]+)\)", TEXT))
