"""Flat files: entries come out as Biopython gives them; what is cut, empty or out of place is set aside, never lost."""

import io
from typing import Any, Literal
from unittest.mock import patch

import pytest
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord

from polysome.config import DataError
from polysome.data.readers import flatfile, records, stream
from polysome.data.readers.records import Records
from polysome.specs.formats import FlatFileFormat

Kind = Literal["genbank", "embl", "swissprot"]


def read(content: bytes, kind: Kind = "genbank", block_bytes: int = 1 << 20) -> list[Records]:
    source = stream._Source("memory://a.gb", io.BytesIO(content))
    with patch.object(stream, "_open", return_value=source), stream.open_stream("memory://a.gb") as opened:
        return list(flatfile.read(opened, FlatFileFormat(kind=kind), block_bytes=block_bytes))


def rows(stretches: list[Records]) -> list[dict[str, Any]]:
    return [row for stretch in stretches for row in stretch.columns.to_pylist()]


def damaged(stretches: list[Records]) -> list[tuple[int, int, str]]:
    return [tuple(row.values()) for stretch in stretches for row in stretch.damaged.to_pylist()]


def entry(number: int, kind: str = "genbank", sequence: str = "ACGTACGTAC" * 13) -> bytes:
    record = SeqRecord(Seq(sequence), id=f"X{number}.1", name=f"X{number}", description=f"number {number}")
    record.annotations = {"molecule_type": "DNA", "organism": "Homo sapiens", "accessions": [f"X{number}"]}
    text = io.StringIO()
    SeqIO.write(record, text, kind)
    return text.getvalue().encode()


SWISSPROT = b"""ID   TEST_HUMAN              Reviewed;           7 AA.
AC   P00001; P00002;
DT   01-JAN-1988, integrated into UniProtKB/Swiss-Prot.
DE   RecName: Full=Test;
OS   Homo sapiens (Human).
SQ   SEQUENCE   7 AA;  800 MW;  0123456789ABCDEF CRC64;
     MKV LLA W
//
"""


@pytest.mark.parametrize("kind", ["genbank", "embl"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("block_bytes", [1, 37, 1 << 20])
def test_columns_are_those_that_biopython_gives(kind, line_end, block_bytes):
    content = b"".join(entry(number, kind) for number in range(3)).replace(b"\n", line_end)
    found = read(content, kind, block_bytes)
    assert rows(found) == [
        {
            "id": f"X{number}.1",
            "accession": f"X{number}",
            "description": f"number {number}",
            "organism": "Homo sapiens",
            "molecule_type": "DNA",
            "sequence": "ACGTACGTAC" * 13,
        }
        for number in range(3)
    ]
    assert [int(number) for stretch in found for number in stretch.numbers] == [0, 1, 2]
    assert not damaged(found)


def test_swissprot_entries():
    (row,) = rows(read(SWISSPROT, "swissprot"))
    assert row == {
        "id": "P00001",
        "accession": "P00001",
        "description": "RecName: Full=Test;",
        "organism": "Homo sapiens (Human)",
        "molecule_type": "protein",
        "sequence": "MKVLLAW",
    }
    assert len(rows(read(SWISSPROT + b"\n" + SWISSPROT, "swissprot"))) == 2


FIRST, BROKEN, LAST = entry(0), entry(1), entry(2)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (BROKEN.replace(b"//\n", b""), "no // ends it before the next entry"),
        (BROKEN.replace(b"LOCUS ", b"OCUS "), "does not begin with 'LOCUS'"),
        (BROKEN.replace(b"       61 acgtacgtac", b"       61 acgt"), "declares a length of 130 and holds 124 letters"),
        (BROKEN[: BROKEN.index(b"ORIGIN")] + b"CONTIG      join(A1.1:1..130)\n//\n", "it holds no sequence"),
        (BROKEN.replace(b"number 1", b"number \xe4"), "not UTF-8"),
        (BROKEN.replace(b"     1 acgt", b"     1acgtt"), "Biopython: ValueError"),
        (BROKEN[: BROKEN.index(b"FEATURES")] + b"//\n", "Biopython: ValueError: Premature end of sequence data marker"),
        (b"a line that is no entry's\n", "does not begin with 'LOCUS'"),
    ],
)
@pytest.mark.parametrize("block_bytes", [50, 1 << 20])
def test_one_damaged_entry_is_set_aside_alone(broken, reason, block_bytes):
    found = read(FIRST + broken + LAST, block_bytes=block_bytes)
    assert [row["id"] for row in rows(found)] == ["X0.1", "X2.1"]
    assert [int(number) for stretch in found for number in stretch.numbers] == [0, 2]
    ((number, offset, said),) = damaged(found)
    assert (number, offset) == (1, len(FIRST))
    assert reason in said


@pytest.mark.parametrize("kept", [12, 200, len(LAST) - 4])
def test_an_entry_that_the_file_ends_within_is_damaged(kept):
    """Biopython would give its sequence as far as it goes."""
    found = read(FIRST + LAST[:kept])
    assert [row["id"] for row in rows(found)] == ["X0.1"]
    assert damaged(found) == [(1, len(FIRST), "the file ends before its //")]


def test_a_heading_is_left_out_and_a_file_without_entries_is_refused():
    heading = b"GBVRL1.SEQ          Genetic Sequence Data Bank\n\n        3 loci\n\n"
    assert [row["id"] for row in rows(read(heading + FIRST + b"\n//\n\n"))] == ["X0.1"]
    for content, kind in ((heading, "genbank"), (b">a\nACGT\n", "embl"), (heading, "swissprot")):
        with pytest.raises(DataError, match="no entry, which would begin with") as caught:
            read(content, kind)
        assert caught.value.where == "memory://a.gb, byte 0"


def test_stretches_hold_at_most_block_bytes_and_block_records(monkeypatch):
    content = b"".join(map(entry, range(6)))
    assert [len(stretch.numbers) for stretch in read(content, block_bytes=2 * len(FIRST))] == [2, 2, 2]
    monkeypatch.setattr(flatfile, "BLOCK_RECORDS", 4)
    monkeypatch.setattr(records, "BLOCK_RECORDS", 4)
    assert [list(stretch.numbers) for stretch in read(content)] == [[0, 1, 2, 3], [4, 5]]
