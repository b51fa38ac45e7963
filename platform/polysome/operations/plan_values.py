"""Where a recipe's values come from: file and line, preset, override, or default."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from polysome.operations.recipes import Recipe


def origin(recipe: Recipe, key: str) -> str:
    """`stage1.yaml:31`, `preset tiny`, `override` or `default`, of the value at a dotted key."""
    named = recipe.origin(key)
    file = next((file for file in recipe.files if named in (file.name, str(file)) or _ends(file, named)), None)
    line = _line(file, key) if file is not None else None
    return named if line is None else f"{named}:{line}"


def _ends(file: Path, named: str) -> bool:
    """Whether `named`, a path relative to the recipe's folder, is that file."""
    return named.endswith(".yaml") and file.name == Path(named).name


def _line(file: Path, key: str) -> int | None:
    """The line of a dotted key; None where the file says it elsewhere, through an alias or a copied stage."""
    node, line = _tree(file), None
    for part in key.split("."):
        if isinstance(node, yaml.MappingNode):
            found = next(((name, value) for name, value in node.value if name.value == part), None)
            if found is None:
                return None
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
        else:
            # A list that stands in one line has one origin.
            return line
    return line


@cache
def _tree(file: Path) -> Any:
    return yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
