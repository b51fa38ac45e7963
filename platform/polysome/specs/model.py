"""What a data set is: sources, molecules, label, templates, metric; one frozen model per YAML in `datasets_spec/`."""

import re
import string
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from polysome.config import Config, DataError
from polysome.specs.adapters import Step
from polysome.specs.formats import Format
from polysome.specs.labels import Label, MultiRegressionLabel

MoleculeType = Literal["dna", "rna", "protein"]
Omics = Literal["dna", "rna", "protein", "multi"]
Metric = Literal[
    "mcc", "accuracy", "spearman", "pearson", "pearson_r2", "mean_pearson_r2", "auc", "fmax", "mixed", "rouge_l"
]
Split = Literal["train", "dev", "test", "stage3_pool"]
TagStyle = Literal["uniform", "release"]

METRICS: dict[str, tuple[Metric, ...]] = {
    "binary": ("mcc", "accuracy"),
    "multiclass": ("accuracy", "mcc"),
    "multilabel": ("auc", "fmax"),
    "regression": ("spearman", "pearson", "pearson_r2", "mixed"),
    "multi_regression": ("pearson", "mean_pearson_r2"),
    "generation": ("rouge_l",),
}
"""Metrics that fit a kind of label (A-110..118, A-146)."""

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
    """Keep only the records of this part of [0, 1) of the file's leakage groups: similar sequences stay together
    (AMB-20)."""
    subset: Annotated[str, Field(pattern=r"^[^/\s]+$")] | None = None
    """Name of the subset that the rows belong to, kept with every example."""
    optional: bool = False
    """Read only where the subset is asked for by name, e.g. the union of two others (A-6, AMB-3)."""
    format: Format | None = None
    """Of this file, where it differs from the data set's."""
    adapter: list[Step] = []
    """Steps for this file, before those of the data set."""

    @model_validator(mode="after")
    def _shares_in_order(self) -> "SourceFile":
        if self.share and self.share[0] >= self.share[1]:
            raise ValueError(f"share {list(self.share)} is empty: write [lower, upper]")
        if self.optional and self.subset is None:
            raise ValueError("an optional file needs a subset, which is how it is asked for")
        return self


class Molecule(Config):
    """One sequence of an example."""

    type: MoleculeType
    column: str = "sequence"
    """Column that holds the sequence, after the adapter; for FASTA `sequence`."""
    role: str = "sequence"
    """Placeholder name in the templates."""
    minimum_length: Annotated[int, Field(ge=1)] = 1
    maximum_length: Annotated[int, Field(ge=1)] = 100_000
    ambiguous: Literal["keep", "refuse"] = "keep"
    """IUPAC codes of nucleotides, B J O U X Z of proteins."""
    gaps: Literal["refuse", "remove"] = "refuse"
    """`-` and `.`"""
    stops: Literal["final", "remove", "refuse"] = "final"
    """`*` of a protein: only a final one is removed, all are, or none may be there."""
    crop: Literal["head", "centre", "tail", "match"] | None = None
    """What is kept of a molecule too long for a row (AMB-14); none: the example is refused. `match`: a window around
    the place that pairs with the molecule `match_role`."""
    match_role: str | None = None
    """Role of the molecule that `crop: match` looks for: the stretch that equals it or its reverse complement."""

    @model_validator(mode="after")
    def _whole(self) -> "Molecule":
        if self.minimum_length > self.maximum_length:
            raise ValueError(f"minimum_length {self.minimum_length} is above maximum_length {self.maximum_length}")
        if (self.crop == "match") != (self.match_role is not None):
            raise ValueError("crop: match needs match_role, and nothing else has it")
        return self


class Templates(Config):
    """Question and answer wordings (A-50..55). Placeholders stand in braces: molecule roles and `{label}`."""

    questions: Annotated[list[str], Field(min_length=1)]
    conditioned: list[str] = []
    """Questions that also name the subset, placeholder `{subset}` (AMB-12): the mark, factor or cell line."""
    answers: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    """Pool per polarity (A-54): `positive` and `negative` for a binary label, else `any`; none for generated text."""


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
    aliases: list[str] = []
    """Other names in paper and code (AMB-13)."""
    title: str
    label: Label
    label_column: str = "label"
    """Column that holds the label, after the adapter."""
    metric: Metric
    tag: str
    """Task tag in uniform style, `[Classification: <name>]` or `[Regression: <name>]` (A-62)."""
    release_tag: str | None = None
    """Task tag as it stands in the authors' release (A-61)."""
    hint: str
    """Instruction for baselines (A-133)."""
    subset_titles: dict[str, str] = {}
    """How a subset is named in a conditioned question; by default by its own name."""
    templates: Templates
    reasoning: list[ReasoningStep] = []
    """Steps of a reasoning answer; none: the task has no reasoning data."""
    paper_rows: dict[Split, Annotated[int, Field(ge=0)]] = {}
    """Rows per split as printed in the paper (A-10..43), for comparison (AMB-1)."""

    @model_validator(mode="after")
    def _whole(self) -> "Task":
        kind = self.label.kind
        if self.metric not in METRICS[kind]:
            raise ValueError(f"metric {self.metric!r} does not fit a {kind} label; choose one of {list(METRICS[kind])}")
        expected = {"binary": {"positive", "negative"}, "generation": set()}.get(kind, {"any"})
        if set(self.templates.answers) != expected:
            raise ValueError(f"answer pools must be {sorted(expected)}, found {sorted(self.templates.answers)}")
        return self

    def answer_placeholders(self) -> set[str]:
        """Placeholders that every answer template of this task has."""
        if isinstance(self.label, MultiRegressionLabel):
            return {f"label_{name}" for name in self.label.outputs}
        return set() if self.label.kind == "binary" else {"label"}


class InstructionColumns(Config):
    """Columns of ready-made instruction rows (A-5, XP-3): molecules stand inside the question's text."""

    input: str = "input"
    output: str = "output"
    label: str = "label"
    task: str = "task"
    """Its text becomes the subset of a row."""


class Dataset(Config):
    """One declared data set: the examples of one task, ready-made instruction rows, or else an unlabelled corpus."""

    name: str
    version: Annotated[int, Field(ge=1)] = 1
    title: str
    homepage: str
    licence: str
    citation: str
    access: str = ""
    """How to get the files when the address alone does not give them."""
    format: Format
    adapter: list[Step] = []
    """Steps from the file's columns to those that molecules and label name."""
    molecules: Annotated[list[Molecule], Field(max_length=2)]
    splits: dict[Split, Annotated[list[SourceFile], Field(min_length=1)]]
    task: Task | None = None
    instructions: InstructionColumns | None = None
    maximum_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of records that may be set aside as unreadable before a job stops."""
    window: Annotated[int, Field(ge=16)] | None = None
    """Corpus only: cut longer sequences into pieces of this many characters (A-91), nothing dropped."""
    maximum_n: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Corpus only: leave out, and count, sequences (after cutting: pieces) with a larger share of the letter N."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not _NAME.match(name):
            raise ValueError("lower-case letters, digits and underscores only")
        return name

    @model_validator(mode="after")
    def _whole(self) -> "Dataset":
        _check_divisions(self.splits)
        roles = [molecule.role for molecule in self.molecules]
        if len(set(roles)) != len(roles):
            raise ValueError(f"molecule roles must differ, found {roles}")
        for molecule in self.molecules:
            if molecule.match_role is not None and molecule.match_role not in set(roles) - {molecule.role}:
                raise ValueError(f"match_role {molecule.match_role!r} is none of the other molecules {roles}")
        if (self.window is not None or self.maximum_n < 1) and self.kind != "corpus":
            raise ValueError("window and maximum_n are for corpora; a task's sequence is never cut or dropped silently")
        if self.instructions is not None:
            if self.task is not None or self.molecules:
                raise ValueError("instruction rows bring their own molecules and answers: no task, molecules: []")
        elif not self.molecules:
            raise ValueError("at least one molecule is needed")
        elif self.task is None:
            if len(self.molecules) != 1:
                raise ValueError("a corpus holds one molecule per record")
        else:
            self._check_task(self.task, set(roles))
        return self

    def _check_task(self, task: Task, roles: set[str]) -> None:
        for step in task.reasoning:
            if step.role not in roles:
                raise ValueError(f"reasoning step about {step.role!r}, which is none of the molecules {sorted(roles)}")
        for template in task.templates.questions:
            _check_placeholders(template, roles, "question")
        for template in task.templates.conditioned:
            _check_placeholders(template, roles | {"subset"}, "conditioned question")
        for polarity, pool in task.templates.answers.items():
            for template in pool:
                _check_placeholders(template, task.answer_placeholders(), f"{polarity} answer")
        subsets = {file.subset for files in self.splits.values() for file in files}
        if unknown := sorted(set(task.subset_titles) - subsets):
            raise ValueError(f"subset_titles names {unknown[0]!r}, which is no file's subset")

    @property
    def kind(self) -> Literal["task", "instructions", "corpus"]:
        """What the records are for."""
        if self.instructions is not None:
            return "instructions"
        return "corpus" if self.task is None else "task"

    @property
    def omics(self) -> Omics:
        """Group in reports (A-120)."""
        types = {molecule.type for molecule in self.molecules}
        return self.molecules[0].type if len(self.molecules) == 1 and types else "multi"

    def files(self, split: Split, subsets: Sequence[str] | None = None) -> list[SourceFile]:
        """The files of a split: those of `subsets`, or all that are not optional.

        Raises:
            DataError: the data set declares no such split, or no such subset in it.
        """
        where = f"datasets_spec/{self.name}.yaml"
        if split not in self.splits:
            raise DataError(
                f"data set {self.name!r} has no split {split!r}",
                where=where,
                fix=f"choose one of {', '.join(sorted(self.splits))}",
            )
        files = self.splits[split]
        if subsets is None:
            return [file for file in files if not file.optional]
        known = [file.subset for file in files if file.subset]
        for subset in subsets:
            if subset not in known:
                raise DataError(
                    f"split {split!r} of {self.name!r} has no subset {subset!r}",
                    where=where,
                    fix=f"choose of {', '.join(dict.fromkeys(known)) or '(it has none)'}",
                )
        return [file for file in files if file.subset in subsets]

    def format_of(self, file: SourceFile) -> Format:
        """The format in which `file` is read."""
        return file.format or self.format


def _check_divisions(splits: dict[Split, list[SourceFile]]) -> None:
    """Splits that divide the same files must agree in which files, and take parts that do not overlap: groups of
    similar sequences are those of all divided files together."""
    parts: list[tuple[str, set[str], tuple[float, float]]] = []
    for split, files in splits.items():
        divided = {file.model_dump_json(exclude={"share", "optional"}): file.share for file in files if file.share}
        if not divided:
            continue
        if len(set(divided.values())) > 1:
            raise ValueError(f"the files of {split} have different shares; groups would stand on both sides")
        names, share = set(divided), next(iter(divided.values()))
        assert share is not None
        for other, others, taken in parts:
            if names & others and names != others:
                raise ValueError(f"{split} and {other} divide some of the same files: both must divide all of them")
            if names == others and share[0] < taken[1] and taken[0] < share[1]:
                raise ValueError(f"{split} and {other} both take a part of the share {list(share)}")
        parts.append((split, names, share))


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
