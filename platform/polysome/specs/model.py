"""What a data set is: sources, molecules, label, templates, metric; one frozen model per YAML in `datasets_spec/`."""

import re
import string
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from polysome.config import Config, DataError
from polysome.specs.labels import Label

MoleculeType = Literal["dna", "rna", "protein"]
Metric = Literal["mcc", "accuracy", "spearman"]
Split = Literal["train", "dev", "test", "stage3_pool"]

_NAME = re.compile(r"^[a-z0-9][a-z0-9_]{0,63}$")


class SourceFile(Config):
    """One file of one split."""

    uri: str
    """Public address; any fsspec URL, compressed or not. `planted://` names data that Polysome generates."""
    mirror_path: str | None = None
    """Where the file lies below `POLYSOME_MIRROR`; by default `<host>/<path>` of the uri."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the decompressed content. Checked whenever the file is read."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Expected records. Checked whenever the file is read whole."""
    share: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(gt=0, le=1)]] | None = None
    """Keep only records whose sequence hash falls into this part of [0, 1); equal sequences stay together (AMB-20)."""
    subset: str | None = None
    """Name of the subset that the rows belong to, kept with every example."""


class Molecule(Config):
    """One sequence of an example."""

    type: MoleculeType
    column: str = "sequence"
    """Column (CSV) or field that holds the sequence; for FASTA always `sequence`."""
    role: str = "sequence"
    """Placeholder name in the templates."""
    minimum_length: Annotated[int, Field(ge=1)] = 1
    maximum_length: Annotated[int, Field(ge=1)] = 100_000


class Templates(Config):
    """Question and answer wordings (A-50..55). Placeholders stand in braces: molecule roles and `{label}`."""

    questions: Annotated[list[str], Field(min_length=1)]
    answers: dict[str, Annotated[list[str], Field(min_length=1)]]
    """Pool per polarity (A-54): `positive` and `negative` for a binary label, else `any`."""


class ReasoningStep(Config):
    """One checkable statement of a reasoning answer (A-84): computed from the sequence, verifiable afterwards."""

    claim: Literal["length", "gc", "charged", "motif"]
    role: str = "sequence"
    """Molecule that the claim is about."""
    unit: Literal["bases", "residues"] = "bases"
    """Wording of a length."""
    name: str = ""
    """Name of the motif, e.g. `TATA box`."""
    pattern: Annotated[str, Field(pattern=r"^[A-Z]*$")] = ""
    """Letters of the motif."""

    @model_validator(mode="after")
    def _motif_is_whole(self) -> "ReasoningStep":
        if (self.claim == "motif") != bool(self.name and self.pattern):
            raise ValueError("a motif needs name and pattern, and nothing else has them")
        return self


class Task(Config):
    """What is asked about the molecules, and how the answer is measured."""

    name: str
    """The task's registry key, as it stands in the authors' `task` field (A-6)."""
    title: str
    label: Label
    label_column: str = "label"
    metric: Metric
    tag: str
    """Task tag, e.g. `[Classification: core promoter detection]` (A-61, A-62)."""
    hint: str
    """Instruction for baselines (A-133)."""
    templates: Templates
    reasoning: list[ReasoningStep] = []
    """Steps of a reasoning answer; none: the task has no reasoning data."""

    @model_validator(mode="after")
    def _metric_fits_label(self) -> "Task":
        allowed = {"binary": {"mcc", "accuracy"}, "multiclass": {"accuracy", "mcc"}, "regression": {"spearman"}}
        if self.metric not in allowed[self.label.kind]:
            raise ValueError(f"metric {self.metric!r} does not fit a {self.label.kind} label")
        expected = {"positive", "negative"} if self.label.kind == "binary" else {"any"}
        if set(self.templates.answers) != expected:
            raise ValueError(f"answer pools must be {sorted(expected)}, found {sorted(self.templates.answers)}")
        return self


class Dataset(Config):
    """One declared data set: an unlabelled corpus (no `task`) or the examples of one task."""

    name: str
    version: Annotated[int, Field(ge=1)] = 1
    title: str
    homepage: str
    licence: str
    citation: str
    format: Literal["csv", "fasta", "planted"]
    molecules: Annotated[list[Molecule], Field(min_length=1, max_length=2)]
    splits: dict[Split, Annotated[list[SourceFile], Field(min_length=1)]]
    task: Task | None = None
    maximum_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of records that may be set aside as unreadable before a job stops."""
    window: Annotated[int, Field(ge=16)] | None = None
    """Corpus only: cut longer sequences into pieces of this many characters (A-91), nothing dropped."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not _NAME.match(name):
            raise ValueError("lower-case letters, digits and underscores only")
        return name

    @model_validator(mode="after")
    def _whole(self) -> "Dataset":
        roles = [molecule.role for molecule in self.molecules]
        if len(set(roles)) != len(roles):
            raise ValueError(f"molecule roles must differ, found {roles}")
        if self.task is None:
            if len(self.molecules) != 1:
                raise ValueError("a corpus holds one molecule per record")
            return self
        if self.window is not None:
            raise ValueError("window is for corpora; a task's sequence is never cut silently")
        for step in self.task.reasoning:
            if step.role not in roles:
                raise ValueError(f"reasoning step about {step.role!r}, which is none of the molecules {roles}")
        for template in self.task.templates.questions:
            _check_placeholders(template, set(roles), "question")
        for polarity, pool in self.task.templates.answers.items():
            wanted = set() if polarity != "any" else {"label"}
            for template in pool:
                _check_placeholders(template, wanted, f"{polarity} answer")
        return self

    def files(self, split: Split) -> list[SourceFile]:
        """The files of a split.

        Raises:
            DataError: the data set declares no such split.
        """
        if split not in self.splits:
            raise DataError(
                f"data set {self.name!r} has no split {split!r}",
                where=f"datasets_spec/{self.name}.yaml",
                fix=f"choose one of {sorted(self.splits)}",
            )
        return self.splits[split]


def placeholders(template: str) -> list[str]:
    """Names in braces, in order."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _check_placeholders(template: str, wanted: set[str], what: str) -> None:
    try:
        found = placeholders(template)
    except ValueError as error:
        raise ValueError(f"{what} template {template!r}: {error}") from error
    if set(found) != wanted or len(found) != len(set(found)):
        raise ValueError(f"{what} template {template!r} needs exactly {sorted(wanted)}, found {sorted(found)}")
