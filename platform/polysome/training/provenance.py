"""Provenance: which stages made a model, from what base, on what data; the record that an export carries."""

import re
from typing import Any, Literal

import yaml

from polysome.config import Config, DataError, validate
from polysome.models.backbone import ModelSource
from polysome.storage import exists, join, read_json

PROVENANCE = "polysome.json"
README = "README.md"


class DataSource(Config):
    """One data set that a stage trained on."""

    dataset: str
    version: int
    split: str
    prompt: str
    licence: str
    molecules: list[str]
    examples: int
    """In an epoch, repeats counted."""
    tokens: int
    files: int
    """Source files, each with its SHA-256 in the manifest of the prepared data."""


class StageRecord(Config):
    """What one stage did."""

    stage: str
    fingerprint: str
    """Of everything that decides the course of training, data included."""
    started_from: str | None
    """Folder or hub id of the model it started from; None: from a configuration and a seed."""
    data: str
    """Name of the prepared data."""
    kind: Literal["pretrain", "instruct"]
    data_fingerprint: str
    recipe_fingerprint: str
    tokenizer_fingerprint: str
    sources: list[DataSource]
    updates: int
    rows: int
    tokens: int
    final_loss: float | None
    polysome: str
    """Version that trained."""


class Provenance(Config):
    """`polysome.json`: where a model comes from, oldest stage first."""

    format: Literal[1] = 1
    base: str | None
    """Folder or hub id that the first stage started from; None: weights were drawn from a configuration."""
    base_licence: str | None = None
    """As the card in the base's folder names it; None where it is not known, or there is no base."""
    stages: list[StageRecord] = []

    @property
    def sources(self) -> list[DataSource]:
        """The data of all stages."""
        return [source for stage in self.stages for source in stage.sources]

    @property
    def tasks(self) -> list[str]:
        """Data sets whose questions the model was trained to answer, in any stage."""
        asked = (source.dataset for stage in self.stages if stage.kind == "instruct" for source in stage.sources)
        return list(dict.fromkeys(asked))

    @property
    def licences(self) -> list[str]:
        """Of the data of all stages, and of the base where that is known."""
        named = [source.licence for source in self.sources]
        return list(dict.fromkeys([*named, self.base_licence] if self.base_licence else named))


def origin(source: ModelSource, folder: str | None) -> Provenance:
    """Where the model that a stage starts from comes from; read it before training, so that a broken one stops early.

    Args:
        source: as configured; its path is what the card names.
        folder: local copy of that path, or the hub id; not used for a model from a configuration.

    Raises:
        DataError, ConfigurationError: the folder's polysome.json or the head of its README.md is broken.
    """
    if source.path is None or folder is None:
        return Provenance(base=None)
    if exists(join(folder, PROVENANCE)):
        return read_provenance(folder)
    return Provenance(base=source.path, base_licence=_licence_of(folder))


def read_provenance(folder: str) -> Provenance:
    """The provenance that an exported model (path or URL) carries; `tasks` names what it was trained to answer.

    Raises:
        DataError: the folder has none: it was not exported by Polysome.
        ConfigurationError: it is of another format.
    """
    path = join(folder, PROVENANCE)
    content = read_json(path)
    for derived in ("tasks", "licences"):
        content.pop(derived, None)
    return validate(Provenance, content, where=path)


def provenance_content(provenance: Provenance) -> dict[str, Any]:
    """What polysome.json holds: the record, and for readers without this library its tasks and licences."""
    return {**provenance.model_dump(), "tasks": provenance.tasks, "licences": provenance.licences}


def _licence_of(folder: str) -> str | None:
    path = join(folder, README)
    if not exists(path):
        return None
    with open(path, encoding="utf-8") as handle:
        head = re.match(r"\A---\n(.*?)\n---", handle.read(), re.DOTALL)
    try:
        content = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        raise DataError(
            f"the head of the model card is not YAML: {error}", where=path, fix="mend it, or remove the README.md"
        ) from error
    if not isinstance(content, dict):
        return None
    licence = content.get("license_name") or content.get("license")
    return str(licence) if licence else None
