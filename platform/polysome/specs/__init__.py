"""Specs: what data sets, tasks, labels, templates and metrics are, read from `datasets_spec/`."""

from polysome.specs.catalog import dataset, folder, names
from polysome.specs.labels import BinaryLabel, Label, MulticlassLabel, RegressionLabel
from polysome.specs.model import (
    Dataset,
    Metric,
    Molecule,
    MoleculeType,
    ReasoningStep,
    SourceFile,
    Split,
    Task,
    Templates,
    placeholders,
)
from polysome.specs.prompts import CONCISE_SYSTEM_PROMPT, REASONING_SYSTEM_PROMPT, Prompt, system_prompt

__all__ = [
    "CONCISE_SYSTEM_PROMPT",
    "REASONING_SYSTEM_PROMPT",
    "BinaryLabel",
    "Dataset",
    "Label",
    "Metric",
    "Molecule",
    "MoleculeType",
    "MulticlassLabel",
    "Prompt",
    "ReasoningStep",
    "RegressionLabel",
    "SourceFile",
    "Split",
    "Task",
    "Templates",
    "dataset",
    "folder",
    "names",
    "placeholders",
    "system_prompt",
]
