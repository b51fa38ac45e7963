"""Specs: what data sets, tasks, labels, templates and metrics are, read from `datasets_spec/`."""

from polysome.specs.adapters import Companion, Step
from polysome.specs.catalog import dataset, folder, names
from polysome.specs.formats import Format
from polysome.specs.labels import (
    BinaryLabel,
    GenerationLabel,
    Label,
    MulticlassLabel,
    MultilabelLabel,
    MultiRegressionLabel,
    RegressionLabel,
    Value,
)
from polysome.specs.model import (
    METRICS,
    Dataset,
    InstructionColumns,
    Metric,
    Molecule,
    MoleculeType,
    Omics,
    ReasoningStep,
    SourceFile,
    Split,
    TagStyle,
    Task,
    Templates,
    placeholders,
)
from polysome.specs.prompts import CONCISE_SYSTEM_PROMPT, REASONING_SYSTEM_PROMPT, Prompt, system_prompt

__all__ = [
    "CONCISE_SYSTEM_PROMPT",
    "METRICS",
    "REASONING_SYSTEM_PROMPT",
    "BinaryLabel",
    "Companion",
    "Dataset",
    "Format",
    "GenerationLabel",
    "InstructionColumns",
    "Label",
    "Metric",
    "Molecule",
    "MoleculeType",
    "MultiRegressionLabel",
    "MulticlassLabel",
    "MultilabelLabel",
    "Omics",
    "Prompt",
    "ReasoningStep",
    "RegressionLabel",
    "SourceFile",
    "Split",
    "Step",
    "TagStyle",
    "Task",
    "Templates",
    "Value",
    "dataset",
    "folder",
    "names",
    "placeholders",
    "system_prompt",
]
