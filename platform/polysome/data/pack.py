"""Pack: token documents gathered into rows that waste few positions (design, step 6; A-91).

A document is never cut and never lost, and rows hold nothing but whole documents.
"""

import numpy as np
import pyarrow as pa

from polysome.data.planning import Integers, Plan, check, plan_closest, starts
from polysome.data.rows import count_targets
from polysome.data.schema import PACKED, TOKENS

_DOCUMENTS = pa.schema([TOKENS.field(name) for name in ("input_ids", "target_start")])
_FULL = 0.98
"""A row of the streaming packer that is filled to this share does not wait for a better one."""


def pack(documents: pa.Table, max_length: int, *, order: Integers | None = None) -> pa.Table:
    """Rows (schema PACKED) of the `documents` (schema TOKENS) of one shard, planned together.

    Args:
        max_length: positions in a row.
        order: int64 [documents], a permutation; the rows are as if the documents stood in this order, without the cost
            of moving their tokens twice.

    Raises:
        ValueError: a document is empty or longer than `max_length`, or the documents have 2**31 tokens or more.
    """
    lengths = _lengths(documents)
    if order is None:
        return _gather(documents, plan_closest(lengths, max_length))
    planned = plan_closest(lengths[order], max_length)
    return _gather(documents, Plan(order[planned.order], planned.row_starts))


class StreamingPacker:
    """Packs a stream of documents that never is there as a whole.

    Whenever `buffer_documents` new documents have come they are planned together with those that were kept back. Rows
    that are full go out; documents of the others are kept back, each of them once, so that none waits for ever. The
    rows depend on the documents and their order alone, not on the tables in which they come. At most twice
    `buffer_documents` are held.
    """

    def __init__(self, max_length: int, *, buffer_documents: int = 8192) -> None:
        """Rows of `max_length` positions; a larger buffer fills them better."""
        self._max_length = max_length
        self._buffer_documents = buffer_documents
        self._kept = _DOCUMENTS.empty_table()
        self._new: list[pa.Table] = []
        self._new_documents = 0

    def add(self, documents: pa.Table) -> pa.Table:
        """Take `documents` (schema TOKENS) and give the rows (schema PACKED, often none) that are complete now.

        Raises:
            ValueError: a document is empty or longer than `max_length`; none of `documents` is taken.
        """
        check(_lengths(documents), self._max_length)
        documents = documents.select(_DOCUMENTS.names).cast(_DOCUMENTS)
        rows = [PACKED.empty_table()]
        while documents.num_rows:
            part = documents.slice(0, self._buffer_documents - self._new_documents)
            documents = documents.slice(part.num_rows)
            self._new.append(part)
            self._new_documents += part.num_rows
            if self._new_documents == self._buffer_documents:
                rows.append(self._settle(last=False))
        return pa.concat_tables(rows)

    def flush(self) -> pa.Table:
        """The rows (schema PACKED) of all documents that are still held."""
        return self._settle(last=True)

    def _settle(self, *, last: bool) -> pa.Table:
        documents = pa.concat_tables([self._kept, *self._new]).combine_chunks()
        lengths = _lengths(documents)
        planned = plan_closest(lengths, self._max_length)
        if last or not len(planned):
            ripe = np.ones(len(planned), bool)
        else:
            filled = np.add.reduceat(lengths[planned.order], planned.row_starts[:-1])
            # Documents that were kept back stand before the new ones.
            waited = np.minimum.reduceat(planned.order, planned.row_starts[:-1]) < self._kept.num_rows
            ripe = waited | (filled >= _FULL * self._max_length)
        sizes = np.diff(planned.row_starts)
        going = np.repeat(ripe, sizes)
        self._kept = _take(documents, np.sort(planned.order[~going]))
        self._new, self._new_documents = [], 0
        return _gather(documents, Plan(planned.order[going], starts(sizes[ripe])))


def _lengths(documents: pa.Table) -> Integers:
    chunks = [chunk.value_lengths().to_numpy().astype(np.int64) for chunk in documents["input_ids"].chunks]
    return np.concatenate([np.empty(0, np.int64), *chunks])


def _gather(documents: pa.Table, planned: Plan) -> pa.Table:
    """Rows (schema PACKED) as planned."""
    taken = _take(documents, planned.order)
    lengths, target_starts = _lengths(taken), taken["target_start"].to_numpy()
    token_starts = starts(lengths)[planned.row_starts]
    target_counts = starts(count_targets(lengths, target_starts))[planned.row_starts]
    document_starts = pa.array(planned.row_starts, pa.int32())
    columns = [
        pa.ListArray.from_arrays(pa.array(token_starts, pa.int32()), taken["input_ids"].chunk(0).values),
        pa.ListArray.from_arrays(document_starts, pa.array(lengths, pa.int32())),
        pa.ListArray.from_arrays(document_starts, pa.array(target_starts)),
        *(pa.array(np.diff(ends), pa.int32()) for ends in (token_starts, target_counts, planned.row_starts)),
    ]
    return pa.Table.from_arrays(columns, schema=PACKED)


def _take(documents: pa.Table, order: Integers) -> pa.Table:
    """The documents with these numbers, in this order, without their ids: one chunk, which begins at its offset 0.

    Arrow takes lists element by element and byte strings as a whole, which is five times as fast; so the documents are
    looked at as byte strings, without a copy.
    """
    if not len(order):
        return _DOCUMENTS.empty_table()
    documents = documents.select(_DOCUMENTS.names).combine_chunks()
    if documents["input_ids"].num_chunks > 1:
        raise ValueError("the documents have 2**31 tokens or more; pack them in smaller shards")
    ids = documents["input_ids"].chunk(0)
    width = ids.values.type.byte_width
    offsets = (ids.offsets.to_numpy().astype(np.int64) + ids.values.offset) * width
    buffers = [None, pa.py_buffer(offsets), ids.values.buffers()[1]]
    taken = pa.Array.from_buffers(pa.large_binary(), len(ids), buffers).take(pa.array(order))
    starts = np.frombuffer(taken.buffers()[1], np.int64, len(order) + 1) // width
    values = pa.Array.from_buffers(ids.values.type, int(starts[-1]), [None, taken.buffers()[2]])
    columns = [
        pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values),
        pa.array(documents["target_start"].to_numpy()[order]),
    ]
    return pa.Table.from_arrays(columns, schema=_DOCUMENTS)
