"""One-hot arrays in an npz archive: sequences of letters out, a block of rows at a time."""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polysome.config import ConfigurationError, DataError
from polysome.data.readers.records import BLOCK_BYTES, BLOCK_RECORDS, Damage, Records, stretches
from polysome.data.readers.table_files import ZIP_MAGIC, as_text, local_file
from polysome.specs.formats import OneHotFormat


def read(url: str, format: OneHotFormat, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Records]:
    """Each row's `sequence`, the letter of the channel that is 1 at each position, and its `label` as text.

    Numbers of the label are written in the shortest form that reads back equal (1.0 as `1`). A row is damaged, offset
    -1, when at a position not exactly one channel is 1 and the others 0; its first such position is named. Arrays are
    read a block of rows at a time, unless they are stored in Fortran order. Pickled objects are never loaded.

    Raises:
        DataError: the file is missing, no npz, or damaged; it lacks an array (those that are there are named); a shape
            does not fit the alphabet, or the label is not one value a row.
        ConfigurationError: the alphabet names a letter twice, or a character outside ASCII.
    """
    letters = np.frombuffer(format.alphabet.encode(), np.uint8)
    if len(letters) != len(format.alphabet) or len(set(format.alphabet)) != len(format.alphabet):
        raise ConfigurationError(
            f"the alphabet {format.alphabet!r} needs distinct ASCII letters", where=url, fix="mend format.alphabet"
        )
    with local_file(url, ZIP_MAGIC, "an npz archive") as path, ExitStack() as open_files:
        try:
            archive = open_files.enter_context(zipfile.ZipFile(path))
            array = _Array.of(archive, format.array, url, open_files)
            label = _Array.of(archive, format.label, url, open_files)
            length = _length(array, len(letters), url)
            rows = array.shape[0]
            if label.shape not in ((rows,), (rows, 1)):
                raise DataError(
                    f"{format.label} has shape {label.shape} where {format.array} has {rows} rows",
                    where=url,
                    fix="name an array of one value a row in format.label",
                )
            step = max(1, min(BLOCK_RECORDS, block_bytes // max(1, length * len(letters) * array.dtype.itemsize)))
            for start in range(0, rows, step):
                block = array.take(step).reshape(-1, length, len(letters))
                labels = as_text(pa.array(label.take(step).reshape(-1)), format.label, url)
                yield from _decoded(start, block, labels, letters)
        except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise DataError(f"damaged, or no npz archive: {error}", where=url, fix="fetch it again") from error


@dataclass
class _Array:
    """A stored array that is read from its first row on."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _content: IO[bytes]
    _whole: npt.NDArray[Any] | None = None
    _row: int = 0

    @classmethod
    def of(cls, archive: zipfile.ZipFile, name: str, url: str, open_files: ExitStack) -> "_Array":
        known = [member.removesuffix(".npy") for member in archive.namelist()]
        if name not in known:
            raise DataError(
                f"no array {name!r}; the arrays are {', '.join(map(repr, known))}",
                where=url,
                fix="mend format.array or format.label",
            )
        content = open_files.enter_context(archive.open(f"{name}.npy"))
        version = np.lib.format.read_magic(content)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(content)
        if dtype.hasobject:
            raise DataError(f"{name} holds pickled objects", where=url, fix="save it with a plain dtype")
        found = cls(name, shape, dtype, content)
        if fortran and len(shape) > 1:
            found._whole = found._values(int(np.prod(shape))).reshape(shape, order="F")
        return found

    def take(self, rows: int) -> npt.NDArray[Any]:
        """The next rows, fewer at the end."""
        start, self._row = self._row, min(self._row + rows, self.shape[0])
        if self._whole is not None:
            return self._whole[start : self._row]
        taken = (self._row - start, *self.shape[1:])
        return self._values(int(np.prod(taken))).reshape(taken)

    def _values(self, count: int) -> npt.NDArray[Any]:
        size = count * self.dtype.itemsize
        content = self._content.read(size)
        if len(content) != size:
            raise EOFError(f"{self.name} ends too early")
        return np.frombuffer(content, self.dtype)


def _length(array: _Array, letters: int, url: str) -> int:
    """Positions of a row of [rows, length, letters] or [rows, length * letters]."""
    match array.shape:
        case (_, length, channels) if channels == letters:
            return length
        case (_, flat) if flat % letters == 0:
            return flat // letters
    raise DataError(
        f"{array.name} has shape {array.shape}, neither [rows, length, {letters}] nor [rows, length * {letters}]",
        where=url,
        fix="mend format.array or format.alphabet",
    )


def _decoded(
    first: int, block: npt.NDArray[Any], labels: pa.Array, letters: npt.NDArray[np.uint8]
) -> Iterator[Records]:
    hot = block == 1
    right = (hot.sum(axis=2) == 1) & (hot | (block == 0)).all(axis=2)
    good = right.all(axis=1)
    damaged = [
        Damage(first + int(row), -1, f"not one-hot at position {int(np.argmin(right[row])) + 1}")
        for row in np.flatnonzero(~good)
    ]
    texts = letters[hot[good].argmax(axis=2)] if block.shape[1] else np.empty((int(good.sum()), 0), np.uint8)
    sequences = pa.array([row.tobytes() for row in texts], pa.binary()).cast(pa.string())
    columns = pa.table({"sequence": sequences, "label": labels.filter(pa.array(good))})
    yield from stretches(first, columns, damaged)
