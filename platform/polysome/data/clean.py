"""Alphabet rules per molecule: raw sequences in, cleaned sequences or the reasons for refusing them out."""

import string
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polysome.data.hashing import PADDING, StringColumn, Text, bounds, text_of
from polysome.specs import Molecule, MoleculeType

_IUPAC = "RYSWKMBDHVN"
ALPHABETS: dict[MoleculeType, str] = {
    "dna": "ACGT" + _IUPAC,
    "rna": "ACGU" + _IUPAC,
    "protein": "ACDEFGHIKLMNPQRSTVWY" + "BJOUXZ",
}
"""Characters a cleaned sequence may hold: bases with IUPAC codes; the 20 amino acids with B J O U X Z."""

PLAIN: dict[MoleculeType, str] = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWYOU"}
"""Characters that name one base or residue; O and U are the 22nd and 21st amino acid."""

UPPER_CASED = "upper-cased"
T_READ_AS_U = "T read as U"
GAPS_REMOVED = "gaps removed"
STOPS_REMOVED = "stops removed"
BLANKS_REMOVED = "blanks removed"

_GAPS = "-."
_BLANKS = " \t\n\r\v\f"
_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)

# What a byte asks for; the bits of a row's bytes are joined.
_LOWER, _T, _GAP, _STOP, _OUTER_BLANK, _INNER_BLANK, _STRANGE = (1 << bit for bit in range(7))
_BITS = {
    _OUTER_BLANK: BLANKS_REMOVED,
    _LOWER: UPPER_CASED,
    _T: T_READ_AS_U,
    _GAP: GAPS_REMOVED,
    _STOP: STOPS_REMOVED,
}
_TRIMMED_AT_ONCE = 8
_LARGEST = 2**31 - 1


class Refused(ValueError):
    """The sequence cannot be used; the message is the reason, `kind` the reason without what varies from record to
    record, for counting."""

    def __init__(self, reason: str, kind: str) -> None:
        super().__init__(reason, kind)
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Cleaned:
    """A cleaned column.

    Attributes:
        values: string [rows], null where refused.
        refused: why, by row.
        changed: how many of the rows that are kept were changed, by kind of change.
    """

    values: pa.StringArray
    refused: dict[int, Refused]
    changed: Counter[str]


def clean(sequence: str, molecule: MoleculeType | Molecule) -> str:
    """One sequence after the rules of its molecule; those of a plain type are the defaults of `Molecule`, without
    bounds on the length.

    Blanks around it are removed (blanks inside may separate two sequences, or k-mers that overlap: refused), case is
    dropped, T is read as U in RNA. U in DNA is refused: it says that the column is not DNA. By the molecule's rules,
    gaps are removed, a protein's final stop or all its stops are removed, ambiguity codes are refused.

    Raises:
        Refused: the sequence is empty, holds a character that the rules do not allow, or has another length than
            allowed.
    """
    return _clean(sequence, _rules(molecule))[0]


def clean_column(values: StringColumn, molecule: Molecule) -> Cleaned:
    """A whole column after the rules of its molecule: the same as `clean` row for row; a null is an empty sequence.

    Rows are told apart by one pass of a 256-byte table over the column's buffer. What a table can do is done by tables;
    only rows with something strange are looked at one by one. At most 2 GiB of text.
    """
    text = text_of(values)
    assert text.size <= _LARGEST, "a block of a file is smaller than 2 GiB"
    asked = _asked(text, molecule)
    result = text if asked is None else _mapped(text, asked, molecule)
    rows = np.zeros(text.rows, np.uint8) if asked is None else _joined(text, asked)
    lengths = result.lengths
    outside = (lengths < molecule.minimum_length) | (lengths > molecule.maximum_length)
    slow = outside | ((rows & (_INNER_BLANK | _STRANGE)) != 0)
    changed: Counter[str] = Counter()
    for bit, kind in _BITS.items():
        if count := int(np.count_nonzero(rows[~slow] & bit)):
            changed[kind] = count
    refused: dict[int, Refused] = {}
    replaced: dict[int, str | None] = {}
    for row in np.flatnonzero(slow).tolist():
        try:
            replaced[row], changes = _clean(text.string(row), molecule)
            changed.update(changes)
        except Refused as refusal:
            replaced[row], refused[row] = None, refusal
    return Cleaned(_column(result, replaced), refused, changed)


def reverse_complement(sequence: str) -> str:
    """The reverse complement of upper-case DNA, IUPAC codes included; U is read as T."""
    return sequence.translate(_COMPLEMENT)[::-1]


_COMPLEMENT = str.maketrans("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN")


@dataclass(frozen=True)
class _Unbounded:
    """The rules of a plain molecule type."""

    type: MoleculeType
    role: str = "sequence"
    ambiguous: str = "keep"
    gaps: str = "refuse"
    stops: str = "final"
    minimum_length: int = 1
    maximum_length: int = _LARGEST


def _rules(molecule: MoleculeType | Molecule) -> Molecule | _Unbounded:
    return molecule if isinstance(molecule, Molecule) else _Unbounded(molecule)


def _clean(raw: str, rules: Molecule | _Unbounded) -> tuple[str, list[str]]:
    """The plain reading of the rules: the sequence and the kinds of changes made to it."""
    changes = []
    stripped = raw.strip(_BLANKS)
    sequence = stripped.translate(_UPPER)
    changes += [BLANKS_REMOVED] if stripped != raw else []
    changes += [UPPER_CASED] if sequence != stripped else []
    if rules.type == "rna" and "T" in sequence:
        sequence = sequence.replace("T", "U")
        changes.append(T_READ_AS_U)
    gaps = _GAPS if rules.gaps == "remove" else ""
    stops = "*" if rules.type == "protein" and rules.stops == "remove" else ""
    end = len(sequence.rstrip(gaps))
    if rules.type == "protein" and rules.stops == "final" and sequence[:end].endswith("*"):
        # What stands before the stop keeps its place, so that a fault is named with its own.
        sequence = sequence[: end - 1] + sequence[end:]
        changes.append(STOPS_REMOVED)
    _refuse_strange(sequence, rules, gaps + stops)
    for removed, kind in ((gaps, GAPS_REMOVED), (stops, STOPS_REMOVED)):
        left = sequence.translate(dict.fromkeys(map(ord, removed)))
        changes += [kind] if left != sequence else []
        sequence = left
    if not sequence:
        raise Refused("empty sequence", "empty sequence")
    if not rules.minimum_length <= len(sequence) <= rules.maximum_length:
        limits = f"[{rules.minimum_length}, {rules.maximum_length}]"
        raise Refused(f"{rules.role} length {len(sequence)} is outside {limits}", f"length outside {limits}")
    return sequence, changes


def _refuse_strange(sequence: str, rules: Molecule | _Unbounded, removable: str) -> None:
    """Refuse the first character that is neither allowed nor removed, with its place counted from 1."""
    alphabet = ALPHABETS[rules.type]
    allowed = PLAIN[rules.type] if rules.ambiguous == "refuse" else alphabet
    strange = sequence.translate(dict.fromkeys(map(ord, allowed + removable)))
    if strange:
        letter, place = strange[0], sequence.index(strange[0]) + 1
        fault = "is ambiguous" if letter in alphabet else f"is not in the {rules.type} alphabet"
        raise Refused(f"{letter!r} at position {place} {fault}", f"{letter!r} {fault}")


def _asked(text: Text, rules: Molecule) -> npt.NDArray[np.uint8] | None:
    """uint8 [bytes], what each byte asks for; None when all are plain."""
    table = np.full(256, _STRANGE, np.uint8)
    for letter in PLAIN[rules.type] if rules.ambiguous == "refuse" else ALPHABETS[rules.type]:
        table[ord(letter)], table[ord(letter.lower())] = 0, _LOWER
    table[[ord(letter) for letter in _BLANKS]] = _INNER_BLANK
    if rules.type == "rna":
        table[ord("T")], table[ord("t")] = _T, _T | _LOWER
    if rules.gaps == "remove":
        table[[ord(letter) for letter in _GAPS]] = _GAP
    if rules.type == "protein" and rules.stops == "remove":
        table[ord("*")] = _STOP
    found = np.frombuffer(text.data[: text.size].tobytes().translate(table.tobytes()), np.uint8)
    if not found.max(initial=0):
        return None
    asked = found.copy()
    ends = _trim(text, asked)
    if rules.type == "protein" and rules.stops == "final":
        asked[ends[text.data[ends] == ord("*")]] = _STOP
    return asked


def _trim(text: Text, asked: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Mark blanks around the rows in `asked`; gives the last place of each row that holds something else.

    Longer runs of blanks stay marked as inner ones, which only sends their rows the slow way.
    """
    filled = text.lengths > 0
    starts, ends = text.offsets[:-1][filled], text.offsets[1:][filled] - 1
    for places, step in ((starts, 1), (ends, -1)):
        for _ in range(_TRIMMED_AT_ONCE):
            blank = np.flatnonzero((asked[places] == _INNER_BLANK) & (starts < ends))
            if not len(blank):
                break
            asked[places[blank]] = _OUTER_BLANK
            places[blank] += step
    return ends


def _joined(text: Text, asked: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """uint8 [rows], what the bytes of each row ask for together."""
    rows = np.zeros(text.rows, np.uint8)
    filled = np.flatnonzero(text.lengths)
    rows[filled] = np.bitwise_or.reduceat(asked, text.offsets[filled])
    return rows


def _mapped(text: Text, asked: npt.NDArray[np.uint8], rules: Molecule) -> Text:
    """All rows with case and T mapped, gaps and stops removed; rows that hold something strange are of no use."""
    table = bytearray(range(256))
    for letter in string.ascii_lowercase:
        table[ord(letter)] = ord(letter.upper())
    if rules.type == "rna":
        table[ord("T")] = table[ord("t")] = ord("U")
    mapped = text.translated(bytes(table))
    dropped = (asked & (_GAP | _STOP | _OUTER_BLANK)) != 0
    places = np.flatnonzero(dropped)
    if not len(places):
        return mapped
    lengths = text.lengths - np.bincount(text.rows_of(places), minlength=text.rows)
    data = np.concatenate([mapped.data[: text.size][~dropped], np.zeros(PADDING, np.uint8)])
    return Text(data, bounds(lengths))


def _column(text: Text, replaced: dict[int, str | None]) -> pa.StringArray:
    """The rows as an Arrow column, some of them replaced."""
    offsets = pa.py_buffer(text.offsets.astype(np.int32))
    column = pa.StringArray.from_buffers(text.rows, offsets, pa.py_buffer(text.data))
    if not replaced:
        return column
    mask = np.zeros(text.rows, np.bool_)
    rows = sorted(replaced)
    mask[rows] = True
    # Rows that are replaced need not be UTF-8: what a table made of them is never read.
    return pc.replace_with_mask(column, pa.array(mask), pa.array([replaced[row] for row in rows], pa.string()))
