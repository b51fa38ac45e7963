"""The catalog: every YAML in `datasets_spec/`, by name."""

import difflib
import os
from functools import cache
from pathlib import Path

from polysome.config import ConfigurationError, load
from polysome.specs.model import Dataset

FOLDER_VARIABLE = "POLYSOME_DATASETS"


def folder() -> Path:
    """Where the specs lie: `POLYSOME_DATASETS`, else `datasets_spec/` here or in a parent folder, else the checkout's.

    Raises:
        ConfigurationError: there is no such folder.
    """
    declared = os.environ.get(FOLDER_VARIABLE)
    if declared:
        candidates = [Path(declared)]
    else:
        here = Path.cwd()
        candidates = [parent / "datasets_spec" for parent in (here, *here.parents)]
        candidates.append(Path(__file__).resolve().parents[3] / "datasets_spec")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise ConfigurationError(
        "no datasets_spec/ folder found",
        where=declared or str(Path.cwd()),
        fix=f"run from a checkout of Polysome, or set {FOLDER_VARIABLE} to the folder that holds the specs",
    )


def names() -> list[str]:
    """All declared data sets, sorted."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def dataset(name: str) -> Dataset:
    """The declared data set `name`.

    Raises:
        ConfigurationError: it is not declared, or its spec is wrong.
    """
    return _read(folder(), name)


@cache
def _read(root: Path, name: str) -> Dataset:
    path = root / f"{name}.yaml"
    if not path.is_file():
        known = sorted(entry.stem for entry in root.glob("*.yaml"))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ConfigurationError(f"no data set {name!r}", where=str(root), fix=hint)
    spec = load(Dataset, path)
    if spec.name != name:
        raise ConfigurationError(
            f"the spec is named {spec.name!r} but its file {path.name!r}", where=str(path), fix="make the two equal"
        )
    return spec
