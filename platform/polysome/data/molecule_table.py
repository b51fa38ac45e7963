"""Tables that give the tokens of molecules, between tags that part a text: what they share, and how they are verified.

Wordings around the molecules go through the tokenizer itself, once each. The ids are those of the tokenizer, always:
a table is verified on it when it is made, and what a table does not hold the tokenizer is asked for.
"""

import itertools
import json
import re
import string
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from polysome.data.frame import Spelling, spell_sequence, tagged_sequence, tags_around
from polysome.data.ragged import Ragged, offsets_of
from polysome.specs import MoleculeType

TYPES: tuple[MoleculeType, ...] = get_args(MoleculeType)
LETTERS = string.ascii_uppercase + "*"

_BATCH_CHARACTERS = 1 << 20
_CONTEXTS = (("", ""), ("Is this ", ", a word? "), (" ", " "), ("X", "X"), ("\n", "\nno"))


class MoleculeTable(ABC):
    """A tokenizer whose molecules are found without it."""

    def __init__(self, tokenizer: Tokenizer, spelling: Spelling) -> None:
        """`spelling`: how the tokenizer is to read molecules."""
        self.tokenizer, self.spelling = tokenizer, spelling

    @abstractmethod
    def locate(
        self, values: pa.StringArray, types: npt.NDArray[np.int8]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Where the ids of each sequence lie.

        Args:
            values: the sequences, without nulls.
            types: int8 [values], place of each one's molecule type in `MoleculeType`.

        Returns:
            starts and lengths, int64 [values], and source, int32: sequence `i` is `source[starts[i]:][:lengths[i]]`.
        """

    def encode_sequences(
        self, values: pa.StringArray, molecule: MoleculeType
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Token ids of sequences as they stand between their tags.

        Returns:
            offsets, int64 [values + 1], and ids, int32 [tokens]: sequence `i` is `ids[offsets[i]:offsets[i + 1]]`.
        """
        types = np.full(len(values), TYPES.index(molecule), np.int8)
        starts, lengths, source = self.locate(values, types)
        found = Ragged.gather(source, starts[:, None], lengths[:, None])
        return found.offsets, found.values

    def ask(
        self,
        values: pa.StringArray,
        types: npt.NDArray[np.int8],
        which: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        source: npt.NDArray[np.int32],
    ) -> npt.NDArray[np.int32]:
        """Encode the sequences `which` by the tokenizer, put their ids behind the source and say where they are."""
        texts = []
        for place, sequence in zip(which.tolist(), values.take(pa.array(which)).to_pylist(), strict=True):
            molecule = TYPES[types[place]]
            texts.append(tagged_sequence(molecule, spell_sequence(molecule, sequence, self.spelling)))
        asked = encode_texts(self.tokenizer, texts)
        # Without the two tags, which are one token each.
        starts[which] = len(source) + asked.offsets[:-1] + 1
        lengths[which] = np.diff(asked.offsets) - 2
        return np.concatenate([source, asked.values])


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> Ragged:
    """Token ids of texts, no special tokens added, a MiB of text at a time so that memory stays bounded."""
    batches: list[list[str]] = [[]]
    size = 0
    for text in texts:
        if size > _BATCH_CHARACTERS:
            batches.append([])
            size = 0
        batches[-1].append(text)
        size += len(text)
    parts, counts = [], []
    for batch in batches:
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        lengths = [len(encoding) for encoding in encodings]
        counts += lengths
        tokens = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
        parts.append(np.fromiter(tokens, np.int32, sum(lengths)))
    return Ragged(offsets_of(counts), np.concatenate(parts))


def characters(values: pa.StringArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes of a string array, and the offsets of its values in them, from 0; nothing is copied but the offsets."""
    _, offsets_buffer, data = values.buffers()
    if not len(values) or data is None:
        return np.zeros(0, np.uint8), np.zeros(len(values) + 1, np.int64)
    width = np.int64 if pa.types.is_large_string(values.type) else np.int32
    offsets = np.frombuffer(offsets_buffer, width)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    return np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0]


def parted_by_tags(tokenizer_json: str) -> Tokenizer | None:
    """The tokenizer, if the molecule tags are tokens that part a text, whatever stands beside or between them."""
    added = {token["content"]: token for token in json.loads(tokenizer_json)["added_tokens"]}
    tags = [tag for molecule in TYPES for tag in tags_around(molecule)]
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    if not all(tag in added and plain.items() <= added[tag].items() for tag in tags):
        return None
    # An added token made of letters, alone or at its begin or end before or after a tag's, would cut a molecule.
    if any(_CUTTING.search(content) for content in added.keys() - set(tags)):
        return None
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def agrees(table: MoleculeTable, further: Sequence[str] = ()) -> bool:
    """Whether sequences by the table, between texts encoded apart, are what the tokenizer makes of the whole.

    Args:
        further: sequences to try besides random ones, as proteins.
    """
    random = np.random.default_rng(0)
    # Ambiguous and soft-masked letters, stops and what is no letter at all are part of what a table must get right.
    odd = "ACGT" * 4 + LETTERS + "acgtn-. 7\u00e9"
    probes: dict[MoleculeType, tuple[str, ...]] = {
        "dna": ("ACGT", LETTERS, odd),
        "rna": ("ACGU", odd),
        "protein": (LETTERS, LETTERS[:-1], odd),
    }
    for molecule, alphabets in probes.items():
        sequences = list(further) if molecule == "protein" else []
        for alphabet in alphabets:
            sequences += [*alphabet, alphabet]
            sequences += ["".join(random.choice(list(alphabet), length)) for length in (*range(2, 30), 300, 2000)]
        if not _agrees(table, molecule, sequences):
            return False
    return True


def _agrees(table: MoleculeTable, molecule: MoleculeType, sequences: list[str]) -> bool:
    opening, closing = tags_around(molecule)
    offsets, ids = table.encode_sequences(pa.array(sequences, pa.string()), molecule)
    spelled = [spell_sequence(molecule, sequence, table.spelling) for sequence in sequences]
    for before, after in _CONTEXTS:
        pieces = encode_texts(table.tokenizer, [before + opening, closing + after])
        source = np.concatenate([pieces.values, ids])
        starts, lengths = np.zeros((2, len(sequences), 3), np.int64)
        starts[:, 1], starts[:, 2] = len(pieces.values) + offsets[:-1], pieces.offsets[1]
        lengths[:, 0], lengths[:, 1], lengths[:, 2] = pieces.lengths[0], np.diff(offsets), pieces.lengths[1]
        built = Ragged.gather(source, starts, lengths)
        whole = encode_texts(table.tokenizer, [before + opening + text + closing + after for text in spelled])
        if not (np.array_equal(built.offsets, whole.offsets) and np.array_equal(built.values, whole.values)):
            return False
    return True


_CUTTING = re.compile(r"^[A-Z*]+(<|$)|>[A-Z*]+$")
