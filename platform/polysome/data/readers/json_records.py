"""JSON and JSON Lines: a record per object, every value as text, numbers with the digits that were written."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from polysome.config import DataError
from polysome.data.readers.lines import whole_lines
from polysome.data.readers.records import BLOCK_BYTES, BLOCK_RECORDS, Damage, Records, stretches
from polysome.data.readers.stream import Stream
from polysome.specs.formats import JsonFormat, JsonLinesFormat

LARGEST_DOCUMENT = 2 << 30
"""Bytes of a JSON document above which it is refused, because it is held whole in several times its size."""

KEY_COLUMN = "key"


def read_lines(stream: Stream, format: JsonLinesFormat, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Records]:
    """JSON Lines: one object a line, a column per key in the order in which keys first stand in the file.

    A null, and a key that a record lacks, is null; a key that first stands in a later stretch is a column from there
    on. Texts stand as they are, numbers with their digits (`1.50`), `true`, `false` and `NaN` as they are written,
    lists and objects as compact JSON. Blank lines are no records. A line that is not one JSON object in UTF-8, or in
    which an object names a key twice, is a damaged record.
    """
    gathered = _Gathered()
    for offset, block in whole_lines(stream, block_bytes):
        at = offset
        for line in block.split(b"\n"):
            start, at = at, at + len(line) + 1
            if not line.strip():
                continue
            try:
                gathered.add(_record(_DECODER.decode(line.decode()), strange=b"\\u" in line))
            except (ValueError, RecursionError) as error:
                gathered.add_damage(start, _reason(error))
            if gathered.count == BLOCK_RECORDS:
                yield from gathered.flush()
        yield from gathered.flush()


def read_document(stream: Stream, format: JsonFormat, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Records]:
    """The objects of the list, or of the object, at `format.records`; columns and texts as in `read_lines`.

    The document is read whole: it takes about ten times its size in memory. Large data belong in JSON Lines or Parquet.
    An entry that is no object is a damaged record, offset -1.

    Raises:
        DataError: the document is not JSON (with the byte), names a key twice in an object, is larger than
            `LARGEST_DOCUMENT`, or holds no objects at the path.
    """
    content = stream.read(LARGEST_DOCUMENT + 1)
    if len(content) > LARGEST_DOCUMENT:
        raise DataError(
            f"a JSON document of more than {LARGEST_DOCUMENT} bytes, which would be held whole",
            where=stream.url,
            fix="convert it to JSON Lines or Parquet",
        )
    try:
        text = content.decode("utf-8-sig")
        del content
        document = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        byte = len(text[: error.pos].encode()) if isinstance(error, json.JSONDecodeError) else None
        raise DataError(
            f"the document cannot be read: {_reason(error)}",
            where=stream.url if byte is None else f"{stream.url}, byte {byte}",
            fix="check that it is one whole JSON document; for an object a line, declare `format: jsonl`",
        ) from error
    del text
    entries = _entries(document, format, stream.url)
    gathered = _Gathered()
    for entry in entries:
        if isinstance(entry, dict):
            gathered.names.update(dict.fromkeys(entry))
    for entry in entries:
        try:
            gathered.add(_record(entry, strange=True))
        except (ValueError, RecursionError) as error:
            gathered.add_damage(-1, _reason(error))
        if gathered.count == BLOCK_RECORDS or gathered.characters >= block_bytes:
            yield from gathered.flush()
    yield from gathered.flush()


def json_text(value: Any) -> str:
    """Compact JSON of a decoded value, numbers with the digits that were written."""
    match value:
        case Number():
            return value
        case str():
            return json.dumps(value, ensure_ascii=False)
        case dict():
            return "{" + ",".join(f"{json_text(str(key))}:{json_text(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ",".join(map(json_text, value)) + "]"
        case _:
            return json.dumps(value)


def loads(text: str) -> Any:
    """Decoded JSON with every number as a `Number`; ValueError when it is none, or an object names a key twice."""
    return _DECODER.decode(text)


class Number(str):
    """The digits of a JSON number, or NaN, Infinity, -Infinity, as written."""

    __slots__ = ()


class _Gathered:
    """Records on their way into a stretch."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.count = self.characters = 0
        self._first = 0
        self._rows: list[dict[str, str | None]] = []
        self._damaged: list[Damage] = []

    def add(self, record: dict[str, str | None]) -> None:
        if not record.keys() <= self.names.keys():
            self.names.update(dict.fromkeys(record))
        self._rows.append(record)
        self.count += 1
        self.characters += sum(len(text) for text in record.values() if text)

    def add_damage(self, offset: int, reason: str) -> None:
        self._damaged.append(Damage(self._first + self.count, offset, reason))
        self.count += 1

    def flush(self) -> Iterator[Records]:
        columns = {name: pa.array([row.get(name) for row in self._rows], pa.string()) for name in self.names}
        yield from stretches(self._first, _table(columns, len(self._rows)), self._damaged)
        self._first += self.count
        self.count = self.characters = 0
        self._rows, self._damaged = [], []


def _table(columns: dict[str, pa.Array], rows: int) -> pa.Table:
    if columns:
        return pa.table(columns)
    # Objects without any key are records without columns: the count is all they have.
    return pa.table({"": pa.nulls(rows, pa.string())}).select([])


def _record(entry: Any, *, strange: bool) -> dict[str, str | None]:
    if not isinstance(entry, dict):
        raise ValueError(f"{_kind(entry)} where an object is expected")
    record = {name: _cell(value) for name, value in entry.items()}
    if strange:
        # A lone surrogate can be written as \udXXX in JSON, but is no text.
        "".join(text for pair in record.items() for text in pair if text).encode()
    return record


def _cell(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json_text(value)


def _kind(value: Any) -> str:
    match value:
        case None | bool():
            return json.dumps(value)
        case Number():
            return f"the number {value}"
        case str():
            return "a text"
        case _:
            return "a list"


def _entries(document: Any, format: JsonFormat, url: str) -> list[Any]:
    """What stands at the path: the list, or the values of the object with their keys."""
    found, path = document, format.records.split(".") if format.records else []
    for depth, name in enumerate(path):
        if not isinstance(found, dict) or name not in found:
            there = f"keys {', '.join(list(found)[:20])}" if isinstance(found, dict) else f"{_kind(found)}"
            raise DataError(
                f"no {name!r} at {'.'.join(path[:depth]) or 'the top'} of the document, where there is: {there}",
                where=url,
                fix="mend format.records, the dotted path to the list",
            )
        found = found[name]
    entries = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(entries, list) or (entries and not any(isinstance(entry, dict) for entry in entries)):
        keys = f"; its keys are {', '.join(list(found)[:20])}" if isinstance(found, dict) else ""
        raise DataError(
            f"{format.records or 'the document'} holds no objects{keys}",
            where=url,
            fix="name the dotted path to a list of objects, or to an object of objects, in format.records",
        )
    if not isinstance(found, dict):
        return entries
    taken = next((key for key, entry in found.items() if isinstance(entry, dict) and KEY_COLUMN in entry), None)
    if taken is not None:
        raise DataError(
            f"the record {taken!r} has a value named {KEY_COLUMN!r}, the column of the keys",
            where=url,
            fix="convert the object to a list of objects",
        )
    return [{KEY_COLUMN: key, **entry} if isinstance(entry, dict) else entry for key, entry in found.items()]


def _reason(error: Exception) -> str:
    match error:
        case json.JSONDecodeError():
            return f"not JSON: {error.msg} at character {error.pos + 1}"
        case UnicodeDecodeError():
            return "bytes that are not UTF-8"
        case UnicodeEncodeError():
            return "a text with half a surrogate pair"
        case RecursionError():
            return "nested too deeply"
        case _:
            return str(error)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON's usual reading keeps the last of two equal keys in silence.
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object names {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


_DECODER = json.JSONDecoder(
    parse_float=Number, parse_int=Number, parse_constant=Number, object_pairs_hook=_distinct, strict=True
)
