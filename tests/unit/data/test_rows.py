"""Compact rows: what they mean when they are expanded, and that Parquet gives them back."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import token_documents

from polysome.data.pack import pack
from polysome.data.rows import count_targets, expand, read_rows, write_rows
from polysome.data.schema import IGNORED, PACKED

documents_strategy = st.lists(
    st.lists(st.integers(0, 99) | st.integers(0, 2**24), min_size=1, max_size=20).flatmap(
        lambda ids: st.tuples(st.just(ids), st.integers(0, len(ids) + 1))
    ),
    max_size=40,
)


def packed(documents, max_length=24):
    return pack(token_documents([ids for ids, _ in documents], [start for _, start in documents]), max_length)


def reference_expand(rows, max_length, pad_id):
    """Token by token."""
    expanded = []
    for row in rows.to_pylist():
        ids = [pad_id] * max_length
        labels, positions, segments = [IGNORED] * max_length, [0] * max_length, [0] * max_length
        place = 0
        for segment, (length, start) in enumerate(zip(row["lengths"], row["target_starts"], strict=True), 1):
            for position in range(length):
                ids[place] = row["input_ids"][place]
                labels[place] = ids[place] if position >= start and position > 0 else IGNORED
                positions[place] = position
                segments[place] = segment
                place += 1
        expanded.append((ids, labels, positions, segments))
    return np.array(expanded, np.int32).reshape(-1, 4, max_length).swapaxes(0, 1)


@given(documents_strategy)
@settings(max_examples=50)
def test_expanded_rows_are_those_of_the_plain_definition(documents):
    rows = packed(documents)
    found = expand(rows, 24, pad_id=-7)
    matrices = (found.input_ids, found.labels, found.position_ids, found.segment_ids)
    assert all(matrix.dtype == np.int32 for matrix in matrices)
    assert np.array_equal(np.stack(matrices), reference_expand(rows, 24, -7))
    assert np.array_equal(found.tokens, (found.segment_ids > 0).sum(1))
    assert np.array_equal(found.targets, (found.labels != IGNORED).sum(1))
    assert found.tokens.dtype == found.targets.dtype == np.int64
    assert len(found) == rows.num_rows


def test_slices_and_chunks_expand_to_the_same_rows():
    rows = packed([([number] * (1 + number % 20), number % 3) for number in range(60)])
    whole = expand(rows, 24, 0)
    chosen = [3, 0, 5, 5]
    pieces = expand(pa.concat_tables([rows.slice(number, 1) for number in chosen]), 24, 0)
    for name in ("input_ids", "labels", "position_ids", "segment_ids", "tokens", "targets"):
        assert np.array_equal(getattr(pieces, name), getattr(whole, name)[chosen])


def test_a_row_that_is_too_long_does_not_run_into_the_next():
    rows = packed([([1] * 20, 0), ([2] * 20, 0)])
    with pytest.raises(ValueError, match="20 tokens does not fit into 16"):
        expand(rows, 16, 0)


def test_targets_of_a_document():
    assert count_targets(np.array([5, 5, 5, 5, 1]), np.array([0, 1, 3, 6, 0])).tolist() == [4, 4, 2, 0, 0]


@given(documents_strategy, st.integers(1, 7))
@settings(max_examples=30)
def test_parquet_gives_the_rows_back(documents, batch_rows):
    rows = packed(documents)
    content = io.BytesIO()
    write_rows(rows, content)
    tables = list(read_rows(pa.BufferReader(content.getvalue()), batch_rows=batch_rows))
    assert all(table.num_rows <= batch_rows and table.schema.equals(PACKED) for table in tables)
    assert pa.concat_tables([PACKED.empty_table(), *tables]).to_pylist() == rows.to_pylist()
    # Without this project, as docs/datasets.md says: a binary column for every byte of an id.
    stored = pq.read_table(pa.BufferReader(content.getvalue())).to_pylist()
    for row, expected in zip(stored, rows.to_pylist(), strict=True):
        planes = [np.frombuffer(row[name], np.uint8).astype(int) for name in sorted(row) if ".byte" in name]
        assert sum(plane << 8 * number for number, plane in enumerate(planes)).tolist() == expected["input_ids"]


@pytest.mark.parametrize(("symbols", "most"), [(30, 0.7), (4096, 1.56)])
def test_stored_rows_are_small(symbols, most):
    """Bytes per token, of ids without any order: 0.61 and 1.5 would be the best that any code does."""
    ids = np.random.default_rng(0).integers(0, symbols, (1000, 1000))
    content = io.BytesIO()
    write_rows(packed([(row.tolist(), 0) for row in ids], 1000), content)
    assert len(content.getvalue()) <= most * ids.size
