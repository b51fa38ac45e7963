"""Adapters: small declared steps that turn the columns of a public file into those that a task needs.

Steps run in the order in which they are declared, on string columns, a block of records at a time.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from polysome.config import Config
from polysome.specs.formats import Format


def _named_groups(pattern: str) -> str:
    """`pattern`, if Arrow takes it: RE2, with named groups and no others."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        pc.extract_regex(pa.array([""], pa.string()), pattern=pattern)
    except pa.ArrowInvalid as error:
        raise ValueError(f"no RE2 regular expression with named groups only, e.g. (?P<label>[01]): {error}") from error
    if "(?P<" not in pattern:
        raise ValueError("needs at least one named group, e.g. (?P<label>[01])")
    return pattern


class Companion(Config):
    """A second file that a step looks things up in; read whole."""

    uri: str
    mirror_path: str | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the decompressed content."""
    format: Format


class Extract(Config):
    """New columns from the named groups of a regular expression found in a column; a record without a match is
    quarantined."""

    step: Literal["extract"] = "extract"
    column: str
    pattern: str
    """RE2 regular expression with named groups and no others, searched for."""

    @field_validator("pattern")
    @classmethod
    def _names_groups(cls, pattern: str) -> str:
        return _named_groups(pattern)


class Constant(Config):
    """A column that holds the same text in every record."""

    step: Literal["constant"] = "constant"
    column: str
    value: str


class Where(Config):
    """Only the records whose column holds one of the values; the others belong to something else and are counted as
    not selected."""

    step: Literal["where"] = "where"
    column: str
    values: Annotated[list[str], Field(min_length=1)]


class Sample(Config):
    """Only a part of the records, drawn by their numbers in the file; the others are counted as not selected."""

    step: Literal["sample"] = "sample"
    fraction: Annotated[float, Field(gt=0, lt=1)]
    seed: int = 0


class Among(Config):
    """Only the records whose column stands (or, with `keep: absent`, does not stand) in a column of another file."""

    step: Literal["among"] = "among"
    column: str
    file: Companion
    file_column: str
    keep: Literal["present", "absent"] = "present"


class Lookup(Config):
    """Columns of another file, found by key; a record whose key is not there is quarantined. Keys are case-sensitive
    and must be unique, or hold equal values."""

    step: Literal["lookup"] = "lookup"
    column: str
    """Holds the key."""
    file: Companion
    file_column: str
    """Holds the key in the other file."""
    file_pattern: str | None = None
    """RE2 regular expression with the group `(?P<key>…)`, which is the key within `file_column`."""

    @field_validator("file_pattern")
    @classmethod
    def _names_the_key(cls, pattern: str | None) -> str | None:
        if pattern is not None and "(?P<key>" not in pattern:
            raise ValueError("needs the group (?P<key>…)")
        return pattern if pattern is None else _named_groups(pattern)

    take: Annotated[dict[str, str], Field(min_length=1)]
    """New column -> column of the other file."""


class Beside(Config):
    """Columns of another file with the same number of records in the same order (parallel files)."""

    step: Literal["beside"] = "beside"
    file: Companion
    take: Annotated[dict[str, str], Field(min_length=1)]
    """New column -> column of the other file."""


class Replace(Config):
    """Text that a regular expression finds in a column, replaced."""

    step: Literal["replace"] = "replace"
    column: str
    pattern: str
    by: str = ""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            pc.replace_substring_regex(pa.array([""], pa.string()), pattern=pattern, replacement="")
        except pa.ArrowInvalid as error:
            raise ValueError(f"no RE2 regular expression: {error}") from error
        return pattern


class Linear(Config):
    """`scale * number + offset` of a column; a record that holds no number is quarantined."""

    step: Literal["linear"] = "linear"
    column: str
    scale: float = 1.0
    offset: float = 0.0


class Join(Config):
    """Several columns joined into one."""

    step: Literal["join"] = "join"
    columns: Annotated[list[str], Field(min_length=2)]
    into: str
    separator: str = ";"


class Mutate(Config):
    """Sequences from a wild type and substitutions such as `SA108D:SN144D` (avGFP genotypes: S, old residue, position,
    new residue); a substitution whose old residue is not there is quarantined."""

    step: Literal["mutate"] = "mutate"
    column: str
    """Holds the substitutions, separated by `:`; empty: the wild type."""
    wild_type: Annotated[str, Field(min_length=1)]
    prefix: str = "S"
    first_position: int = 0
    """Number of the wild type's first residue."""
    into: str = "sequence"
    count_into: str | None = None
    """New column with the number of substitutions."""
    remove: str = ""
    """Letters removed from the mutated sequence, e.g. `*`."""


Step = Annotated[
    Extract | Constant | Where | Sample | Among | Lookup | Beside | Replace | Linear | Join | Mutate,
    Field(discriminator="step"),
]
