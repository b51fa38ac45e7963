"""Parquet and xlsx: every cell as text that means the same."""

import datetime
import gzip
import json
import math
import os
import zipfile
from decimal import Decimal
from pathlib import Path
from xml.sax.saxutils import escape

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from polysome.config import DataError
from polysome.data.readers.table_files import read_parquet, read_xlsx
from polysome.specs.formats import ExcelFormat, ParquetFormat


def parquet_rows(path: Path, **options: int) -> list[dict[str, str | None]]:
    stretches = list(read_parquet(str(path), ParquetFormat(), **options))
    assert [n for stretch in stretches for n in stretch.numbers] == list(range(sum(len(s.numbers) for s in stretches)))
    return [row for stretch in stretches for row in stretch.columns.to_pylist()]


def test_every_type_of_column_has_a_text_and_nulls_stay_null(tmp_path: Path):
    columns = {
        "integer": [7],
        "double": [0.1],
        "whole": [1.0],
        "single": pa.array([0.1], pa.float32()),
        "truth": [True],
        "empty": [""],
        "category": pa.array(["a"]).dictionary_encode(),
        "date": [datetime.date(2020, 1, 2)],
        "decimal": [Decimal("1.50")],
        "bytes": [b"AC"],
        "list": [[1.5, None]],
        "texts": [['a"b', "é"]],
        "pair": pa.array([[1, 2]], pa.list_(pa.int32(), 2)),
        "object": [{"a": 1, "b": [True]}],
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    }
    table = pa.table(columns)
    parquet.write_table(
        pa.concat_tables([table, pa.table({f.name: pa.nulls(1, f.type) for f in table.schema})]), tmp_path / "x"
    )

    full, absent = parquet_rows(tmp_path / "x")

    assert full == {
        "integer": "7",
        "double": "0.1",
        "whole": "1",
        "single": "0.1",
        "truth": "true",
        "empty": "",
        "category": "a",
        "date": "2020-01-02",
        "decimal": "1.50",
        "bytes": "AC",
        "list": "[1.5,null]",
        "texts": '["a\\"b","é"]',
        "pair": "[1,2]",
        "object": '{"a":1,"b":[true]}',
        "map": '{"k":1}',
    }
    assert set(absent.values()) == {None}


numbers = st.none() | st.floats()
lists = st.lists(st.none() | st.lists(st.none() | st.floats() | st.just(-0.0), max_size=4), min_size=1, max_size=9)


@settings(max_examples=40)
@given(floats=st.lists(numbers, min_size=1, max_size=9), lists=lists, rows=st.integers(1, 9), block=st.integers(1, 200))
def test_numbers_read_back_equal_from_any_stretch(floats, lists, rows, block, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "numbers.parquet"
    count = min(len(floats), len(lists))
    table = pa.table(
        {"x": pa.array(floats[:count], pa.float64()), "list": pa.array(lists[:count], pa.list_(pa.float64()))}
    )
    parquet.write_table(table, path, row_group_size=rows)

    found = parquet_rows(path, block_bytes=block)

    assert repr([None if row["x"] is None else float(row["x"]) for row in found]) == repr(floats[:count])
    assert repr([None if row["list"] is None else json.loads(row["list"], parse_int=float) for row in found]) == repr(
        lists[:count]
    )


def test_stretches_are_bounded_by_bytes_and_not_by_row_groups(tmp_path: Path):
    parquet.write_table(
        pa.table({"x": ["A" * 1000 + str(n) for n in range(1000)]}), tmp_path / "x", use_dictionary=False
    )

    stretches = list(read_parquet(str(tmp_path / "x"), ParquetFormat(), block_bytes=100_000))

    assert max(stretch.columns.nbytes for stretch in stretches) < 120_000
    assert sum(len(stretch.numbers) for stretch in stretches) == 1000


def test_a_gzip_around_the_file_is_taken_off_whatever_its_name(tmp_path: Path):
    parquet.write_table(pa.table({"x": [1]}), tmp_path / "plain")
    (tmp_path / "packed").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))

    assert parquet_rows(tmp_path / "packed") == [{"x": "1"}]


def test_a_file_on_another_store_is_read_too(tmp_path: Path):
    parquet.write_table(pa.table({"x": [1]}), tmp_path / "x")
    with fsspec.open("memory://far.parquet", "wb") as far:
        far.write((tmp_path / "x").read_bytes())

    (stretch,) = read_parquet("memory://far.parquet", ParquetFormat())

    assert stretch.columns.to_pylist() == [{"x": "1"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        (b"<!doctype html><html>", "an HTML page"),
        (b"", "an empty file"),
        (b"a,b\n1,2\n", "not a Parquet file: it begins with b'a,b"),
        (b"PAR1" + b"\0" * 50, "damaged or cut short"),
        (gzip.compress(b"PAR1" * 1000, mtime=0)[:-9], "cut short"),
    ],
)
def test_what_is_no_parquet_file_is_named(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=message):
        parquet_rows(tmp_path / "x")


def test_a_missing_file_and_columns_that_cannot_be_told_apart_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        parquet_rows(tmp_path / "absent")
    parquet.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "x")
    with pytest.raises(DataError, match="two columns are named 'a'"):
        parquet_rows(tmp_path / "x")
    parquet.write_table(pa.table({"a": [b"\xff"]}), tmp_path / "x")
    with pytest.raises(DataError, match="column 'a' of type binary has no text"):
        parquet_rows(tmp_path / "x")


def write_workbook(path: Path, sheets: dict[str, list[list[str]]]) -> str:
    """A minimal xlsx; a cell is `s:text`, `n:number`, `b:truth`, `e:error`, or empty."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    tabs = "".join(
        f'<sheet name="{escape(name)}" sheetId="{index}" r:id="r{index}"/>' for index, name in enumerate(sheets, 1)
    )
    links = "".join(
        f'<Relationship Id="r{index}" Type="{office}/worksheet" Target="worksheets/sheet{index}.xml"/>'
        for index in range(1, len(sheets) + 1)
    )
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="xml" ContentType="application/xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="r1" Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>{tabs}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">{links}</Relationships>',
    }
    for index, rows in enumerate(sheets.values(), 1):
        body = "".join(
            f'<row r="{row}">'
            + "".join(_cell(cell, f"{chr(65 + at)}{row}") for at, cell in enumerate(cells))
            + "</row>"
            for row, cells in enumerate(rows, 1)
        )
        parts[f"xl/worksheets/sheet{index}.xml"] = (
            f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>'
        )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return str(path)


def _cell(cell: str, place: str) -> str:
    kind, _, value = cell.partition(":")
    if kind == "s":
        return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'
    if kind in ("b", "e"):
        return f'<c r="{place}" t="{kind}"><v>{value}</v></c>'
    return f'<c r="{place}"><v>{value}</v></c>' if cell else f'<c r="{place}"/>'


def sheet_rows(url: str, format: ExcelFormat | None = None, **options: int) -> list[dict[str, str | None]]:
    stretches = read_xlsx(url, format or ExcelFormat(), **options)
    return [row for stretch in stretches for row in stretch.columns.to_pylist()]


def test_cells_are_what_excel_holds(tmp_path: Path):
    long = "ACGT" * 8000
    url = write_workbook(
        tmp_path / "x.xlsx",
        {
            "data": [
                ["s:name", "s:value", "s:other", ""],
                ["s:" + long, "n:1", "s: kept ", ""],
                ["s:0012", "n:0.5", "", ""],
                ["", "", "", ""],
                ["s:NA", "n:1E-05", "n:0.30000000000000004", ""],
                ["s:yes", "b:1", "s:x", ""],
                ["", "", "", ""],
            ]
        },
    )
    for block_bytes in (1, 1 << 20):
        assert sheet_rows(url, block_bytes=block_bytes) == [
            {"name": long, "value": "1", "other": " kept "},
            {"name": "0012", "value": "0.5", "other": None},
            {"name": None, "value": None, "other": None},
            {"name": "NA", "value": "1e-05", "other": "0.30000000000000004"},
            {"name": "yes", "value": "true", "other": "x"},
        ]


def test_sheets_by_name_and_position_with_and_without_a_header(tmp_path: Path):
    url = write_workbook(tmp_path / "x.xlsx", {"one": [["s:a"], ["n:1"]], "two & 3": [["n:5"], ["n:6"]]})

    assert sheet_rows(url, ExcelFormat(sheet="one")) == [{"a": "1"}]
    assert sheet_rows(url, ExcelFormat(sheet=1, columns=["x"])) == [{"x": "5"}, {"x": "6"}]
    for sheet in ("three", 2, -1):
        with pytest.raises(DataError, match=r"no sheet .*; the sheets are 'one', 'two & 3'"):
            sheet_rows(url, ExcelFormat(sheet=sheet))


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([["s:a", "s:a"], ["n:1", "n:2"]], None, "the header names 'a' twice"),
        ([["s:a", ""], ["n:1", "n:2"]], None, "column 2 has no name, but a cell in row 2"),
        ([["n:1", "n:2"]], ["a"], "1 columns are declared where the sheet has 2"),
        ([], None, "the sheet is empty"),
    ],
)
def test_a_sheet_without_usable_columns_is_refused(tmp_path: Path, rows, columns, message):
    url = write_workbook(tmp_path / "x.xlsx", {"data": rows})
    with pytest.raises(DataError, match=message):
        sheet_rows(url, ExcelFormat(columns=columns))


def test_a_zip_that_is_no_workbook_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.xlsx", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(DataError, match="damaged, or no xlsx workbook"):
        sheet_rows(str(tmp_path / "x.xlsx"))


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "format", "rows", "labels"),
    [
        ("hiv_cls", ExcelFormat(), 29_394, {"0": 12_228 + 2_564, "1": 12_615 + 1_987}),
        ("cov_cls", ExcelFormat(sheet="Sheet1"), 124_560, {"0": 43_200 + 1_920, "1": 77_430 + 2_010}),
        ("hiv_reg", ExcelFormat(sheet="Sheet1"), 14_995, None),
        ("hiv_reg", ExcelFormat(sheet="Sheet2", columns=["antibody_seq", "virus_seq", "ic50"]), 2_121, None),
    ],
)
def test_the_workbooks_of_antibodies_and_antigens(file, format, rows, labels):
    url = f"{os.environ['POLYSOME_MIRROR']}/antibody_antigen/dataset_{file}.xlsx"
    stretches = list(read_xlsx(url, format))
    table = pa.concat_tables([stretch.columns for stretch in stretches])

    assert table.num_rows == rows
    assert table["virus_seq"].null_count == table["antibody_seq"].null_count == 0
    if labels is None:
        assert all(math.isfinite(float(text)) for text in table["ic50"].to_pylist())
    else:
        assert {row["values"]: row["counts"] for row in table["label"].value_counts().to_pylist()} == labels
