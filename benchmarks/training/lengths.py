"""How long the documents of each stage are: shares of the tasks, lengths of their molecules, tokens around them."""

import numpy as np
import numpy.typing as npt

from polysome.data.mixture import apportion
from polysome.specs import dataset, names

Integers = npt.NDArray[np.int64]

LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
MOLECULES: dict[str, tuple[int | tuple[int, ...], ...]] = {
    # Fixed by the assay or the benchmark.
    "apa_isoform": (186,), "core_promoter": (70,), "crispr_on_target": (23,), "enhancer_activity": (249,),
    "epigenetic_marks": (500,), "fluorescence": (237,), "promoter_300": (300,), "rna_modification": (101,),
    "tf_human": (101,), "tf_mouse": (101,), "toehold_switches": (148,),
    # Quantiles at LEVELS, of the published files.
    "antibody_antigen": ((193, 225, 231, 239, 247, 256, 271), (714, 844, 849, 856, 862, 869, 912)),
    "ec_number": ((60, 112, 172, 273, 378, 508, 1000),),
    "ncrna_family": ((43, 75, 98, 130, 178, 323, 1136),),
    "solubility": ((27, 126, 189, 278, 377, 491, 1521),),
    "stability": ((43, 43, 43, 43, 50, 50, 50),),
    # Estimates from the sources' descriptions; what does not fit a row is cropped to fill it (AMB-14).
    "enhancer_promoter_interaction": (2000, 3000),
    "mean_ribosome_loading": ((25, 32, 43, 62, 81, 92, 100),),
    "rna_protein_interaction": ((60, 300, 600, 1500, 3000, 5000, 9000), (80, 170, 280, 430, 650, 950, 2500)),
    "sirna_efficacy": (21, (400, 900, 1500, 2500, 4000, 6000, 12000)),
    "thermostability": ((60, 170, 270, 420, 640, 950, 5000),),
}  # fmt: skip
"""Characters of each molecule by data set: one number, or its quantiles at LEVELS."""

CHARACTERS_PER_TOKEN = 1.67
"""Of Llama 3's tokenizer on sequences: 2,000 characters are about 1,200 tokens (A-91)."""
WORDING_TOKENS, ANSWER_TOKENS = (80, 110), (8, 24)
"""Least and most of a chat's system prompt, turns and question, and of a concise answer; estimates."""
REASONING_TOKENS = (120, 400)
"""Least and most of a worked-out answer; an estimate."""
REASONING_SHARE = 8000 / 11000
"""Of stage 3's documents; the others are concise ones again (A-73)."""
CORPUS_CHARACTERS = 2000
"""Longest document of stage 1 (A-91)."""
CORPORA = {"rna": (2 * 523_933, (20, 60, 95, 180, 450, 1100, 2000)), "dna": (1_561_639, 2000),
           "protein": (2_000_000, (20, 100, 170, 289, 450, 690, 2000))}  # fmt: skip
"""Documents of stage 1 in an epoch (A-91) and their characters; the quantiles are estimates."""


def stage2_tasks() -> dict[str, int]:
    """Training rows by data set, of all tasks whose specs state the paper's (A-10 to A-43)."""
    specs = [dataset(name) for name in names()]
    return {spec.name: spec.task.paper_rows["train"] for spec in specs if spec.task and "train" in spec.task.paper_rows}


def molecule_lengths(name: str, count: int, generator: np.random.Generator) -> list[Integers]:
    """Characters of each molecule of `count` examples of a data set; int64 [count] per molecule."""
    return [_drawn(quantiles, count, generator) for quantiles in MOLECULES[name]]


def document_lengths(
    stage: str, count: int, max_length: int, generator: np.random.Generator
) -> tuple[Integers, Integers]:
    """Lengths and target starts in tokens of Llama 3, int64 [count] each, of documents of `stage1`, 2 or 3."""
    if stage == "stage1":
        parts = apportion(count, [float(rows) for rows, _ in CORPORA.values()])
        drawn = [
            _drawn(quantiles, part, generator) for part, (_, quantiles) in zip(parts, CORPORA.values(), strict=True)
        ]
        # With a token that begins and one that ends it.
        lengths = np.minimum(np.concatenate(drawn) / CHARACTERS_PER_TOKEN + 2, max_length).astype(np.int64)
        return generator.permutation(lengths), np.zeros(count, np.int64)
    tasks = stage2_tasks()
    characters = [
        sum(molecule_lengths(name, part, generator))
        for name, part in zip(tasks, apportion(count, [float(rows) for rows in tasks.values()]), strict=True)
    ]
    molecules = generator.permutation(np.concatenate(characters)) / CHARACTERS_PER_TOKEN
    answers = generator.integers(*ANSWER_TOKENS, count, endpoint=True)
    if stage == "stage3":
        reasoned = generator.random(count) < REASONING_SHARE
        answers = np.where(reasoned, generator.integers(*REASONING_TOKENS, count, endpoint=True), answers)
    lengths = generator.integers(*WORDING_TOKENS, count, endpoint=True) + molecules.astype(np.int64) + answers
    # A molecule is cropped, never the answer.
    lengths = np.minimum(lengths, max_length)
    return lengths, lengths - answers


def _drawn(quantiles: int | tuple[int, ...], count: int, generator: np.random.Generator) -> Integers:
    if isinstance(quantiles, int):
        return np.full(count, quantiles)
    return np.rint(np.interp(generator.random(count), LEVELS, quantiles)).astype(np.int64)
