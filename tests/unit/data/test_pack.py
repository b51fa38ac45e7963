"""Packing: no document is lost, cut or mixed with another, in one shard or in a stream, and rows are full."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import token_documents

from polysome.data.pack import StreamingPacker, pack
from polysome.data.planning import plan
from polysome.data.schema import PACKED, TOKENS

lengths_strategy = st.lists(st.integers(1, 64), max_size=200)


def make_documents(lengths, target_starts):
    return token_documents([[1000 * n + p for p in range(length)] for n, length in enumerate(lengths)], target_starts)


def unpacked(rows):
    """Document number -> (ids, target start), from ids that `make_documents` made; checks the counts on the way."""
    found = {}
    for row in rows.to_pylist():
        assert row["tokens"] == len(row["input_ids"]) == sum(row["lengths"])
        assert row["documents"] == len(row["lengths"]) == len(row["target_starts"])
        # The first token of a document is never a target: it would be predicted from the document before.
        pairs = list(zip(row["lengths"], row["target_starts"], strict=True))
        assert row["targets"] == sum(max(0, length - max(1, start)) for length, start in pairs)
        ends = np.cumsum(row["lengths"])
        for end, (length, start) in zip(ends, pairs, strict=True):
            ids = row["input_ids"][end - length : end]
            assert ids[0] // 1000 not in found
            found[ids[0] // 1000] = (ids, start)
    return found


def assert_all_given_back(rows, documents):
    assert rows.schema.equals(PACKED)
    expected = {
        number: (row["input_ids"], row["target_start"])
        for number, row in zip(map(int, documents["id"].to_pylist()), documents.to_pylist(), strict=True)
    }
    assert unpacked(rows) == expected


@given(lengths_strategy, st.data())
@settings(max_examples=50)
def test_packed_rows_give_every_document_back(lengths, data):
    documents = make_documents(lengths, [data.draw(st.integers(0, length)) for length in lengths])
    assert_all_given_back(pack(documents, 64), documents)


def test_documents_may_come_in_chunks_and_slices():
    documents = make_documents([5, 3, 8, 2, 7, 1, 6], [0, 1, 2, 0, 7, 0, 3])
    pieces = pa.concat_tables([documents.slice(1, 2), documents.slice(5), documents.slice(3, 1)])
    assert_all_given_back(pack(pieces, 8), pieces)
    assert_all_given_back(pack(documents.slice(2, 3), 8), documents.slice(2, 3))
    # Values that begin within their buffer, as those of a table that was cut elsewhere may.
    values = pa.array([9, 9, 0, 1, 1000, 1001, 1002], pa.int32())[2:]
    cut = pa.table([["0", "1"], pa.ListArray.from_arrays(pa.array([0, 2, 5], pa.int32()), values), [0, 0]], TOKENS)
    assert_all_given_back(pack(cut, 8), cut)


def test_an_order_is_that_of_documents_that_were_moved():
    generator = np.random.default_rng(0)
    documents = make_documents(generator.integers(1, 9, 100).tolist(), generator.integers(0, 9, 100).tolist())
    order = generator.permutation(100)
    assert pack(documents, 16, order=order).equals(pack(documents.take(pa.array(order)), 16))
    assert not pack(documents, 16, order=order).equals(pack(documents, 16))


@pytest.mark.parametrize("length", [0, 9])
def test_a_document_that_no_row_holds_is_refused(length):
    documents = token_documents([[1, 2], [1] * length], [0, 0])
    with pytest.raises(ValueError, match=r"in 1\.\.8"):
        pack(documents, 8)
    packer = StreamingPacker(8)
    with pytest.raises(ValueError, match=r"in 1\.\.8"):
        packer.add(documents)
    assert packer.flush().num_rows == 0


@given(lengths_strategy, st.integers(1, 40), st.lists(st.integers(0, 60), max_size=8))
@settings(max_examples=80)
def test_a_stream_gives_every_document_back_once_however_it_is_cut(lengths, buffer_documents, cuts):
    documents = make_documents(lengths, [0] * len(lengths))
    whole = StreamingPacker(64, buffer_documents=buffer_documents)
    rows = pa.concat_tables([whole.add(documents), whole.flush()])
    assert_all_given_back(rows, documents)

    pieces = StreamingPacker(64, buffer_documents=buffer_documents)
    edges = [0, *sorted(min(cut, len(lengths)) for cut in cuts), len(lengths)]
    parts = [pieces.add(documents.slice(a, b - a)) for a, b in pairwise(edges)]
    assert pa.concat_tables([*parts, pieces.flush()]).to_pylist() == rows.to_pylist()


def test_no_document_of_a_stream_waits_for_ever():
    packer = StreamingPacker(100, buffer_documents=10)
    # Sixty positions of a hundred: no two share a row, and no row is ever full.
    documents = token_documents([[number] * 60 for number in range(40)], [0] * 40)
    emitted = [row[0] for row in packer.add(documents)["input_ids"].to_pylist()]
    assert set(emitted) == set(range(30))


@pytest.mark.parametrize("capacity", [1024, 1200])
@pytest.mark.parametrize(("mean", "spread"), [(340, 0.7), (500, 0.6), (900, 1.0)])
def test_rows_are_full(capacity, mean, spread):
    """Chats and corpus documents: planned together at least 99.5 % filled, in a stream at least 98.5 %."""
    draw = np.random.default_rng(5).lognormal(np.log(mean) - spread**2 / 2, spread, 20_000)
    lengths = np.clip(np.rint(draw), 1, capacity).astype(np.int64)
    assert lengths.sum() >= 0.995 * len(plan(lengths, capacity)) * capacity

    ids = pa.ListArray.from_arrays(np.append(0, np.cumsum(lengths)).astype(np.int32), np.zeros(lengths.sum(), np.int32))
    starts = pa.array(np.zeros(len(lengths), np.int32))
    documents = pa.table({"id": pa.array(lengths.astype(str).astype(object)), "input_ids": ids, "target_start": starts})
    packer = StreamingPacker(capacity)
    rows = packer.add(documents).num_rows + packer.flush().num_rows
    assert lengths.sum() >= 0.985 * rows * capacity
