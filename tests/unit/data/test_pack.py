"""Packing: best-fit-decreasing; no document is lost, cut or mixed with another."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from polysome.data.pack import pack, plan
from polysome.data.schema import IGNORED, TOKENS

lengths_strategy = st.lists(st.integers(1, 64), min_size=1, max_size=200)


def reference_best_fit_decreasing(lengths, capacity):
    """The textbook algorithm, with a linear search for the fullest row that fits."""
    free = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, room in enumerate(free) if room >= length]
        if fitting:
            free[min(fitting, key=lambda row: free[row])] -= length
        else:
            free.append(capacity - length)
    return sorted(free)


@given(lengths_strategy)
@settings(max_examples=200)
def test_plan_is_best_fit_decreasing(lengths):
    rows = plan(np.array(lengths), 64)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    assert sorted(64 - sum(lengths[document] for document in row) for row in rows) == reference_best_fit_decreasing(
        lengths, 64
    )


def documents(lengths, target_starts):
    ids = [[100 * number + position for position in range(length)] for number, length in enumerate(lengths)]
    return pa.table({"id": [str(n) for n in range(len(ids))], "input_ids": ids, "target_start": target_starts}, TOKENS)


@given(lengths_strategy, st.data())
@settings(max_examples=50)
def test_packed_rows_give_every_document_back(lengths, data):
    starts = [data.draw(st.integers(0, length - 1)) for length in lengths]
    table = pack(documents(lengths, starts), 64, pad_id=-7)
    seen = {}
    for row in table.to_pylist():
        segments = np.array(row["segment_ids"])
        ids, labels, positions = (np.array(row[name]) for name in ("input_ids", "labels", "position_ids"))
        assert row["tokens"] == (segments > 0).sum()
        assert row["documents"] == segments.max()
        assert row["targets"] == (labels != IGNORED).sum()
        assert (ids[segments == 0] == -7).all()
        assert (labels[segments == 0] == IGNORED).all()
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            assert (positions[inside] == np.arange(inside.sum())).all()
            seen[ids[inside][0] // 100 if inside.sum() else None] = (ids[inside].tolist(), labels[inside].tolist())
    assert len(seen) == len(lengths)
    for number, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        ids, labels = seen[number]
        assert ids == [100 * number + position for position in range(length)]
        # The first token of a document is never a target: it would be predicted from the document before.
        assert labels == [IGNORED if position < max(1, start) else ids[position] for position in range(length)]
