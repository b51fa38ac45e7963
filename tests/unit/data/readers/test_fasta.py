"""FASTA: the grammar is read back, and any text gives what Biopython gives, in blocks of any size."""

import io
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from Bio import SeqIO
from hypothesis import example, given
from hypothesis import strategies as st

from polysome.config import DataError
from polysome.data.readers import fasta, records, stream
from polysome.data.readers.records import Records
from polysome.specs.formats import FastaFormat


class Dribble(io.BytesIO):
    """A file that gives 1 to 7 bytes at a time, as a slow connection may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1 + self.tell() % 7)


def read(content: bytes, block_bytes: int = 1 << 20, *, slow: bool = False) -> list[Records]:
    source = stream._Source("memory://a.fa", Dribble(content) if slow else io.BytesIO(content))
    with patch.object(stream, "_open", return_value=source), stream.open_stream("memory://a.fa") as opened:
        return list(fasta.read(opened, FastaFormat(), block_bytes=block_bytes))


def rows(stretches: list[Records]) -> list[tuple[str, str]]:
    return [tuple(row.values()) for stretch in stretches for row in stretch.columns.to_pylist()]


def numbers(stretches: list[Records]) -> list[int]:
    return [int(number) for stretch in stretches for number in stretch.numbers]


def damaged(stretches: list[Records]) -> list[dict[str, Any]]:
    return [row for stretch in stretches for row in stretch.damaged.to_pylist()]


def biopython(content: bytes) -> list[tuple[str, str]]:
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
    return [(record.description, bytes(record.seq).decode()) for record in SeqIO.parse(text, "fasta")]


HEADERS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12).map(str.rstrip)
SEQUENCES = st.text("ACGTNacgtn*-.>;", max_size=40).map(lambda text: text.lstrip(">"))


@given(
    wanted=st.lists(st.tuples(HEADERS, SEQUENCES), min_size=1, max_size=8),
    width=st.integers(1, 50),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    blank_lines=st.integers(0, 2),
    final=st.booleans(),
    block_bytes=st.integers(1, 60),
    slow=st.booleans(),
)
def test_what_is_written_is_read_back(wanted, width, line_end, blank_lines, final, block_bytes, slow):
    lines: list[str] = []
    for header, sequence in wanted:
        # A wrapped line that began with '>' would be a header.
        pieces = [sequence[start : start + width] for start in range(0, len(sequence), width)]
        if any(piece.startswith(">") for piece in pieces):
            pieces = [sequence]
        lines += ["", *[""] * blank_lines] if lines and blank_lines else []
        lines += [">" + header, *pieces]
    content = (line_end.join(lines) + (line_end if final else "")).encode()
    found = read(content, block_bytes, slow=slow)
    assert rows(found) == wanted
    assert numbers(found) == list(range(len(wanted)))
    assert not damaged(found)


@given(
    text=st.text(st.sampled_from(">AC \t\r\n;|\v\x1cé\xa0\u2028"), max_size=60).map(lambda text: ">" + text),
    block_bytes=st.integers(1, 30),
)
@example(text=">a \n A C\t\n", block_bytes=1)
@example(text=">\r\n>\r>\n", block_bytes=2)
def test_any_text_gives_what_biopython_gives(text, block_bytes):
    assert rows(read(text.encode(), block_bytes)) == biopython(text.encode())


@given(data=st.binary(max_size=60).map(lambda data: b">" + data), block_bytes=st.integers(1, 30))
@example(data=b">a\n\xff\n>b\nAC\n>\xe4\r\nGT\n", block_bytes=4)
def test_bytes_that_are_no_text_are_damage_of_their_record_alone(data, block_bytes):
    found = read(data, block_bytes)
    try:
        assert rows(found) == biopython(data)
    except UnicodeDecodeError:
        assert damaged(found)
    for row in damaged(found):
        assert data[row["offset"] : row["offset"] + 1] == b">"
        assert "not UTF-8" in row["reason"]
    together = sorted(numbers(found) + [row["record"] for row in damaged(found)])
    assert together == list(range(len(biopython(data.decode("latin-1").replace("\x85", "?").encode()))))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\n>a\nAC\n", "blank lines"),
        (b"; a comment\n>a\nAC\n", "begins with '; a comment'"),
        (b"ACGT\n", "begins with 'ACGT'"),
        (b"\xef\xbb\xbf>a\nAC\n", "byte order mark"),
        (b"@a\nAC\n+\nII\n", "as FASTQ does"),
        (b"A\0B\n", "binary content"),
        (b"\n\n", "begins with ''"),
    ],
)
def test_what_biopython_refuses_is_refused_with_file_and_byte(content, what):
    with pytest.raises(ValueError, match="comments at the beginning"):
        biopython(content)
    with pytest.raises(DataError, match=what) as caught:
        read(content)
    assert caught.value.where == "memory://a.fa, byte 0"


def test_a_record_longer_than_a_block_is_one_record():
    sequence = bytes(np.random.default_rng(1).choice(np.frombuffer(b"ACGT\n", np.uint8), 50_000))
    found = read(b">first\nAC\n>long\n" + sequence + b"\n>last\nGT", block_bytes=1000)
    assert rows(found) == [("first", "AC"), ("long", sequence.decode().replace("\n", "")), ("last", "GT")]


def test_stretches_hold_at_most_block_records_and_are_the_same_every_time(monkeypatch):
    monkeypatch.setattr(records, "BLOCK_RECORDS", 4)
    content = b"".join(b">%d\nAC\xff\n" % number if number % 5 == 3 else b">%d\nAC\n" % number for number in range(23))
    found = [[(list(s.numbers), s.damaged["record"].to_pylist()) for s in read(content, slow=slow)] for slow in (0, 1)]
    assert found[0] == found[1]
    assert [sorted(good + bad) for good, bad in found[0]] == [list(range(n, min(n + 4, 23))) for n in range(0, 23, 4)]
    assert [bad for _, bad in found[0]] == [[3], [], [8], [13], [18], []]


def test_more_text_than_a_string_column_holds_is_read_into_a_larger_one(monkeypatch):
    monkeypatch.setattr(records, "LONGEST_COLUMN", 10)
    (stretch,) = read(b">a\nACGT\n>b\nACGTACGT\n")
    assert [str(field.type) for field in stretch.columns.schema] == ["string", "large_string"]
    assert rows([stretch]) == [("a", "ACGT"), ("b", "ACGTACGT")]
