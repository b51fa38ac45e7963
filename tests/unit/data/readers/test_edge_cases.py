"""The files that other projects test their parsers with: each gives what Biopython gives, or says where and why not."""

import csv
import gzip
import io
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from polysome.config import DataError
from polysome.data.readers import fasta, fastq, flatfile
from polysome.data.readers.stream import open_stream
from polysome.specs.formats import FastaFormat, FastqFormat, FlatFileFormat

FOLDER = Path(os.environ.get("POLYSOME_MIRROR", "")) / "seqformat_edge_cases"
FORMATS = {
    "fasta": (fasta.read, FastaFormat()),
    "fastq": (fastq.read, FastqFormat()),
    "genbank": (flatfile.read, FlatFileFormat(kind="genbank")),
    "embl": (flatfile.read, FlatFileFormat(kind="embl")),
    "swiss": (flatfile.read, FlatFileFormat(kind="swissprot")),
}
"""Reader and format, by Biopython's name of it."""

STRICTER = {
    "biojava/NC_018080.gb": "declares 6,402,658 letters and holds 60: a piece cut out, which Biopython warns of",
    "biopython/GenBank/no_end_marker.gb": "no // at its end: a cut download looks the same, Biopython warns",
    **dict.fromkeys(
        [
            "biojava/empty_header0.gb",
            "biojava/empty_header1.gb",
            "biojava/empty_header2.gb",
            "biopython/EMBL/DS830848.embl",
            "biopython/EMBL/Human_contigs.embl",
            "biopython/EMBL/patents.embl",
            "biopython/GenBank/DS830848.gb",
            "biopython/GenBank/NT_019265.gb",
            "biopython/GenBank/bad_origin_wrap.gb",
            "biopython/GenBank/bad_origin_wrap_linear.gb",
            "biopython/GenBank/tls_KDHP01000000.gb",
            "biopython/GenBank/tsa_acropora.gb",
        ],
        "no sequence: Biopython gives a record whose sequence raises when it is read",
    ),
    "biojava/org/biojava/nbio/genome/io/fastq/empty.fastq": "nothing in it: a download that failed looks the same",
}
"""Files that Biopython reads without an error and we set aside or refuse, and why."""


@dataclass
class Found:
    """What one reader made of one file."""

    records: list[tuple[str, ...]] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    refusal: DataError | None = None


def manifest() -> list[tuple[str, str]]:
    """Files and the formats to read them as; what is of no format that is read, as each that it could be taken for."""
    if not FOLDER.is_dir():
        return []
    cases = []
    for row in csv.DictReader((FOLDER / "MANIFEST.csv").open()):
        name, kind = row["file"], row["kind"]
        if name.endswith((".fastq", ".fq", ".fastq.gz", ".fastq.bgz")):
            cases.append((name, "fastq"))
        elif kind == "embl/swissprot":
            cases.append((name, "embl" if "embl" in name.lower() else "swiss"))
        elif kind in FORMATS:
            cases.append((name, kind))
        else:
            cases += [(name, kind) for kind in FORMATS]
    return cases


def ours(name: str, kind: str, block_bytes: int) -> Found:
    found = Found()
    reader, declared = FORMATS[kind]
    path = str(FOLDER / name)
    try:
        with open_stream(path) as stream:
            for stretch in reader(stream, declared, block_bytes=block_bytes):
                columns = stretch.columns.column_names
                wanted = ["id", "sequence"] if "id" in columns else columns
                found.records += [tuple(row.values()) for row in stretch.columns.select(wanted).to_pylist()]
                for row in stretch.damaged.to_pylist():
                    assert row["reason"]
                    assert row["offset"] >= 0
                    found.damaged.append(row["record"])
    except DataError as error:
        found.refusal = error
    return found


def biopython(content: bytes, kind: str) -> tuple[list[tuple[str, ...]], bool]:
    """Its records, and whether it raises after them."""
    from Bio import SeqIO
    from Bio.Seq import UndefinedSequenceError

    found: list[tuple[str, ...]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for record in SeqIO.parse(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"), kind):
                try:
                    sequence = str(record.seq)
                except UndefinedSequenceError:
                    sequence = "undefined"
                if kind == "fasta":
                    found.append((record.description, sequence))
                elif kind == "fastq":
                    scores = record.letter_annotations["phred_quality"]
                    found.append((record.description, sequence, "".join(chr(33 + score) for score in scores)))
                else:
                    found.append((record.id, sequence))
        except Exception:
            return found, True
    return found, False


@pytest.mark.data
@pytest.mark.parametrize(("name", "kind"), manifest(), ids=str)
def test_a_file_gives_what_biopython_gives_or_says_why_not(name, kind):
    found, again = ours(name, kind, 1 << 20), ours(name, kind, 97)
    assert (found.records, found.damaged, str(found.refusal)) == (again.records, again.damaged, str(again.refusal))
    raw = (FOLDER / name).read_bytes()
    expected, raises = biopython(gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw, kind)
    if not found.refusal and not found.damaged:
        assert not raises
        assert found.records == expected
        assert name not in STRICTER
        return
    assert raises or not expected or name in STRICTER
    if found.refusal:
        assert found.refusal.where.startswith(f"{FOLDER / name}, byte ")
        assert found.refusal.fix
    else:
        before = min(found.damaged)
        assert found.records[:before] == expected[:before]
        if expected and not raises:
            assert len(found.records) + len(found.damaged) == len(expected)


@pytest.mark.data
def test_every_file_was_read():
    names = {row["file"] for row in csv.DictReader((FOLDER / "MANIFEST.csv").open())}
    assert len(names) == 322
    assert names == {name for name, _ in manifest()}
    assert names >= set(STRICTER)


@pytest.mark.data
@pytest.mark.parametrize(
    ("kind", "what"),
    [("xml", "XML, which is not read"), ("binary", "binary|SQLite")],
)
def test_what_is_no_text_is_refused_by_its_name(kind, what):
    names = [row["file"] for row in csv.DictReader((FOLDER / "MANIFEST.csv").open()) if row["kind"] == kind]
    # A FASTQ file with one zero byte: its record is damaged, the others are not.
    names = [name for name in names if not name.endswith(".fastq")]
    assert names
    for name in names:
        with pytest.raises(DataError, match=what), open_stream(str(FOLDER / name)):
            pass
