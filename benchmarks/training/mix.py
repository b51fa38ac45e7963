"""The stage-2 mix for the benchmarks: documents of all tasks in their published shares, as prepared folders.

Shares are the training rows of the 21 tasks as their specs state them; chats are rendered with the specs' own templates
and tokenized, cropped and planned by the data room. Molecules are drawn at random with the lengths in `lengths.py`;
with POLYSOME_MIRROR set, those of tasks whose training files are there are the real ones.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lengths import LEVELS, molecule_lengths, stage2_tasks
from prepared import SEED, write_prepared

from polysome.config import DataError
from polysome.data.encode import Rendering
from polysome.data.examples import read_examples
from polysome.data.feed import permute
from polysome.data.manifest import Manifest
from polysome.data.mixture import apportion
from polysome.data.render import wordings
from polysome.data.rows import Documents
from polysome.data.schema import EXAMPLES, TOKENS
from polysome.data.tokenize import tokenize
from polysome.data.tokenizer_files import TOKENIZER_FOLDER, copy_tokenizer, load_tokenizer, tokenizer_fingerprint
from polysome.models.tokenizer import build_per_base_tokenizer
from polysome.specs import CONCISE_SYSTEM_PROMPT, REASONING_SYSTEM_PROMPT, Dataset, dataset
from polysome.storage.files import MIRROR_VARIABLE

MAX_LENGTH = 1024
"""Of stage 2 (A-93)."""
VOCABULARY = 1024
REAL_EXAMPLES = 2000
"""Read of a task's training files, to draw from."""

_LETTERS = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}


@dataclass(frozen=True)
class Mix:
    """Documents of the mix, in an order that the seed draws.

    Attributes:
        documents: schema TOKENS.
        tasks: int64 [documents], the place of each one's task in `names`.
        names: data sets with at least one document.
        real: those of them whose molecules are real.
    """

    documents: pa.Table
    tasks: npt.NDArray[np.int64]
    names: list[str]
    real: list[str]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, int64 [documents]."""
        return np.asarray(self.documents["input_ids"].combine_chunks().value_lengths()).astype(np.int64)

    @property
    def target_starts(self) -> npt.NDArray[np.int64]:
        """Tokens of each document before its answer, int64 [documents]."""
        return self.documents["target_start"].to_numpy().astype(np.int64)


@dataclass(frozen=True)
class Layout:
    """The documents as rows.

    Attributes:
        rows: of the prepared folder.
        micro_batch_size: rows per micro-batch.
        filled: share of the computed positions that hold tokens.
    """

    rows: int
    micro_batch_size: int
    filled: float


def lay_out(folder: Path, documents: int, rows_per_micro_batch: int, *, seed: int) -> tuple[Mix, dict[str, Layout]]:
    """Draw documents and write them packed, padded to the longest of a micro-batch, and padded to the row.

    Args:
        rows_per_micro_batch: packed ones; padded micro-batches take as many documents as these hold in the mean.
        seed: of the feed that will read the folders.

    Returns:
        The documents, and the layouts of the folders `packed`, `longest` and `row`.
    """
    tokenizer = folder / "tokenizer"
    build_tokenizer(tokenizer)
    drawn = draw(tokenizer, documents)
    write_documents(folder / "documents.npz", drawn)
    packed = write(folder / "packed", drawn, tokenizer, packed=True)
    updates = math.ceil(packed.rows / rows_per_micro_batch)
    together = math.ceil(documents / updates)
    # A padded document must know with which others it will be computed: the feed's order is a function of the seed.
    order = permute(np.arange(documents), documents, seed=seed, epoch=0)
    longest = np.empty(documents, np.int64)
    for start in range(0, documents, together):
        members = order[start : start + together]
        longest[members] = drawn.lengths[members].max()
    layouts = {"packed": Layout(packed.rows, rows_per_micro_batch, 1.0)}
    for name, lengths in (("longest", longest), ("row", np.full(documents, MAX_LENGTH))):
        filled = padded(drawn, lengths, packed.pad_id)
        write(folder / name, filled, tokenizer, packed=False)
        layouts[name] = Layout(documents, together, round(float(drawn.lengths.sum() / lengths.sum()), 4))
    return drawn, layouts


def build_tokenizer(folder: Path) -> None:
    """The per-base tokenizer over the wordings of all tasks of the mix."""
    texts = [CONCISE_SYSTEM_PROMPT, REASONING_SYSTEM_PROMPT]
    texts += [text for name in stage2_tasks() for text in wordings(dataset(name))]
    build_per_base_tokenizer(folder, texts, vocabulary_size=VOCABULARY)


def draw(tokenizer_folder: Path, count: int) -> Mix:
    """`count` documents of at most MAX_LENGTH tokens, the tasks in their published shares to the nearest document."""
    shares = stage2_tasks()
    generator = np.random.default_rng(SEED)
    tokenizer = load_tokenizer(tokenizer_folder)
    rendering = Rendering.of(tokenizer, chat=True, prompt="concise", seed=SEED)
    tokenizer_json = (tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8")
    tables, tasks, used, real = [], [], [], []
    for name, rows in zip(shares, apportion(count, list(map(float, shares.values()))), strict=True):
        if not rows:
            continue
        examples, is_real = _examples(dataset(name), rows, generator)
        tables.append(tokenize(examples, dataset(name), rendering, tokenizer_json, MAX_LENGTH).documents)
        tasks += [len(used)] * rows
        used.append(name)
        real += [name] * is_real
    order = generator.permutation(count)
    documents = pa.concat_tables(tables).take(pa.array(order)).combine_chunks()
    return Mix(documents, np.array(tasks)[order], used, real)


def padded(mix: Mix, lengths: npt.NDArray[np.int64], pad_id: int) -> Mix:
    """The same documents, each filled up to its one of `lengths`, int64 [documents], with padding before it.

    Padding before the text costs what padding after it costs, and keeps the answer at the end of the document, where
    the loss is; so what trains on documents trains on padded rows.
    """
    before = lengths - mix.lengths
    ids = [
        np.concatenate([np.full(gap, pad_id, np.int32), values.to_numpy()])
        for gap, values in zip(before.tolist(), _pieces(mix.documents), strict=True)
    ]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    filled = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(ids)))
    starts = pa.array((mix.target_starts + before).astype(np.int32))
    return Mix(
        pa.Table.from_arrays([mix.documents["id"].combine_chunks(), filled, starts], schema=TOKENS),
        mix.tasks,
        mix.names,
        mix.real,
    )


def write(folder: Path, mix: Mix, tokenizer_folder: Path, *, packed: bool) -> Manifest:
    """A prepared folder of the mix, its documents planned into rows of MAX_LENGTH, or one to a row in their order."""
    tokenizer = load_tokenizer(tokenizer_folder)
    copy_tokenizer(tokenizer_folder, str(folder / TOKENIZER_FOLDER))
    return write_prepared(
        folder,
        mix.documents,
        MAX_LENGTH,
        packed=packed,
        vocabulary_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer_folder),
    )


def write_documents(path: Path, mix: Mix) -> None:
    """The documents as arrays (`Documents` of `polysome.data.rows`), for programs that do not know Polysome."""
    ids = mix.documents["input_ids"].combine_chunks().flatten().to_numpy()
    documents = Documents(ids, mix.lengths.astype(np.int32), mix.target_starts.astype(np.int32))
    np.savez(path, **vars(documents))


def described(mix: Mix) -> dict[str, object]:
    """What the mix is, for the result file."""
    lengths, targets = mix.lengths, mix.lengths - mix.target_starts
    counts = np.bincount(mix.tasks, minlength=len(mix.names))
    return {
        "documents": len(lengths),
        "tokens": int(lengths.sum()),
        "targets": int(targets.sum()),
        "target_share": round(float(targets.sum() / lengths.sum()), 4),
        "mean_length": round(float(lengths.mean()), 1),
        "length_quantiles": {str(level): int(np.quantile(lengths, level)) for level in LEVELS},
        "mean_targets": round(float(targets.mean()), 1),
        "documents_by_task": dict(zip(mix.names, counts.tolist(), strict=True)),
        "real_molecules": mix.real,
    }


def padding_table(mix: Mix) -> dict[str, float]:
    """Share of positions that hold a token when documents are padded to the longest of their micro-batch, by its size;
    micro-batches as they fall in the mix's random order."""
    lengths = mix.lengths
    shares = {}
    for size in (1, 2, 4, 8, 16, 32):
        groups = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        shares[str(size)] = round(float(lengths.sum() / sum(len(group) * group.max() for group in groups)), 3)
    shares["row"] = round(float(lengths.mean() / MAX_LENGTH), 3)
    return shares


def _examples(spec: Dataset, count: int, generator: np.random.Generator) -> tuple[pa.Table, bool]:
    """Examples (schema EXAMPLES), and whether they are real."""
    if os.environ.get(MIRROR_VARIABLE):
        try:
            found = read_examples(spec, "train", limit=max(REAL_EXAMPLES, count))
        except DataError:
            pass  # The result says which tasks are real.
        else:
            chosen = generator.choice(found.num_rows, count, replace=count > found.num_rows)
            return found.take(pa.array(chosen)), True
    sequences = [
        [
            "".join(generator.choice(list(_LETTERS[molecule.type]), length))
            for molecule, length in zip(spec.molecules, drawn, strict=True)
        ]
        for drawn in zip(*molecule_lengths(spec.name, count, generator), strict=True)
    ]
    columns = {
        "id": [f"{spec.name}/train/-/{number}" for number in range(count)],
        "dataset": [spec.name] * count,
        "split": ["train"] * count,
        "subset": [None] * count,
        "sequences": sequences,
        "label": [_label(spec, generator) for _ in range(count)],
        "question": [None] * count,
        "answer": [None] * count,
    }
    return pa.table(columns, schema=EXAMPLES), False


def _label(spec: Dataset, generator: np.random.Generator) -> list[float]:
    """A label of the task's kind, decoded."""
    assert spec.task is not None
    label = spec.task.label
    if label.kind == "binary":
        return [float(generator.integers(2))]
    if label.kind == "multiclass":
        return [float(generator.integers(len(label.classes)))]
    if label.kind == "multilabel":
        return sorted(map(float, generator.choice(len(label.classes), 2, replace=False)))
    assert label.kind in ("regression", "multi_regression")
    low, high = label.minimum or 0.0, 1.0 if label.maximum is None else label.maximum
    outputs = len(label.outputs) if label.kind == "multi_regression" else 1
    return generator.uniform(low, max(low, high), outputs).tolist()


def _pieces(documents: pa.Table) -> list[pa.Array]:
    return [value.values for value in documents["input_ids"].combine_chunks()]
