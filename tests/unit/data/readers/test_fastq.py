"""FASTQ: the grammar is read back, what Biopython refuses is set aside, and nothing is lost when it is."""

import io
from typing import Any
from unittest.mock import patch

import pytest
from Bio.SeqIO.QualityIO import FastqGeneralIterator
from hypothesis import example, given
from hypothesis import strategies as st

from polysome.config import DataError
from polysome.data.readers import fastq, stream
from polysome.data.readers.records import Records
from polysome.specs.formats import FastqFormat


class Dribble(io.BytesIO):
    """A file that gives 1 to 7 bytes at a time, as a slow connection may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1 + self.tell() % 7)


def read(content: bytes, block_bytes: int = 1 << 20, *, slow: bool = False) -> list[Records]:
    source = stream._Source("memory://a.fq", Dribble(content) if slow else io.BytesIO(content))
    with patch.object(stream, "_open", return_value=source), stream.open_stream("memory://a.fq") as opened:
        return list(fastq.read(opened, FastqFormat(), block_bytes=block_bytes))


def rows(stretches: list[Records]) -> list[tuple[str, str, str]]:
    return [tuple(row.values()) for stretch in stretches for row in stretch.columns.to_pylist()]


def numbers(stretches: list[Records]) -> list[int]:
    return [int(number) for stretch in stretches for number in stretch.numbers]


def damaged(stretches: list[Records]) -> list[dict[str, Any]]:
    return [row for stretch in stretches for row in stretch.damaged.to_pylist()]


def biopython(content: bytes) -> tuple[list[tuple[str, str, str]], bool]:
    """The records that Biopython gives, and whether it then refuses; `SeqIO` also refuses the qualities below."""
    found = []
    try:
        for record in FastqGeneralIterator(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")):
            if any(not 33 <= ord(character) <= 126 for character in record[2]):
                return found, True
            found.append(record)
    except (ValueError, UnicodeDecodeError):
        return found, True
    return found, False


def wrap(text: str, width: int) -> list[str]:
    return [text[start : start + width] for start in range(0, len(text), width)] or [""]


HEADERS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12).map(str.rstrip)
QUALITIES = st.text("@+!~IAC", max_size=24)


@given(
    qualities=st.lists(st.tuples(HEADERS, QUALITIES), min_size=1, max_size=8),
    width=st.integers(1, 40),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    repeated=st.booleans(),
    blank_lines=st.integers(0, 2),
    final=st.booleans(),
    block_bytes=st.integers(1, 90),
    slow=st.booleans(),
)
def test_what_is_written_is_read_back(qualities, width, line_end, repeated, blank_lines, final, block_bytes, slow):
    wanted = [
        (header, "ACGTN-.acgtn*"[: len(quality)].ljust(len(quality), "T"), quality) for header, quality in qualities
    ]
    lines: list[str] = []
    for header, sequence, quality in wanted:
        lines += ["@" + header, *wrap(sequence, width), "+" + header * repeated, *wrap(quality, width)]
        lines += [""] * blank_lines
    # A last quality that is empty exists through the end of its line alone.
    final = final or not lines[-1]
    found = read((line_end.join(lines) + (line_end if final else "")).encode(), block_bytes, slow=slow)
    assert rows(found) == wanted
    assert numbers(found) == list(range(len(wanted)))
    assert not damaged(found)


FILE = b"".join(b"@r%d\n%s\n+\n%s\n" % (n, b"ACGTAC"[: 3 + n % 4], b"I@+IAI"[: 3 + n % 4]) for n in range(6))
EDITS = st.tuples(
    st.integers(0, len(FILE)), st.integers(0, 12), st.sampled_from([b"", b"\n", b"@", b"+", b" ", b"A", b"\x7f"])
)


@given(edits=st.lists(EDITS, min_size=1, max_size=3), block_bytes=st.integers(1, 90))
@example(edits=[(30, 0, b"@x\n")], block_bytes=8)
def test_where_biopython_gives_records_so_do_we_and_where_it_refuses_we_set_aside(edits, block_bytes):
    content = FILE
    for place, length, text in edits:
        content = content[:place] + text + content[place + length :]
    expected, fails = biopython(content)
    # Stricter than Biopython in one thing: no line of a sequence begins with '@'.
    stricter = any("@" in sequence for _, sequence, _ in expected)
    try:
        found = read(content, block_bytes)
    except DataError:
        assert fails or stricter
        return
    good, bad = rows(found), damaged(found)
    assert bool(bad) == fails or stricter
    before = min([row["record"] for row in bad], default=len(good))
    assert good[:before] == expected[:before]
    assert bad or good == expected
    assert sorted(numbers(found) + [row["record"] for row in bad]) == list(range(len(good) + len(bad)))
    assert [row["offset"] for row in bad] == sorted({row["offset"] for row in bad})
    at_once = read(content)
    assert (good, bad) == (rows(at_once), damaged(at_once))


WHOLE = [f"@r{number}\nACGTACGT\n+\nII@IIIII\n" for number in range(6)]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("@x\nACGTACGT\n+\nIIIII\n", "its quality has 5 characters, its sequence 8"),
        ("@x\nACGTACGT\n+\n@IIII\n", "its quality has 5 characters, its sequence 8"),
        ("@x\nACGTACGT\n+\nIIIIIIIIII\n", "its quality has 10 characters, its sequence 8"),
        ("@x\nACGTACGT\nIIIIIIII\n", "a line that begins with '@' stands before its '+' line"),
        ("@x\nACG", "a line that begins with '@' stands before its '+' line"),
        ("@x\nACGTACGT\n+y\nIIIIIIII\n", "its '+' line repeats another title: 'y'"),
        ("@x\nACG TACG\n+\nIIIIIIII\n", "its sequence holds a blank"),
        ("@x\nACGTACGT\n+\nIIII\x7fIII\n", "which is outside ASCII 33 to 126"),
        ("@x\nACGT\u00c4CGT\n+\nIIIIIIII\n", "its quality has 8 characters, its sequence 9"),
        ("@x\nACGT\u00c4CGT\n+\nIIIIIIIII\n", "not ASCII"),
    ],
)
@pytest.mark.parametrize("place", [0, 3, 6])
@pytest.mark.parametrize("block_bytes", [5, 1000])
def test_one_damaged_record_is_set_aside_alone(record, reason, place, block_bytes):
    record = record if record.endswith("\n") or place == 6 else record + "\n"
    found = read("".join([*WHOLE[:place], record, *WHOLE[place:]]).encode(), block_bytes)
    (bad,) = damaged(found)
    if place < 6:
        assert reason in bad["reason"]
    assert (bad["record"], bad["offset"]) == (place, sum(map(len, WHOLE[:place])))
    assert numbers(found) == [number for number in range(7) if number != place]
    assert [header for header, _, _ in rows(found)] == [f"r{number}" for number in range(6)]


def test_two_damaged_records_in_a_row_are_two():
    broken = "@x\nACGT\n+\nII\n@y\nACGT\n+\nII\n"
    found = read("".join([*WHOLE[:2], broken, *WHOLE[2:]]).encode())
    assert [(row["record"], row["offset"]) for row in damaged(found)] == [(2, 48), (3, 61)]
    assert numbers(found) == [0, 1, 4, 5, 6, 7]


@pytest.mark.parametrize("ending", ["@x", "@x\nAC", "@x\nACGT\n", "@x\nACGT\n+", "@x\nACGT\n+\n", "@x\nACGT\n+\n@I"])
def test_a_record_that_the_file_ends_within_is_damaged(ending):
    found = read(("".join(WHOLE) + ending).encode(), block_bytes=7)
    assert numbers(found) == list(range(6))
    (bad,) = damaged(found)
    assert (bad["record"], bad["offset"]) == (6, sum(map(len, WHOLE)))
    assert "the file ends" in bad["reason"]


def test_where_the_next_record_is_not_certain_the_file_is_refused():
    """Wrapped qualities may look like headers: after damage nothing tells which they are."""
    wrapped = "@{0}\nACGT\nACGT\n+\nIIII\n@{0}x\n"
    content = "".join([wrapped.format("r0"), "@x\nACGTACGT\n+\nII\n", wrapped.format("r1"), wrapped.format("r2")])
    with pytest.raises(DataError, match="it is not certain where the next one begins") as caught:
        read(content.encode())
    assert caught.value.where == f"memory://a.fq, byte {len(wrapped.format('r0'))}"


def test_what_does_not_begin_with_a_record_is_refused():
    with pytest.raises(DataError, match="begins with '>a', not with '@'"):
        read(b">a\nACGT\n")
