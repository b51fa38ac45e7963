"""Reading: a data set's split in; the examples to evaluate, what the files held, and leakage groups out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from polysome.data.examples import FileReport, read_file
from polysome.data.leakage import divisible_groups
from polysome.data.render import choose
from polysome.data.schema import EXAMPLES
from polysome.specs import Dataset, GenerationLabel, Split, Value
from polysome.storage import exists, fingerprint, read_json, write_json


@dataclass(frozen=True)
class Read:
    """Examples of a split.

    Attributes:
        table: schema EXAMPLES, in the order of the files.
        whole: how many examples the split has, of which `table` holds all or as many as the limit asks for.
        files: for each file its address, the SHA-256 of its content, and how many records were read and set aside.
        notes: what a reader must know about the rows.
    """

    table: pa.Table
    whole: int
    files: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def read_rows(
    spec: Dataset,
    split: Split,
    *,
    subsets: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 42,
    purpose: str = "limit",
) -> Read:
    """Read a split whole; with `limit`, keep so many of its examples, drawn by `seed`, as files may be sorted by label.

    Args:
        purpose: draws for different purposes differ.

    Raises:
        DataError: the split or a subset is not declared, a file is missing or not what its spec says, a label is not
            finite or outside its codec.
    """
    tables, files, notes = [EXAMPLES.empty_table()], [], []
    for source in spec.files(split, subsets):
        report = FileReport(source.uri)
        tables += [batch.examples for batch in read_file(spec, split, source, report)]
        files.append(
            {
                "uri": source.uri,
                "subset": source.subset,
                "sha256": report.sha256,
                "records": report.records,
                "examples": report.examples,
                "set_aside": report.quarantined,
            }
        )
        if report.quarantined:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in report.reasons.most_common(3))
            notes.append(f"{report.quarantined} of {report.records} records of {source.uri} were set aside ({reasons})")
    table = pa.concat_tables(tables)
    whole = table.num_rows
    if limit is not None and limit < whole:
        draws = [choose(identity, seed, purpose) for identity in table["id"].to_pylist()]
        table = table.take(np.sort(np.argsort(draws, kind="stable")[:limit]))
        notes.append(f"{limit} of the {whole} rows of {split}, drawn by seed {seed}")
    return Read(table, whole, tuple(files), tuple(notes))


def labels_of(spec: Dataset, table: pa.Table) -> list[Value | str]:
    """The decoded label of each row; for generated text the text."""
    assert spec.task is not None
    if isinstance(spec.task.label, GenerationLabel):
        return [str(text) for text in table["answer"].to_pylist()]
    return [tuple(label) for label in table["label"].to_pylist()]


def leakage_groups(spec: Dataset, table: pa.Table, cache: str) -> tuple[NDArray[np.int64], str]:
    """int64 [rows]: number of each row's group of similar sequences, and how they were found (E-5).

    Args:
        cache: JSON file that holds what was found before, by data set; it is made, and brought up to date.
    """
    rows = fingerprint([table["id"].to_pylist(), table["sequences"].to_pylist()])
    known = read_json(cache) if exists(cache) else {}
    if known.get(spec.name, {}).get("rows") != rows:
        found = divisible_groups(table["sequences"], spec.molecules)
        known[spec.name] = {"rows": rows, "method": found.method, "groups": found.groups.tolist()}
        write_json(cache, known)
    return np.array(known[spec.name]["groups"], dtype=np.int64), str(known[spec.name]["method"])
