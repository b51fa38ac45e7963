"""The row plan: which documents of a prepared folder share a row, planned on their lengths over all sources together.

Shards hold documents; the plan joins them into rows. So documents of a source whose lengths leave gaps are laid beside
those of others that fill them, and no token is moved for it.
"""

import hashlib
import io
from collections.abc import Iterator

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polysome.config import DataError
from polysome.data.manifest import PlanFile, Shard
from polysome.data.planning import Plan, plan_closest
from polysome.data.ragged import offsets_of
from polysome.storage import join, open_atomic

PLAN = "plan.parquet"
PLAN_DOCUMENTS = 1 << 21
"""Documents that are planned together; more would fill the rows no better."""


def plan_rows(folder: str, shards: list[Shard], max_length: int, seed: int) -> tuple[Plan, PlanFile]:
    """Plan all documents of the shards, and write the plan beside them.

    Documents are numbered in the order of the shards. They are taken up in an order that the seed draws, so that what
    shares a row does not follow the order of the sources, and each group of PLAN_DOCUMENTS is a mixture of them all.
    """
    lengths = np.concatenate([np.empty(0, np.int64), *(_lengths(join(folder, shard.path)) for shard in shards)])
    drawn = np.random.default_rng([seed & 0xFFFFFFFF, len(lengths)]).permutation(len(lengths))
    orders, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for group in _groups(drawn):
        planned = plan_closest(lengths[group], max_length)
        orders.append(group[planned.order])
        sizes.append(np.diff(planned.row_starts))
    found = Plan(np.concatenate(orders), offsets_of(np.concatenate(sizes)))
    return found, _write(folder, found)


def read_plan(url: str, sha256: str) -> Plan:
    """The plan at `url`.

    Raises:
        DataError: it is missing, or not the one that was committed.
    """
    import pyarrow.parquet as pq

    fix = "copy the folder again from where it was prepared, or prepare it again"
    try:
        with fsspec.open(url, "rb") as handle:
            content = handle.read()
    except OSError as error:
        raise DataError(f"cannot read the row plan: {error}", where=url, fix=fix) from error
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(
            f"the row plan is damaged: its sha256 is {found}, and the manifest says {sha256}", where=url, fix=fix
        )
    documents = pq.read_table(pa.BufferReader(content))["documents"].combine_chunks()
    return Plan(
        documents.flatten().to_numpy(zero_copy_only=False).astype(np.int64),
        offsets_of(documents.value_lengths().to_numpy().astype(np.int64)),
    )


def _groups(drawn: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    count = max(1, round(len(drawn) / PLAN_DOCUMENTS))
    yield from (group for group in np.array_split(drawn, count) if len(group))


def _lengths(url: str) -> npt.NDArray[np.int64]:
    """int64 [documents] of one shard, without reading its tokens."""
    import pyarrow.parquet as pq

    with fsspec.open(url, "rb") as handle:
        column = pq.read_table(handle, columns=["tokens"])["tokens"]
    return column.to_numpy().astype(np.int64)


def _write(folder: str, plan: Plan) -> PlanFile:
    import pyarrow.parquet as pq

    rows = pa.LargeListArray.from_arrays(pa.array(plan.row_starts), pa.array(plan.order))
    content = io.BytesIO()
    pq.write_table(pa.table({"documents": rows}), content, compression="zstd", use_dictionary=False)
    with open_atomic(join(folder, PLAN)) as handle:
        handle.write(content.getbuffer())
    return PlanFile(path=PLAN, sha256=hashlib.sha256(content.getbuffer()).hexdigest())
