"""Reading declared files whole: those that lie in the mirror with all that is looked up beside them."""

import os

import pyarrow as pa
import pytest
from declared_checks import Declared, declared_files

from polysome import specs
from polysome.data.examples import FileReport, read_file
from polysome.specs import Split
from polysome.storage import resolve

NEGATIVE_WORDS = ("no", "absence", "not found", "not detected", "not predicted", "absent", "no evidence")
"""Those of the authors' keyword rule (A-101) that matter here."""


def mirrored(names: list[str]) -> list[object]:
    """A parameter per declared file; one that does not lie in the mirror whole is skipped, which fails where it is
    declared with a checksum, that is, was there."""
    parameters = []
    for declared in declared_files(names):
        absent = [] if _mirror_absent() else _absent(declared)
        marks = [pytest.mark.skip(reason=f"{absent[0]} is not in the mirror")] if absent else []
        assert not (absent and declared.file.mirror_path in absent and declared.file.sha256), declared.file.mirror_path
        parameters.append(pytest.param(declared.spec, declared.split, declared.number, id=str(declared), marks=marks))
    return parameters


def read_whole(name: str, split: Split, number: int = 0) -> tuple[pa.Table, FileReport]:
    """All examples of one declared file, undivided; the reader verifies its rows and checksum."""
    spec = specs.dataset(name)
    file = spec.splits[split][number].model_copy(update={"share": None})
    report = FileReport(file.uri)
    return pa.concat_tables([batch.examples for batch in read_file(spec, split, file, report)]), report


def official_binary(answer: str) -> bool | None:
    """The authors' keyword rule (A-101) without its sentiment model: None where that would be asked."""
    text = answer.lower()
    if "yes" in text:
        return True
    return False if any(word in text for word in NEGATIVE_WORDS) else None


def _mirror_absent() -> bool:
    return not os.environ.get("POLYSOME_MIRROR")


def _absent(declared: Declared) -> list[str]:
    spec, file = specs.dataset(declared.spec), declared.file
    companions = [step.file for step in (*file.adapter, *spec.adapter) if hasattr(step, "file")]
    wanted = [(entry.uri, entry.mirror_path) for entry in (file, *companions)]
    return [path or uri for uri, path in wanted if not os.path.isfile(resolve(uri, path))]
