"""Separated values: parity with csv.reader, and every way in which a record can be damaged."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.config import ConfigurationError, DataError
from polysome.data.readers.records import Records
from polysome.data.readers.separated import read
from polysome.data.readers.stream import open_stream
from polysome.specs.formats import CsvFormat


def stretches_of(path: Path, content: bytes, format: CsvFormat, block_bytes: int = 1 << 20) -> list[Records]:
    path.write_bytes(content)
    with open_stream(str(path)) as stream:
        return list(read(stream, format, block_bytes=block_bytes))


def rows_of(stretches: list[Records]) -> list[tuple[str, ...]]:
    return [row for stretch in stretches for row in zip(*(c.to_pylist() for c in stretch.columns.columns), strict=True)]


def damage_of(stretches: list[Records]) -> list[tuple[int, int, str]]:
    return [tuple(row.values()) for stretch in stretches for row in stretch.damaged.to_pylist()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "records.csv"


cells = st.text(alphabet=st.one_of(st.sampled_from(",;\t\"'\r\n ACGT\0"), st.characters(exclude_categories=["Cs"])))


@given(
    data=st.data(),
    width=st.integers(1, 4),
    delimiter=st.sampled_from(",;\t|"),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    mark=st.booleans(),
    block_bytes=st.integers(1, 64),
)
def test_what_csv_writes_is_read_back_in_any_block_size(
    data, width, delimiter, line_end, quoting, mark, block_bytes, tmp_path_factory
):
    rows = data.draw(st.lists(st.tuples(*[cells] * width), max_size=8))
    text = io.StringIO(newline="")
    # csv.writer leaves a CR bare where lines end at LF, and the reverse; csv.reader would then end the line there.
    quoting = quoting if line_end == "\r\n" else csv.QUOTE_ALL
    writer = csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writerows([[f"name {column}" for column in range(width)], *rows])
    content = (b"\xef\xbb\xbf" if mark else b"") + text.getvalue().encode()
    path = tmp_path_factory.getbasetemp() / "written.csv"

    stretches = stretches_of(path, content, CsvFormat(delimiter=delimiter), block_bytes)

    assert rows_of(stretches) == rows
    assert damage_of(stretches) == []
    assert [number for stretch in stretches for number in stretch.numbers] == list(range(len(rows)))


plain = st.text(alphabet='AC,\t "\r\n\0é\ufeff', max_size=60)


@given(text=plain, quote=st.sampled_from(['"', ""]), block_bytes=st.integers(1, 80))
def test_any_text_gives_the_records_of_csv_reader(text, quote, block_bytes, tmp_path_factory):
    """Arrow's way and the careful way are one: records of a wrong width are damaged, all others are equal."""
    dialect = {"quotechar": quote, "strict": True} if quote else {"quoting": csv.QUOTE_NONE}
    try:
        expected = [row for row in csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), **dialect) if row]
    except csv.Error:
        return
    path = tmp_path_factory.getbasetemp() / "any.csv"
    content = text.encode()
    if not content:
        return

    stretches = stretches_of(path, content, CsvFormat(columns=["one", "two"], quote=quote), block_bytes)

    assert rows_of(stretches) == [tuple(row) for row in expected if len(row) == 2]
    numbers = [number for stretch in stretches for number in stretch.numbers]
    assert numbers == [number for number, row in enumerate(expected) if len(row) == 2]
    assert [row[0] for row in damage_of(stretches)] == [n for n, row in enumerate(expected) if len(row) != 2]


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_damaged_records_are_told_with_number_byte_and_reason(file: Path, block_bytes: int):
    lines = [
        b"sequence,label\n",
        "Ä,1\n".encode(),
        b"ACGT\n",
        b"\n",
        b'"AC"GT,1\n',
        b"AC\xffGT,1\n",
        b"ACGT,0,0\n",
        b'"ACGT,1\n',
        b"CC,0\n",
    ]
    stretches = stretches_of(file, b"".join(lines), CsvFormat(), block_bytes)

    starts = [sum(map(len, lines[:index])) for index in range(len(lines))]
    assert rows_of(stretches) == [("Ä", "1"), ("CC", "0")]
    assert [number for stretch in stretches for number in stretch.numbers] == [0, 6]
    assert damage_of(stretches) == [
        (1, starts[2], "1 cells where there are 2 columns"),
        (2, starts[4], "',' expected after '\"'"),
        (3, starts[5], "bytes that are not utf-8"),
        (4, starts[6], "3 cells where there are 2 columns"),
        (5, starts[7], "a quote that is not closed"),
    ]


def test_a_stray_quote_costs_one_line_and_not_those_up_to_the_next_quote(file: Path):
    stretches = stretches_of(file, b'a,b\n1,"open\n2,x\n3,"closed"\n4,y\n', CsvFormat())

    assert rows_of(stretches) == [("2", "x"), ("3", "closed"), ("4", "y")]
    assert [row[:2] for row in damage_of(stretches)] == [(0, 4)]


def test_the_column_of_row_numbers_that_data_frames_write_needs_no_name(file: Path):
    (stretch,) = stretches_of(file, b",sequence\n7,AC\n", CsvFormat())

    assert stretch.columns.to_pylist() == [{"": "7", "sequence": "AC"}]


def test_header_less_files_skipped_lines_and_quotes_as_ordinary_characters(file: Path):
    format = CsvFormat(delimiter="\t", columns=["name", "value"], skip_lines=2, quote="")

    assert rows_of(stretches_of(file, b'# one\n"\r\n5\'\t"3\n', format)) == [("5'", '"3')]


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_a_run_of_blanks_separates(file: Path, block_bytes: int):
    content = b'  id   seq \n a1 \t ACGT\n"a 2"  "say ""A"""\r\n\n   \nb3\nc4 "AC\nd5 "A"C\n'
    stretches = stretches_of(file, content, CsvFormat(delimiter=" "), block_bytes)

    assert rows_of(stretches) == [("a1", "ACGT"), ("a 2", 'say "A"')]
    assert [row[0] for row in damage_of(stretches)] == [2, 3, 4]
    assert damage_of(stretches)[0][1] == content.index(b"b3")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_other_encodings(file: Path, encoding: str):
    stretches = stretches_of(file, "näme,b\né,\u20ac\n".encode(encoding), CsvFormat(encoding=encoding), 3)

    assert rows_of(stretches) == [("é", "\u20ac")]
    assert stretches[0].columns.column_names == ["näme", "b"]


def test_a_byte_that_the_encoding_lacks_damages_its_record(file: Path):
    stretches = stretches_of(file, b"a,b\n\x81,1\n\xe9,2\n", CsvFormat(encoding="cp1252"))

    assert rows_of(stretches) == [("é", "2")]
    assert damage_of(stretches) == [(0, -1, "bytes that are not cp1252")]


@pytest.mark.parametrize(
    ("content", "format", "message"),
    [
        (b"sequence,\nAC,0\n", CsvFormat(), "column 2 of 2 has no name in the header"),
        (b"a,b,a\n", CsvFormat(), "the header names 'a' twice"),
        (b'"a,b\n1,2\n', CsvFormat(), "the header cannot be read: a quote that is not closed"),
        (b"a,\xff\n1,2\n", CsvFormat(), "the header cannot be read: bytes that are not utf-8"),
        (b"\n\n", CsvFormat(), "there is no header line"),
        (b"a\n", CsvFormat(skip_lines=1), "there is no header line"),
        (b"a,b\n", CsvFormat(columns=["a", "a"]), "the spec names 'a' twice"),
        ("a,b\n".encode("utf-16") + b"\x00\xdc", CsvFormat(encoding="utf-16"), "the content is not utf-16"),
    ],
)
def test_a_file_without_usable_columns_is_refused(file: Path, content: bytes, format: CsvFormat, message: str):
    with pytest.raises(DataError, match=message) as caught:
        stretches_of(file, content, format)
    assert str(file) in caught.value.where


def test_an_unknown_encoding_is_a_wrong_spec(file: Path):
    with pytest.raises(ConfigurationError, match="unknown encoding 'utf-9'"):
        stretches_of(file, b"a\n", CsvFormat(encoding="utf-9"))


def test_a_cell_may_be_longer_than_a_block_and_than_pythons_default(file: Path):
    gene = "ACGT" * 50_000
    stretches = stretches_of(file, f'a,b\n"{gene}",1\n{gene},2\n'.encode(), CsvFormat(), 1000)

    assert rows_of(stretches) == [(gene, "1"), (gene, "2")]


def test_stretches_are_bounded_in_records_and_numbered_over_the_file(file: Path):
    content = b"a,b\n" + b"1,2\n" * 70_000 + b"3\n" + b'"4",5\n' * 40_000
    stretches = stretches_of(file, content, CsvFormat(), 200_000)

    assert max(len(stretch.numbers) + stretch.damaged.num_rows for stretch in stretches) <= 32_768
    numbers = [number for stretch in stretches for number in stretch.numbers]
    assert numbers == [number for number in range(110_001) if number != 70_000]
    assert damage_of(stretches) == [(70_000, 4 + 4 * 70_000, "1 cells where there are 2 columns")]
