"""Readers: one file in, its records as string columns out, a stretch at a time; one module per family of formats."""

from collections.abc import Iterator
from importlib import import_module
from types import TracebackType

from polysome.data.readers.records import BLOCK_BYTES, DAMAGED, Records
from polysome.data.readers.stream import Stream, open_stream
from polysome.specs.formats import Format

_TEXT = {
    "csv": ("separated", "read"),
    "fasta": ("fasta", "read"),
    "fastq": ("fastq", "read"),
    "genbank": ("flatfile", "read"),
    "embl": ("flatfile", "read"),
    "swissprot": ("flatfile", "read"),
    "json": ("json_records", "read_document"),
    "jsonl": ("json_records", "read_lines"),
    "lines": ("lines", "read"),
}
"""Formats that are read from a stream of decompressed bytes: module and function."""
_RANDOM = {
    "parquet": ("table_files", "read_parquet"),
    "xlsx": ("table_files", "read_xlsx"),
    "anndata": ("cells", "read"),
    "npz": ("onehot", "read"),
}
"""Formats that are read at random: the function takes the file's address."""

__all__ = ["BLOCK_BYTES", "DAMAGED", "RecordFile", "Records", "open_records"]


class RecordFile:
    """An open file of records: iterate once; `sha256` is known when the iteration has ended."""

    def __init__(self, url: str, format: Format, block_bytes: int) -> None:
        """See `open_records`."""
        module, name = (_TEXT | _RANDOM)[format.kind]
        read = getattr(import_module(f"{__name__}.{module}"), name)
        # A file that is read at random is hashed as a stream beside it.
        self._stream: Stream = open_stream(url, decompress=format.kind in _TEXT)
        source = self._stream if format.kind in _TEXT else url
        self._stretches: Iterator[Records] = read(source, format, block_bytes=block_bytes)
        self._checksum: str | None = None

    def __iter__(self) -> Iterator[Records]:
        yield from self._stretches
        self._checksum = self._stream.hexdigest()

    def __enter__(self) -> "RecordFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def sha256(self) -> str:
        """Of the decompressed content, or of the file as it stands for formats that are read at random."""
        assert self._checksum is not None, "the file was not read to its end"
        return self._checksum


def open_records(url: str, format: Format, *, block_bytes: int = BLOCK_BYTES) -> RecordFile:
    """Open a file for reading, `block_bytes` of text per stretch; the same file gives the same stretches.

    Raises:
        DataError: the file is missing, damaged, or not what its format says: what, at which byte, and how to mend it.
    """
    return RecordFile(url, format, block_bytes)
