"""File formats: how the records of a source file are laid out; one model per format, chosen by `kind`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from polysome.config import Config


class CsvFormat(Config):
    """Separated values, one record a line."""

    kind: Literal["csv"] = "csv"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """One character; a blank means any run of blanks."""
    columns: Annotated[list[str], Field(min_length=1)] | None = None
    """Names, for a file without a header line; then every line is a record."""
    skip_lines: Annotated[int, Field(ge=0)] = 0
    """Lines before the header (or before the first record)."""
    quote: Annotated[str, Field(max_length=1)] = '"'
    """Quoting character; empty: quotes are ordinary characters."""
    encoding: str = "utf-8"


class FastaFormat(Config):
    """FASTA: columns `header` (without the `>`) and `sequence`."""

    kind: Literal["fasta"] = "fasta"


class FastqFormat(Config):
    """FASTQ: columns `header`, `sequence`, `quality`."""

    kind: Literal["fastq"] = "fastq"


class FlatFileFormat(Config):
    """GenBank, EMBL or UniProt flat files: columns `id`, `accession`, `description`, `organism`, `molecule_type`,
    `sequence`."""

    kind: Literal["genbank", "embl", "swissprot"]


class JsonFormat(Config):
    """One JSON document that holds a list of objects: a column per key, nested values as JSON text."""

    kind: Literal["json"] = "json"
    records: str = ""
    """Dotted path to the list; empty: the document is the list. An object there is read as its values, its keys as the
    column `key`."""


class JsonLinesFormat(Config):
    """One JSON object a line: a column per key, nested values as JSON text."""

    kind: Literal["jsonl"] = "jsonl"


class ParquetFormat(Config):
    """Parquet: every column as text, lists as JSON text."""

    kind: Literal["parquet"] = "parquet"


class ExcelFormat(Config):
    """One sheet of an xlsx workbook."""

    kind: Literal["xlsx"] = "xlsx"
    sheet: str | int = 0
    """Name, or position from 0."""
    columns: Annotated[list[str], Field(min_length=1)] | None = None
    """Names, for a sheet without a header row."""


class LinesFormat(Config):
    """Plain text: every line is a record, column `line`."""

    kind: Literal["lines"] = "lines"


class AnndataFormat(Config):
    """AnnData (h5ad): one record a cell, columns `cell`, `genes` (names, most expressed first, joined by blanks),
    `n_genes`, and one per column of `obs` (C-4, C-10)."""

    kind: Literal["anndata"] = "anndata"
    layer: str | None = None
    """Layer that genes are ranked by; none: X."""
    use_raw: bool = False
    """Rank on `raw.X`, with the names of `raw.var`."""
    top_genes: Annotated[int, Field(ge=1)] = 100
    order: Literal["counts", "log1p", "cpm"] = "counts"
    """What the matrix holds; ranks within a cell do not depend on it, but values below 0 (scaled data) are refused."""
    symbols: str | None = None
    """Column of `var` that holds gene symbols; none: the index of `var`."""


class OneHotFormat(Config):
    """One-hot arrays in an npz archive: columns `sequence` and `label`."""

    kind: Literal["npz"] = "npz"
    array: str
    """Array of shape [records, length, letters] or [records, length * letters]."""
    alphabet: Annotated[str, Field(min_length=2)] = "ACGT"
    """Letter of each channel, in order."""
    label: str = "label"
    """Array of shape [records]."""


class PlantedFormat(Config):
    """Data that Polysome generates; see `polysome.data.planted`."""

    kind: Literal["planted"] = "planted"


def _named(value: Any) -> Any:
    """`format: fasta` is short for `format: {kind: fasta}`; `tsv` for tab-separated values."""
    if value == "tsv":
        return {"kind": "csv", "delimiter": "\t", "quote": ""}
    return {"kind": value} if isinstance(value, str) else value


Format = Annotated[
    Annotated[
        CsvFormat
        | FastaFormat
        | FastqFormat
        | FlatFileFormat
        | JsonFormat
        | JsonLinesFormat
        | ParquetFormat
        | ExcelFormat
        | LinesFormat
        | AnndataFormat
        | OneHotFormat
        | PlantedFormat,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_named),
]
