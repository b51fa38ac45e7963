"""Tokens by letter: sequences become token ids by arithmetic on Arrow's buffers where a vocabulary allows it.

It allows it when the molecule tags are tokens that split the text, and a capital letter between them (or, for molecules
spelled in k-mers, a k-mer after a blank; or a letter spelled as a token of its own) is always one token.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from polysome.data.frame import Spelling, letter_token
from polysome.data.molecule_table import (
    LETTERS,
    TYPES,
    MoleculeTable,
    agrees,
    characters,
    encode_texts,
    parted_by_tags,
)

_BASES, _RESIDUES = "ACGTU", "ACDEFGHIKLMNPQRSTVWY"
_UNKNOWN = -1


@dataclass(frozen=True)
class _Words:
    """The k-mers of some molecule types, each of which is one token.

    Attributes:
        kmer: letters of a word.
        types: bool [molecule types].
        digits: int32 [256], the digit of each byte; of an unknown character so far below zero that no other digits
            bring its k-mer back into the table.
        letters: how many there are, the base of the digits.
        tokens: int32 [letters^kmer + 1] by the k-mer's digits; the last place stands for all unknown k-mers.
    """

    kmer: int
    types: npt.NDArray[np.bool_]
    digits: npt.NDArray[np.int32]
    letters: int
    tokens: npt.NDArray[np.int32]

    def read(self, text: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """int32 [characters]: the token of the k-mer that begins at each character, over the ends of sequences too."""
        digits = self.digits[text]
        codes = np.zeros(len(text), np.int32)
        count = len(text) - self.kmer + 1
        for place in range(self.kmer):
            codes[:count] *= self.letters
            codes[:count] += digits[place : place + count]
        np.maximum(codes, -1, out=codes)
        return _looked_up(self.tokens, codes)


class LookupTokenizer(MoleculeTable):
    """A tokenizer whose molecules are looked up."""

    def __init__(
        self, tokenizer: Tokenizer, spelling: Spelling, letters: npt.NDArray[np.int32], words: Sequence[_Words]
    ) -> None:
        """See `of`; `letters` int32 [types, 256] by byte."""
        super().__init__(tokenizer, spelling)
        self._letters, self._words = letters, words

    @classmethod
    def of(cls, tokenizer_json: str, spelling: Spelling) -> "LookupTokenizer | None":
        """The tables of a tokenizer, verified on it; None for one that is not of this kind."""
        return _recognised(tokenizer_json, spelling)

    def locate(
        self, values: pa.StringArray, types: npt.NDArray[np.int8]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """See `MoleculeTable`."""
        text, offsets = characters(values)
        starts, lengths = offsets[:-1].copy(), np.diff(offsets)
        left = np.ones(len(types), bool)
        parts = []
        for words in self._words:
            mine = words.types[types] & (lengths >= words.kmer)
            if mine.any():
                parts.append((mine, words.kmer - 1, words.read(text)))
                left &= ~mine
        if left.any() or not parts:
            parts.append((left, 0, self._by_letter(text, types, lengths)))
        sources: list[npt.NDArray[np.int32]] = []
        for mine, fewer, found in parts:
            starts[mine] += sum(map(len, sources))
            lengths[mine] -= fewer
            sources.append(found)
        source = sources[0] if len(sources) == 1 else np.concatenate(sources)
        if len(source) and source.min() == _UNKNOWN:
            unknown = np.flatnonzero(source == _UNKNOWN)
            # Those that hold an unknown place; most of a k-mer table's unknown places lie between two sequences.
            holding = np.searchsorted(unknown, starts) < np.searchsorted(unknown, starts + lengths)
            source = self.ask(values, types, np.flatnonzero(holding), starts, lengths, source)
        return starts, lengths, source

    def _by_letter(
        self, text: npt.NDArray[np.uint8], types: npt.NDArray[np.int8], lengths: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        """int32 [characters]: the token of each letter; in letter tokens, of that letter in a molecule of its type."""
        first = int(types[0]) if len(types) else 0
        if not self.spelling.letters or (types == first).all():
            return _looked_up(self._letters[first], text)
        places = np.repeat(types.astype(np.int16) << 8, lengths)
        places += text
        return _looked_up(self._letters.ravel(), places)


_STRETCH = 1 << 16


def _looked_up(table: npt.NDArray[np.int32], places: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """`table[places]`, a stretch at a time that stays in the processor's cache while numpy widens the places."""
    found = np.empty(len(places), np.int32)
    for start in range(0, len(places), _STRETCH):
        stretch = slice(start, start + _STRETCH)
        np.take(table, places[stretch], out=found[stretch], mode="wrap")
    return found


@lru_cache(maxsize=8)
def _recognised(tokenizer_json: str, spelling: Spelling) -> LookupTokenizer | None:
    tokenizer = parted_by_tags(tokenizer_json)
    if tokenizer is None:
        return None
    letters = _letter_tokens(tokenizer, spelling) if spelling.letters else _plain_letters(tokenizer)
    if letters is None:
        return None
    words = []
    for molecules, alphabets, size in (
        (("dna", "rna"), ("ACGT", "ACGU"), spelling.kmer),
        (("protein",), (_RESIDUES,), spelling.protein_kmer),
    ):
        if size > 1:
            table = _words(tokenizer, molecules, alphabets, size)
            if table is None:
                return None
            words.append(table)
    lookup = LookupTokenizer(tokenizer, spelling, letters, words)
    return lookup if agrees(lookup) else None


def _letter_tokens(tokenizer: Tokenizer, spelling: Spelling) -> npt.NDArray[np.int32] | None:
    """int32 [types, 256]: the token of each letter that is spelled as one."""
    letters = np.full((len(TYPES), 256), _UNKNOWN, np.int32)
    for molecule, spelled in spelling.letters:
        for letter in spelled:
            token = tokenizer.token_to_id(letter_token(molecule, letter))
            if token is None or not letter.isascii() or molecule not in TYPES:
                return None
            letters[TYPES.index(molecule), ord(letter)] = token
    return letters


def _plain_letters(tokenizer: Tokenizer) -> npt.NDArray[np.int32] | None:
    """int32 [types, 256]: the token of each capital letter as it stands, in molecules of all types the same."""
    # Tokens that join letters must be out of reach between the tags: what is one comes out as its letters.
    joined = [token for token in tokenizer.get_vocab(with_added_tokens=False) if set(token) <= set(LETTERS)]
    if np.any(encode_texts(tokenizer, [f"<protein>{token}</protein>" for token in joined]).lengths != _sizes(joined)):
        return None
    letters = np.full((len(TYPES), 256), _UNKNOWN, np.int32)
    for letter in LETTERS:
        ids = tokenizer.encode(letter, add_special_tokens=False).ids
        if len(ids) != 1:
            return None
        letters[:, ord(letter)] = ids[0]
    return letters


def _sizes(joined: list[str]) -> npt.NDArray[np.int64]:
    return np.array([len(token) + 2 for token in joined], np.int64)


def _words(tokenizer: Tokenizer, molecules: Sequence[str], alphabets: Sequence[str], kmer: int) -> _Words | None:
    """The table of all k-mers of any one of the alphabets; None where one, after a blank, is not one token."""
    letters = _BASES if len(alphabets) > 1 else alphabets[0]
    ordered = sorted({"".join(word) for alphabet in alphabets for word in itertools.product(alphabet, repeat=kmer)})
    found = encode_texts(tokenizer, [f" {word}" for word in ordered])
    if len(found.values) != len(ordered) or found.offsets[-1] != len(ordered) or np.any(np.diff(found.offsets) != 1):
        return None
    digits = np.full(256, -(len(letters) ** kmer), np.int32)
    digits[[ord(letter) for letter in letters]] = range(len(letters))
    tokens = np.full(len(letters) ** kmer + 1, _UNKNOWN, np.int32)
    codes = digits[np.array([[ord(letter) for letter in word] for word in ordered])]
    tokens[codes @ (len(letters) ** np.arange(kmer)[::-1])] = found.values
    return _Words(kmer, np.array([name in molecules for name in TYPES]), digits, len(letters), tokens)
