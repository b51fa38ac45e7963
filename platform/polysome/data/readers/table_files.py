"""Parquet files and Excel sheets: typed cells in, the same as text out, a stretch of rows at a time."""

import datetime
import gzip
import itertools
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from polysome.config import DataError
from polysome.data.readers.records import BLOCK_BYTES, BLOCK_RECORDS, Records, stretches
from polysome.data.readers.stream import Stream, open_stream
from polysome.specs.formats import ExcelFormat, ParquetFormat

ZIP_MAGIC = (b"PK\x03\x04",)
_GZIP_MAGIC = b"\x1f\x8b"
_HEAD_BYTES = 8
_EXACT_INTEGERS = 2**53
_SHEET_FIX = "mend the sheet, or declare format.columns where it has no header"


def read_parquet(url: str, format: ParquetFormat, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Records]:
    """Every column as text: numbers in the shortest form that reads back equal, times in ISO 8601, lists, structs and
    maps as compact JSON; nulls stay null. Rows are decoded a stretch at a time, not a row group.

    Raises:
        DataError: the file is missing, no Parquet, or damaged; a column's name stands twice, or its type has no text.
    """
    from pyarrow import parquet

    with local_file(url, (b"PAR1",), "a Parquet file") as path:
        try:
            file = parquet.ParquetFile(path, memory_map=True)
            names = file.schema_arrow.names
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise DataError(f"two columns are named {twice!r}", where=url, fix="rename one in the file")
            groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
            rows = _rows_per_stretch(
                file.metadata.num_rows, sum(group.total_byte_size for group in groups), block_bytes
            )
            number = 0
            for batch in file.iter_batches(batch_size=rows, use_threads=False):
                columns = [as_text(column, name, url) for name, column in zip(names, batch.columns, strict=True)]
                yield from stretches(number, pa.table(columns, names=names), [])
                number += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"damaged or cut short: {error}", where=url, fix="fetch it again") from error


def read_xlsx(url: str, format: ExcelFormat, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Records]:
    """The rows of one sheet below its header; the sheet is held whole, which Excel bounds at 1,048,576 rows.

    Numbers are those that Excel holds, whatever their display, in a form that reads back equal (1, 0.5); a cell that is
    empty, or holds an error, is null. The sheet begins at its first used row and column. Empty rows at its end, and
    empty columns without a name, are left out; an empty row in between is a record of nulls.

    Raises:
        DataError: the file is missing, no xlsx, or damaged; there is no such sheet (those that are there are named); a
            name is missing or stands twice; the declared columns are not as many as those of the sheet.
    """
    import python_calamine

    with local_file(url, ZIP_MAGIC, "an xlsx workbook") as path:
        try:
            workbook = python_calamine.CalamineWorkbook.from_path(path)
            known = workbook.sheet_names
            if format.sheet not in (known if isinstance(format.sheet, str) else range(len(known))):
                raise DataError(
                    f"no sheet {format.sheet!r}; the sheets are {', '.join(map(repr, known))}",
                    where=url,
                    fix="mend format.sheet: a name, or a position from 0",
                )
            name = format.sheet if isinstance(format.sheet, str) else known[format.sheet]
            rows = enumerate(workbook.get_sheet_by_name(name).iter_rows())
        except python_calamine.CalamineError as error:
            raise DataError(f"damaged, or no xlsx workbook: {error}", where=url, fix="fetch it again") from error
    where = f"{url}, sheet {name!r}"
    names = _sheet_columns(rows, format.columns, where)
    texts = _sheet_texts(rows, names, where)
    number = 0
    while stretch := list(_at_most(texts, block_bytes)):
        columns = zip(*stretch, strict=True)
        named = {name: pa.array(cells, pa.string()) for name, cells in zip(names, columns, strict=True) if name}
        yield from stretches(number, pa.table(named), [])
        number += len(stretch)


@contextmanager
def local_file(url: str, magic: tuple[bytes, ...], what: str) -> Iterator[str]:
    """The path of a file that is read at random: itself where it lies on this machine, else a temporary copy.

    A gzip around it, whatever its name, is taken off.

    Args:
        url: any fsspec URL.
        magic: the bytes of which it must begin with one.
        what: how to name such a file in an error.

    Raises:
        DataError: it is missing, damaged, or something else.
    """
    with ExitStack() as open_files:
        raw = open_files.enter_context(open_stream(url, decompress=False))
        content: IO[bytes] | gzip.GzipFile | Stream = raw
        head = raw.peek(_HEAD_BYTES)
        try:
            if head.startswith(_GZIP_MAGIC):
                content = open_files.enter_context(gzip.open(raw))
                head = content.peek(_HEAD_BYTES)
            if not head.startswith(magic):
                raise DataError(
                    f"not {what}: it begins with {head[:_HEAD_BYTES]!r}", where=url, fix="check format and address"
                )
            filesystem, path = url_to_fs(url)
            if content is not raw or not isinstance(filesystem, LocalFileSystem):
                copy = open_files.enter_context(tempfile.NamedTemporaryFile(prefix="polysome-"))
                shutil.copyfileobj(content, copy, 1 << 20)
                copy.flush()
                path = copy.name
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"the archive is damaged or cut short: {error}", where=url, fix="fetch it again") from error
        yield path


def as_text(column: pa.Array, name: str, url: str) -> pa.Array:
    """A column of any type as text, nulls kept; see `read_parquet`.

    Raises:
        DataError: the type has no text; the message has `name`.
    """
    try:
        return _text(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"column {name!r} of type {column.type} has no text: {error}",
            where=url,
            fix="convert the column, or leave it out of the file",
        ) from error


def _rows_per_stretch(rows: int, size: int, block_bytes: int) -> int:
    return max(1, min(BLOCK_RECORDS, block_bytes * rows // max(size, 1)))


def _sheet_columns(rows: Iterator[tuple[int, list[Any]]], columns: list[str] | None, where: str) -> list[str]:
    """A name per column, the declared ones or those of the first row, which is used up then; "" is no column."""
    if columns is not None:
        return columns
    first = next(rows, None)
    if first is None:
        raise DataError("the sheet is empty: it has no header", where=where, fix="name another in format.sheet")
    names = [_cell_text(cell) or "" for cell in first[1]]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"the header names {twice!r} twice", where=where, fix=_SHEET_FIX)
    return names


def _sheet_texts(rows: Iterator[tuple[int, list[Any]]], names: list[str], where: str) -> Iterator[list[str | None]]:
    blank: list[str | None] = [None] * len(names)
    empty = 0
    for row, cells in rows:
        texts = [_cell_text(cell) for cell in cells]
        if not any(texts):
            # Kept back until it is known that it is not the end.
            empty += 1
            continue
        if len(texts) != len(names):
            what = f"{len(names)} columns are declared where the sheet has {len(texts)}"
            raise DataError(what, where=where, fix="mend format.columns")
        for column, (name, text) in enumerate(zip(names, texts, strict=True)):
            if text and not name:
                what = f"column {column + 1} has no name, but a cell in row {row + 1} of the used range"
                raise DataError(what, where=where, fix=_SHEET_FIX)
        yield from itertools.repeat(blank, empty)
        empty = 0
        yield texts


def _cell_text(cell: Any) -> str | None:
    match cell:
        case str():
            return cell or None
        case bool():
            return "true" if cell else "false"
        case float():
            return str(int(cell)) if cell.is_integer() and abs(cell) < _EXACT_INTEGERS else repr(cell)
        case datetime.date() | datetime.time():
            return cell.isoformat()
        case _:
            return str(cell)


def _at_most(texts: Iterator[list[str | None]], block_bytes: int) -> Iterator[list[str | None]]:
    size = 0
    for row in itertools.islice(texts, BLOCK_RECORDS):
        yield row
        size += sum(len(text) for text in row if text)
        if size >= block_bytes:
            return


def _text(column: pa.Array) -> pa.Array:
    if isinstance(column, pa.ExtensionArray):
        return _text(column.storage)
    if pa.types.is_dictionary(column.type):
        return _text(column.dictionary_decode())
    if pa.types.is_nested(column.type):
        return pc.if_else(column.is_valid(), _json(column), None)
    return column.cast(pa.string())


def _json(column: pa.Array) -> pa.Array:
    """The JSON text of every value, `null` where there is none."""
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return _json(column.storage)
    if pa.types.is_dictionary(kind):
        return _json(column.dictionary_decode())
    if pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        return _json(column.cast(pa.list_(kind.value_type)))
    if pa.types.is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _json(column.flatten()))
        texts = _around("[", pc.binary_join(lists, ","), "]")
    elif pa.types.is_struct(kind):
        fields = zip(kind, column.flatten(), strict=True)
        parts = [_around(_quoted(field.name) + ":", _json(part), "") for field, part in fields]
        joined = pc.binary_join_element_wise(*parts, ",") if parts else pa.array([""] * len(column))
        texts = _around("{", joined, "}")
    elif pa.types.is_map(kind):
        keys, items = _text(column.keys), _json(column.items)
        pairs = pc.binary_join_element_wise(_quoted_all(keys), items, ":")
        lists = pa.ListArray.from_arrays(column.offsets, pairs)
        texts = _around("{", pc.binary_join(lists, ","), "}")
    elif pa.types.is_floating(kind):
        texts = column.cast(pa.string())
        for written, meant in (("nan", "NaN"), ("inf", "Infinity"), ("-inf", "-Infinity")):
            texts = pc.if_else(pc.equal(texts, written), meant, texts)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        texts = column.cast(pa.string())
    else:
        texts = _quoted_all(column.cast(pa.string()))
    return pc.fill_null(pc.if_else(column.is_valid(), texts, None), "null")


def _around(before: str, texts: pa.Array, after: str) -> pa.Array:
    return pc.binary_join_element_wise(before, texts, after, "")


def _quoted_all(texts: pa.Array) -> pa.Array:
    return pa.array([None if text is None else _quoted(text) for text in texts.to_pylist()], pa.string())


def _quoted(text: Any) -> str:
    return json.dumps(text, ensure_ascii=False)
