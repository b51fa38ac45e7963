"""What a tokenizer does to molecules: tokens they cost, what one substitution changes, what case and U/T change."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tokenizers import Tokenizer

from polysome.config import ConfigurationError
from polysome.data.examples import read_examples
from polysome.data.frame import Spelling, spell_sequence, tagged_sequence
from polysome.data.tokenizer_files import local_tokenizer, tokenizer_fingerprint
from polysome.specs import MoleculeType, Split, dataset

SEQUENCES = 100
SUBSTITUTIONS = 5
"""Per sequence."""
_LONGEST = 1000
_ALPHABETS: dict[MoleculeType, str] = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}


@dataclass(frozen=True)
class MoleculeAudit:
    """Figures for one molecule type; a sequence is measured between its tags, which are not counted.

    Attributes:
        molecule: type.
        source: data sets, or `random`.
        sequences, characters, tokens: how much was looked at.
        characters_per_token: of all sequences together.
        changed_mean, changed_max: tokens that one substitution changes: edit distance of the ids before and after.
        lower_case_tokens: tokens of the sequences in lower case, in relation to upper case.
        lower_case_same: share of sequences whose ids do not depend on the case.
        other_base_tokens: the same for U written as T or T as U; None for a protein.
        other_base_same: share of sequences whose ids do not depend on U or T; None for a protein.
        unknown: unknown tokens among `tokens`; unknown_lower_case: the same in lower case.
        round_trip: share of sequences that decoding gives back exactly.
    """

    molecule: MoleculeType
    source: str
    sequences: int
    characters: int
    tokens: int
    characters_per_token: float
    changed_mean: float
    changed_max: int
    lower_case_tokens: float
    lower_case_same: float
    other_base_tokens: float | None
    other_base_same: float | None
    unknown: int
    unknown_lower_case: int
    round_trip: float


@dataclass(frozen=True)
class TokenAudit:
    """A tokenizer's figures per molecule type."""

    tokenizer: str
    fingerprint: str
    vocabulary_size: int
    kmer: int
    protein_kmer: int
    molecules: tuple[MoleculeAudit, ...]

    def content(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def table(self) -> list[tuple[str, ...]]:
        """A header and a line for each figure, a column for each molecule type."""
        lines = [("", *(audit.molecule for audit in self.molecules))]
        for field, title in _TITLES.items():
            lines.append((title, *(_shown(getattr(audit, field)) for audit in self.molecules)))
        return lines


def audit_tokens(
    folder: str,
    datasets: Sequence[str] = (),
    *,
    split: Split = "train",
    sequences: int = SEQUENCES,
    substitutions: int = SUBSTITUTIONS,
    seed: int = 0,
) -> TokenAudit:
    """Audit the tokenizer in `folder` (any fsspec URL) on the first sequences of data sets, or on seeded random ones.

    Args:
        datasets: names in `datasets_spec/`; none: random DNA, RNA and protein of 50 to 1,000 letters.
        sequences: per molecule type; of each the first 1,000 letters.
        substitutions: per sequence, at random places.

    Raises:
        ConfigurationError: the folder holds no fast tokenizer, or the data sets no molecules.
        DataError: a data set cannot be read.
    """
    local = local_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(local / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    audited = _Audited(tokenizer, _spelling(local))
    random = np.random.default_rng(seed)
    source = ", ".join(datasets) or "random"
    found = _of_datasets(datasets, split, sequences) if datasets else _random_sequences(random, sequences)
    return TokenAudit(
        tokenizer=str(folder),
        fingerprint=tokenizer_fingerprint(local),
        vocabulary_size=tokenizer.get_vocab_size(),
        kmer=audited.spelling.kmer,
        protein_kmer=audited.spelling.protein_kmer,
        molecules=tuple(
            audited.molecule(molecule, source, found[molecule], substitutions, random)
            for molecule in get_args(MoleculeType)
            if molecule in found
        ),
    )


@dataclass(frozen=True)
class _Audited:
    tokenizer: Tokenizer
    spelling: Spelling

    def molecule(
        self,
        molecule: MoleculeType,
        source: str,
        sequences: Sequence[str],
        substitutions: int,
        random: np.random.Generator,
    ) -> MoleculeAudit:
        ids = self._ids(molecule, sequences)
        tags = len(self._ids(molecule, [""])[0])
        tokens = [len(row) - tags for row in ids]
        lower = self._ids(molecule, [sequence.lower() for sequence in sequences])
        other = None if molecule == "protein" else self._ids(molecule, [_other_base(text) for text in sequences])
        rows = [row for row in range(len(sequences)) for _ in range(substitutions)]
        changed = self._ids(molecule, [_substituted(sequences[row], molecule, random) for row in rows])
        distances = [edit_distance(ids[row], after) for row, after in zip(rows, changed, strict=True)]
        return MoleculeAudit(
            molecule=molecule,
            source=source,
            sequences=len(sequences),
            characters=sum(map(len, sequences)),
            tokens=sum(tokens),
            characters_per_token=round(sum(map(len, sequences)) / max(sum(tokens), 1), 4),
            changed_mean=round(float(np.mean(distances)), 3) if distances else 0.0,
            changed_max=max(distances, default=0),
            lower_case_tokens=_relative(lower, ids, tags),
            lower_case_same=_same(lower, ids),
            other_base_tokens=None if other is None else _relative(other, ids, tags),
            other_base_same=None if other is None else _same(other, ids),
            unknown=self._unknown(ids),
            unknown_lower_case=self._unknown(lower),
            round_trip=self._round_trip(molecule, sequences, ids),
        )

    def _texts(self, molecule: MoleculeType, sequences: Sequence[str]) -> list[str]:
        return [tagged_sequence(molecule, spell_sequence(molecule, text, self.spelling)) for text in sequences]

    def _ids(self, molecule: MoleculeType, sequences: Sequence[str]) -> list[list[int]]:
        texts = self._texts(molecule, sequences)
        return [item.ids for item in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _unknown(self, ids: list[list[int]]) -> int:
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        place = None if unknown is None else self.tokenizer.token_to_id(unknown)
        return sum(row.count(place) for row in ids) if place is not None else 0

    def _round_trip(self, molecule: MoleculeType, sequences: Sequence[str], ids: list[list[int]]) -> float:
        texts = self._texts(molecule, sequences)
        decoded = self.tokenizer.decode_batch(ids, skip_special_tokens=False)
        exact = sum(found == text for found, text in zip(decoded, texts, strict=True))
        return round(exact / max(len(texts), 1), 4)


def edit_distance(before: Sequence[int], after: Sequence[int]) -> int:
    """Fewest tokens inserted, removed or replaced that turn one list of ids into the other (Levenshtein)."""
    begin = 0
    while begin < min(len(before), len(after)) and before[begin] == after[begin]:
        begin += 1
    end = 0
    while end < min(len(before), len(after)) - begin and before[-1 - end] == after[-1 - end]:
        end += 1
    left, right = before[begin : len(before) - end], after[begin : len(after) - end]
    costs = list(range(len(right) + 1))
    for row, one in enumerate(left, start=1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(right, start=1):
            diagonal, costs[column] = (
                costs[column],
                min(costs[column] + 1, costs[column - 1] + 1, diagonal + (one != other)),
            )
    return costs[-1]


_TITLES = {
    "source": "sequences from",
    "sequences": "sequences",
    "characters": "characters",
    "tokens": "tokens",
    "characters_per_token": "characters per token",
    "changed_mean": "tokens changed by one substitution, mean",
    "changed_max": "tokens changed by one substitution, most",
    "lower_case_tokens": "tokens in lower case / upper case",
    "lower_case_same": "same ids in lower case",
    "other_base_tokens": "tokens with U and T exchanged / as written",
    "other_base_same": "same ids with U and T exchanged",
    "unknown": "unknown tokens",
    "unknown_lower_case": "unknown tokens in lower case",
    "round_trip": "decoded exactly",
}


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _spelling(folder: Path) -> Spelling:
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return Spelling.of(content)


def _of_datasets(names: Sequence[str], split: Split, count: int) -> Mapping[MoleculeType, Sequence[str]]:
    found: dict[MoleculeType, list[str]] = {}
    for name in names:
        spec = dataset(name)
        if not spec.molecules:
            raise ConfigurationError(
                f"{name!r} declares no molecules of its own", where="dataset", fix="name the data set of one task"
            )
        chosen = split if split in spec.splits else next(iter(spec.splits))
        for sequences in read_examples(spec, chosen, limit=count)["sequences"].to_pylist():
            for molecule, sequence in zip(spec.molecules, sequences, strict=True):
                found.setdefault(molecule.type, []).append(sequence[:_LONGEST])
    return {molecule: sequences[:count] for molecule, sequences in found.items()}


def _random_sequences(random: np.random.Generator, count: int) -> Mapping[MoleculeType, Sequence[str]]:
    return {
        molecule: [
            "".join(random.choice(list(alphabet), length)) for length in random.integers(50, _LONGEST, count).tolist()
        ]
        for molecule, alphabet in _ALPHABETS.items()
    }


def _substituted(sequence: str, molecule: MoleculeType, random: np.random.Generator) -> str:
    place = int(random.integers(len(sequence)))
    others = [letter for letter in _ALPHABETS[molecule] if letter != sequence[place]]
    return sequence[:place] + others[int(random.integers(len(others)))] + sequence[place + 1 :]


def _other_base(sequence: str) -> str:
    return sequence.translate(str.maketrans("TUtu", "UTut"))


def _relative(changed: list[list[int]], ids: list[list[int]], tags: int) -> float:
    counts = (sum(len(row) - tags for row in rows) for rows in (changed, ids))
    return round(next(counts) / max(next(counts), 1), 4)


def _same(changed: list[list[int]], ids: list[list[int]]) -> float:
    return round(sum(one == other for one, other in zip(changed, ids, strict=True)) / max(len(ids), 1), 4)
