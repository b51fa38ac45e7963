"""JSON and JSON Lines: what stands in the file is what stands in the cell."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.config import DataError
from polysome.data.readers.json_records import json_text, loads, read_document, read_lines
from polysome.data.readers.records import Records
from polysome.data.readers.stream import open_stream
from polysome.specs.formats import JsonFormat, JsonLinesFormat


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., list[Records]]:
    def read(content: bytes, block_bytes: int = 1 << 20) -> list[Records]:
        (tmp_path / "x.jsonl").write_bytes(content)
        with open_stream(str(tmp_path / "x.jsonl")) as stream:
            return list(read_lines(stream, JsonLinesFormat(), block_bytes=block_bytes))

    return read


@pytest.fixture
def document(tmp_path: Path) -> Callable[..., list[Records]]:
    def read(content: object, records: str = "") -> list[Records]:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "x.json").write_bytes(text)
        with open_stream(str(tmp_path / "x.json")) as stream:
            return list(read_document(stream, JsonFormat(records=records)))

    return read


def test_values_are_text_with_the_digits_that_were_written(lines):
    (stretch,) = lines(
        b'{"a": 1.50, "b": "AC\\u00e9", "c": true, "d": null, "e": [1.0, "x\\"", {"f": 1E5}]}\r\n'
        b'{"a": NaN, "b": "", "c": -0, "d": 123456789012345678901234567890, "e": {}}\n'
    )
    assert stretch.columns.to_pylist() == [
        {"a": "1.50", "b": "ACé", "c": "true", "d": None, "e": '[1.0,"x\\"",{"f":1E5}]'},
        {"a": "NaN", "b": "", "c": "-0", "d": "123456789012345678901234567890", "e": "{}"},
    ]


def test_a_missing_key_is_null_and_a_late_key_is_a_column_from_there_on(lines):
    stretches = lines(b'\xef\xbb\xbf{"a": 1}\n\n{"b": 2}\n{"c": 3}\n', block_bytes=12)

    assert [stretch.columns.to_pylist() for stretch in stretches] == [
        [{"a": "1"}],
        [{"a": None, "b": "2"}],
        [{"a": None, "b": None, "c": "3"}],
    ]


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_a_broken_line_is_one_damaged_record(lines, block_bytes):
    content = [
        b'{"a": 1}\n',
        b'{"a": \n',
        b"\n",
        b"[1]\n",
        b'{"a": "\xff"}\n',
        b'{"a": {"b": 1, "b": 2}}\n',
        b'{"a": "\\ud800"}\n',
        b'{"a": ' + b"[" * 100_000 + b"\n",
        b'{"a": 2}\n',
        b'{"a": 3',
    ]
    stretches = lines(b"".join(content), block_bytes)
    starts = [sum(map(len, content[:index])) for index in range(len(content))]

    assert [row["a"] for stretch in stretches for row in stretch.columns.to_pylist()] == ["1", "2"]
    assert [number for stretch in stretches for number in stretch.numbers] == [0, 7]
    damaged = [row for stretch in stretches for row in stretch.damaged.to_pylist()]
    assert [(row["record"], row["offset"]) for row in damaged] == [
        (1, starts[1]),
        (2, starts[3]),
        (3, starts[4]),
        (4, starts[5]),
        (5, starts[6]),
        (6, starts[7]),
        (8, starts[9]),
    ]
    assert [row["reason"] for row in damaged] == [
        "not JSON: Expecting value at character 7",
        "a list where an object is expected",
        "bytes that are not UTF-8",
        "an object names 'b' twice",
        "a text with half a surrogate pair",
        "nested too deeply",
        "not JSON: Expecting ',' delimiter at character 8",
    ]


def test_objects_without_keys_are_records(lines):
    (stretch,) = lines(b"{}\n{}\n")

    assert list(stretch.numbers) == [0, 1]
    assert stretch.columns.num_rows == 2


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=values)
def test_json_text_keeps_every_digit(value):
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    assert json_text(loads(json.dumps(value))) == compact


def test_a_list_at_a_path_and_an_object_of_objects(document):
    (stretch,) = document({"data": {"rows": [{"a": 1}, 7, {"b": [2]}]}}, "data.rows")
    assert stretch.columns.to_pylist() == [{"a": "1", "b": None}, {"a": None, "b": "[2]"}]
    assert stretch.damaged.to_pylist() == [
        {"record": 1, "offset": -1, "reason": "the number 7 where an object is expected"}
    ]

    (stretch,) = document({"P1": {"seq": "MK"}, "P2": {"seq": "MV"}})
    assert stretch.columns.to_pylist() == [{"key": "P1", "seq": "MK"}, {"key": "P2", "seq": "MV"}]


@pytest.mark.parametrize(
    ("content", "records", "message"),
    [
        ({"data": {"rows": []}}, "data.row", "no 'row' at data of the document, where there is: keys rows"),
        ({"data": [1, 2]}, "data", "data holds no objects"),
        ({"data": [{}]}, "", "the document holds no objects; its keys are data"),
        ({"a": {"key": 1}}, "", "the record 'a' has a value named 'key'"),
        (b'{"a": 1}\n{"a": 2}\n', "", "not JSON: Extra data"),
        (b'[{"a": 1}, {"a"', "", "not JSON"),
        (b'[{"a": 1, "a": 2}]', "", "names 'a' twice"),
    ],
)
def test_a_document_without_records_is_refused_with_what_there_is(document, content, records, message):
    with pytest.raises(DataError, match=message):
        document(content, records)


def test_the_byte_of_a_broken_document_is_named(document):
    with pytest.raises(DataError) as caught:
        document('[{"a": "é"}, x]'.encode())
    assert caught.value.where.endswith(", byte 14")
