"""Tokens by table: sequences become token ids by arithmetic on Arrow's buffers where a vocabulary allows it.

It allows it when the molecule tags are tokens that split the text, and a capital letter between them (or, for DNA and
RNA spelled in k-mers, a k-mer after a blank) is always one token. Wordings around the molecules go through the
tokenizer itself, once each. The ids are those of the tokenizer, always: what a table does not hold it is asked for.
"""

import itertools
import json
import string
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from polysome.data.frame import spell_sequence, tagged_sequence, tags_around
from polysome.data.ragged import Ragged, offsets_of
from polysome.specs import MoleculeType

_TYPES: tuple[MoleculeType, ...] = get_args(MoleculeType)
_LETTERS = string.ascii_uppercase + "*"
_BASES = "ACGTU"
_UNKNOWN = -1


class LookupTokenizer:
    """A tokenizer whose molecules are looked up."""

    def __init__(
        self, tokenizer: Tokenizer, kmer: int, letters: npt.NDArray[np.int32], words: npt.NDArray[np.int32]
    ) -> None:
        """See `of`; `letters` int32 [256] by byte, `words` int32 [5^kmer] by the k-mer's digits in base 5."""
        self.tokenizer, self.kmer = tokenizer, kmer
        self._letters, self._words = letters, words
        # An unknown character is so far below zero that no other digits bring its k-mer back into the table.
        self._digits = np.full(256, -(len(_BASES) ** kmer), np.int32)
        self._digits[[ord(base) for base in _BASES]] = range(len(_BASES))

    @classmethod
    def of(cls, tokenizer_json: str, kmer: int) -> "LookupTokenizer | None":
        """The tables of a tokenizer, verified on it; None for one that is not of this kind."""
        return _recognised(tokenizer_json, kmer)

    def encode_sequences(
        self, values: pa.StringArray, molecule: MoleculeType
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Token ids of sequences as they stand between their tags.

        Returns:
            offsets, int64 [values + 1], and ids, int32 [tokens]: sequence `i` is `ids[offsets[i]:offsets[i + 1]]`.
        """
        types = np.full(len(values), _TYPES.index(molecule), np.int8)
        starts, lengths, source = self.locate(values, types)
        found = Ragged.gather(source, starts[:, None], lengths[:, None])
        return found.offsets, found.values

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
        text, offsets = _characters(values)
        starts, lengths = offsets[:-1].copy(), np.diff(offsets)
        spelled = (types != _TYPES.index("protein")) & (lengths >= self.kmer) & (self.kmer > 1)
        sources = []
        if not spelled.all() or not len(spelled):
            sources.append(_looked_up(self._letters, text))
        if spelled.any():
            starts[spelled] += sum(map(len, sources))
            lengths[spelled] -= self.kmer - 1
            sources.append(self._spelled(text))
        source = sources[0] if len(sources) == 1 else np.concatenate(sources)
        if len(source) and source.min() == _UNKNOWN:
            unknown = np.flatnonzero(source == _UNKNOWN)
            # Those that hold an unknown place; most of a k-mer table's unknown places lie between two sequences.
            holding = np.searchsorted(unknown, starts) < np.searchsorted(unknown, starts + lengths)
            source = self._ask(values, types, np.flatnonzero(holding), starts, lengths, source)
        return starts, lengths, source

    def _spelled(self, text: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """int32 [characters]: the token of the k-mer that begins at each character, over the ends of sequences too."""
        digits = self._digits[text]
        codes = np.zeros(len(text), np.int32)
        count = len(text) - self.kmer + 1
        for place in range(self.kmer):
            codes[:count] *= len(_BASES)
            codes[:count] += digits[place : place + count]
        np.maximum(codes, -1, out=codes)
        return _looked_up(self._words, codes)

    def _ask(
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
            molecule = _TYPES[types[place]]
            texts.append(tagged_sequence(molecule, spell_sequence(molecule, sequence, self.kmer)))
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


_BATCH_CHARACTERS = 1 << 20
_STRETCH = 1 << 16


def _looked_up(table: npt.NDArray[np.int32], places: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """`table[places]`, a stretch at a time that stays in the processor's cache while numpy widens the places."""
    found = np.empty(len(places), np.int32)
    for start in range(0, len(places), _STRETCH):
        stretch = slice(start, start + _STRETCH)
        np.take(table, places[stretch], out=found[stretch], mode="wrap")
    return found


def _characters(values: pa.StringArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes of a string array, and the offsets of its values in them, from 0; nothing is copied but the offsets."""
    _, offsets_buffer, data = values.buffers()
    if not len(values) or data is None:
        return np.zeros(0, np.uint8), np.zeros(len(values) + 1, np.int64)
    width = np.int64 if pa.types.is_large_string(values.type) else np.int32
    offsets = np.frombuffer(offsets_buffer, width)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    return np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0]


@lru_cache(maxsize=8)
def _recognised(tokenizer_json: str, kmer: int) -> LookupTokenizer | None:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tags = [tag for molecule in _TYPES for tag in tags_around(molecule)]
    if any(tokenizer.token_to_id(tag) is None for tag in tags):
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    content = json.loads(tokenizer_json)
    added = {token["content"]: token for token in content["added_tokens"]}
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    if not all(tag in added and plain.items() <= added[tag].items() for tag in tags):
        return None
    # Tokens that join letters must be out of reach between the tags: what is one comes out as its letters.
    joined = [token for token in tokenizer.get_vocab(with_added_tokens=False) if set(token) <= set(_LETTERS)]
    if np.any(encode_texts(tokenizer, [f"<protein>{token}</protein>" for token in joined]).lengths != _sizes(joined)):
        return None
    letters = np.full(256, _UNKNOWN, np.int32)
    for letter in _LETTERS:
        ids = tokenizer.encode(letter, add_special_tokens=False).ids
        if len(ids) != 1:
            return None
        letters[ord(letter)] = ids[0]
    # One place more than there are k-mers: index -1, which stands for a k-mer with an unknown character.
    words = np.full(len(_BASES) ** kmer + 1, _UNKNOWN, np.int32)
    if kmer > 1 and not _fill_words(tokenizer, kmer, words):
        return None
    lookup = LookupTokenizer(tokenizer, kmer, letters, words)
    return lookup if _agrees(lookup) else None


def _sizes(joined: list[str]) -> npt.NDArray[np.int64]:
    return np.array([len(token) + 2 for token in joined], np.int64)


def _fill_words(tokenizer: Tokenizer, kmer: int, words: npt.NDArray[np.int32]) -> bool:
    """Whether every k-mer of ACGT and of ACGU, after a blank, is one token."""
    spellings = {"".join(letters) for bases in ("ACGT", "ACGU") for letters in itertools.product(bases, repeat=kmer)}
    ordered = sorted(spellings)
    found = encode_texts(tokenizer, [f" {word}" for word in ordered])
    if len(found.values) != len(ordered) or found.offsets[-1] != len(ordered) or np.any(np.diff(found.offsets) != 1):
        return False
    codes = np.array([[_BASES.index(letter) for letter in word] for word in ordered])
    words[codes @ (len(_BASES) ** np.arange(kmer)[::-1])] = found.values
    return True


def _agrees(lookup: LookupTokenizer) -> bool:
    """Whether looked-up sequences between separately encoded texts are what the tokenizer makes of the whole."""
    random = np.random.default_rng(0)
    probes: list[tuple[MoleculeType, str]] = [
        ("dna", "ACGT"),
        ("rna", "ACGU"),
        ("protein", _LETTERS),
        ("dna", _LETTERS),
    ]
    for molecule, alphabet in probes:
        sequence = "".join(random.choice(list(alphabet), 600)) + alphabet
        opening, closing = tags_around(molecule)
        for before, after in (("", ""), ("Is this ", ", a word? "), (" ", " "), ("X", "X"), ("\n", "\nno")):
            pieces = encode_texts(lookup.tokenizer, [before + opening, closing + after])
            _, ids = lookup.encode_sequences(pa.array([sequence]), molecule)
            built = [*pieces.values[: pieces.offsets[1]], *ids, *pieces.values[pieces.offsets[1] :]]
            whole = before + opening + spell_sequence(molecule, sequence, lookup.kmer) + closing + after
            if built != lookup.tokenizer.encode(whole, add_special_tokens=False).ids:
                return False
    return True
