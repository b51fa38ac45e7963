"""Shares: which examples of a file belong to which part of a divided split; similar ones stay together (AMB-20).

The leakage groups are those of all files of the split that are divided, so that the parts are disjoint by group across
subsets as well. They are computed once per machine and content and kept in the local cache.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polysome.config import DataError
from polysome.data.duplicates import keys
from polysome.data.leakage import group_shares
from polysome.specs import Dataset, SourceFile, Split
from polysome.storage import fingerprint
from polysome.storage.local import cache_folder, only_one

_VERSION = 3


@dataclass(frozen=True)
class Shares:
    """The place in [0, 1) of each of a file's records.

    Attributes:
        numbers: int64 [examples], record numbers in ascending order.
        places: float64 [examples], equal within a leakage group.
        share: lower and upper bound of the part to take.
    """

    numbers: npt.NDArray[np.int64]
    places: npt.NDArray[np.float64]
    share: tuple[float, float]

    def take(self, examples: pa.Table) -> pa.Table:
        """Those of `examples` (schema EXAMPLES) that belong to the part."""
        numbers = record_numbers(examples)
        places = self.places[np.searchsorted(self.numbers, numbers)]
        return examples.filter(pa.array((self.share[0] <= places) & (places < self.share[1])))


def record_numbers(examples: pa.Table) -> npt.NDArray[np.int64]:
    """int64 [rows]: the record number within its file, which an example's id ends with."""
    found = pc.struct_field(pc.extract_regex(examples["id"], pattern=r"^[^/]*/[^/]*/[^/]*/(?P<number>\d+)"), "number")
    return pc.cast(found, pa.int64()).to_numpy(zero_copy_only=False)


def shares_of(spec: Dataset, split: Split, source: SourceFile) -> Shares:
    """The shares of a file that declares one.

    Raises:
        DataError: a file of the split cannot be read.
    """
    assert source.share is not None
    files = [file.model_copy(update={"share": None}) for file in spec.splits[split] if file.share]
    found = _split_places(spec.model_dump_json(), split)
    lower, upper = source.share
    if not any(((lower <= places) & (places < upper)).any() for _, places in found):
        raise DataError(
            f"share {list(source.share)} of {split!r} holds none of its {sum(len(p) for _, p in found)} records",
            where=source.uri,
            fix="take a larger share, or more records: groups of similar sequences are not divided",
        )
    numbers, places = found[files.index(source.model_copy(update={"share": None}))]
    return Shares(numbers, places, source.share)


@lru_cache(maxsize=8)
def _split_places(declared: str, split: Split) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """Record numbers and places of every divided file of a split, in the order of the files."""
    from polysome.data.examples import FileReport, read_file

    spec = Dataset.model_validate_json(declared)
    tables = []
    for file in spec.splits[split]:
        if file.share:
            whole = file.model_copy(update={"share": None})
            batches = read_file(spec, split, whole, FileReport(file.uri))
            tables.append(pa.concat_tables([batch.examples for batch in batches]))
    places = _places(spec, pa.concat_tables(tables)["sequences"])
    bounds = np.cumsum([table.num_rows for table in tables])[:-1]
    return list(zip((record_numbers(table) for table in tables), np.split(places, bounds), strict=True))


def _places(spec: Dataset, sequences: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """float64 [examples]; from the cache when the same sequences were grouped before."""
    content = hashlib.sha256(keys(sequences).tobytes()).hexdigest()
    identity = fingerprint([_VERSION, content, spec.model_dump(include={"molecules"})])
    path = os.path.join(cache_folder("shares"), f"{identity}.npy")
    with only_one(path):
        if not os.path.exists(path):
            temporary = f"{path}.{uuid4().hex}.tmp.npy"
            np.save(temporary, group_shares(sequences, spec.molecules))
            os.replace(temporary, path)
        found: npt.NDArray[np.float64] = np.load(path)
    return found
