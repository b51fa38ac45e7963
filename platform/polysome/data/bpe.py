"""Tokens by byte-pair encoding: sequences become the tokens that a BPE vocabulary's merges give, in linear time.

What BPE makes of a text is the one way to cut it into tokens of which any two that meet are compatible: BPE of their
joined text gives the two back. So the last token of a text that grows by a letter is, of the few tokens that it ends
with, the one compatible with the last token of the text before it, which is known. The algorithm is that of GitHub's
`bpe` crate (H. van Antwerpen, A. Neubeck: So many tokens, so little time: introducing a faster, more flexible byte-pair
tokenizer, GitHub blog 2024; github.com/github/rust-gems/tree/main/crates/bpe), here on the merges of the letters of
molecules alone.

It needs numba, so this module is imported where a tokenizer asks for it.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer, models

from polysome.data.frame import UNSPELLED
from polysome.data.molecule_table import LETTERS, MoleculeTable, agrees, characters, parted_by_tags

_MOST_TOKENS, _MOST_NODES = 8192, 1 << 16
"""Of letters. What is known of pairs takes a quarter of a byte for each, and numbers are of 16 bits."""
_NONE = np.uint16((1 << 16) - 1)
_NO_LETTER = 255
_NEVER = np.iinfo(np.int32).max
_UNSEEN, _APART, _JOINED = range(3)


class BytePairTokenizer(MoleculeTable):
    """A BPE tokenizer whose molecules are encoded here."""

    def __init__(self, tokenizer: Tokenizer, merges: "_Merges", words: "_Words", *, shortest: int) -> None:
        """See `of`; molecules of fewer letters than `shortest` are left to the tokenizer."""
        super().__init__(tokenizer, UNSPELLED)
        self._merges, self._words, self._shortest = merges, words, shortest
        # Two bits a pair. Which ones are compatible is found when they first meet; most never do.
        self._pairs = np.zeros((len(words.ids), len(words.ids) // 4 + 1), np.uint8)

    @classmethod
    def of(cls, tokenizer_json: str) -> "BytePairTokenizer | None":
        """The tables of a tokenizer, verified on it; None for one that is not of this kind."""
        return _recognised(tokenizer_json)

    def locate(
        self, values: pa.StringArray, types: npt.NDArray[np.int8]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """See `MoleculeTable`."""
        text, offsets = characters(values)
        source, lengths = np.empty(len(text), np.int32), np.zeros(len(values), np.int64)
        if len(text):
            written = _encode(text, offsets, self._shortest, self._words, self._merges, self._pairs, source, lengths)
            source = source[:written]
        asked = np.flatnonzero(lengths < 0)
        lengths[asked] = 0
        starts = np.cumsum(lengths) - lengths
        if len(asked):
            source = self.ask(values, types, asked, starts, lengths, source)
        return starts, lengths, source


class _Merges(NamedTuple):
    """How the tokens made of letters come to be; tokens have numbers of their own here, the letters first.

    Attributes:
        left, right: int32 [tokens], what a token is merged from; a letter from itself.
        rank: int32 [tokens], of the merge that makes it; -1 for a letter.
        keys: int64 [a power of two], left << 32 | right of a merge at a place told by `_slot` or after it; -1 is free.
        ranks: int32 [the same], of that merge.
    """

    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    rank: npt.NDArray[np.int32]
    keys: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int32]


class _Words(NamedTuple):
    """The tokens that BPE can give, by their text: an automaton (A. Aho, M. Corasick, 1975) that tells the longest one
    that a text ends with, letter by letter.

    Attributes:
        letter_of: uint8 [256], number of a letter by its byte; _NO_LETTER.
        following: uint16 [nodes, letters], the node after a letter; a text begins at node 0.
        ending: uint16 [nodes], the longest token that a node's text ends with.
        shorter: uint16 [tokens], the next shorter token that a token's text ends with; _NONE.
        size: uint8 [tokens], letters.
        ids: int32 [tokens], the tokenizer's.
    """

    letter_of: npt.NDArray[np.uint8]
    following: npt.NDArray[np.uint16]
    ending: npt.NDArray[np.uint16]
    shorter: npt.NDArray[np.uint16]
    size: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.int32]


@lru_cache(maxsize=8)
def _recognised(tokenizer_json: str) -> BytePairTokenizer | None:
    tokenizer = parted_by_tags(tokenizer_json)
    if tokenizer is None or not isinstance(tokenizer.model, models.BPE):
        return None
    model = tokenizer.model
    if model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    content = json.loads(tokenizer_json)["model"]
    # A stop is a word of its own for some; sequences without one are then still encoded here.
    for alphabet in (LETTERS, LETTERS.replace("*", "")):
        letters = [letter for letter in alphabet if letter in content["vocab"]]
        if letters and _one_word(tokenizer, letters):
            table = _table(tokenizer, content, letters)
            if table and agrees(table, [text for text in content["vocab"] if set(text) <= set(letters)]):
                return table
    return None


def _one_word(tokenizer: Tokenizer, letters: list[str]) -> bool:
    """Whether a run of these letters reaches the model as it stands and in one piece."""
    random = np.random.default_rng(0)
    sizes = (*range(1, 65), 1000, 10_000)
    for text in [*letters, "".join(letters), *("".join(random.choice(letters, size)) for size in sizes)]:
        seen = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        if seen != text:
            return False
        words = tokenizer.pre_tokenizer.pre_tokenize_str(text) if tokenizer.pre_tokenizer else [(text, None)]
        if [word for word, _ in words] != [text]:
            return False
    return True


def _table(tokenizer: Tokenizer, content: dict[str, Any], letters: list[str]) -> BytePairTokenizer | None:
    """The tables, not yet verified; None where there are too many tokens, or merges in an order that BPE's would not
    follow."""
    vocabulary, allowed = content["vocab"], set(letters)
    texts = letters + [text for text in vocabulary if len(text) > 1 and set(text) <= allowed]
    if len(texts) > _MOST_TOKENS:
        return None
    number = {text: place for place, text in enumerate(texts)}
    ranks: dict[tuple[int, int], int] = {}
    for rank, merge in enumerate(content["merges"]):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        if first in number and second in number:
            # Of a pair that stands twice the tokenizer keeps the last rank.
            ranks[number[first], number[second]] = rank
    ordered = sorted(ranks, key=ranks.__getitem__)
    made = [number[texts[first] + texts[second]] for first, second in ordered]
    pairs = np.array(ordered, np.int32).reshape(-1, 2)
    room = 1 << (4 * len(pairs) + 1).bit_length()
    merges = _Merges(
        left=np.arange(len(texts), dtype=np.int32),
        right=np.arange(len(texts), dtype=np.int32),
        rank=np.full(len(texts), -1, np.int32),
        keys=np.full(room, -1, np.int64),
        ranks=np.zeros(room, np.int32),
    )
    possible = np.arange(len(texts)) < len(letters)
    pair_ranks = np.array([ranks[pair] for pair in ordered], np.int32)
    if not _derive(pairs, pair_ranks, np.array(made, np.int32), merges, possible):
        return None
    words = _words(texts, letters, possible, np.array([vocabulary[text] for text in texts], np.int32))
    if words is None:
        return None
    # A word that is a token as a whole is then given as that, whether merges lead to it or not.
    shortest = 1 + max(map(len, texts)) if content.get("ignore_merges") else 0
    return BytePairTokenizer(tokenizer, merges, words, shortest=shortest)


def _words(
    texts: list[str], letters: list[str], possible: npt.NDArray[np.bool_], ids: npt.NDArray[np.int32]
) -> _Words | None:
    number = {text: place for place, text in enumerate(texts) if possible[place]}
    nodes = sorted({text[:end] for text in number for end in range(len(text) + 1)}, key=len)
    if len(nodes) > _MOST_NODES or len(nodes[-1]) > np.iinfo(np.uint8).max:
        return None
    node_of = {text: node for node, text in enumerate(nodes)}
    column = {letter: place for place, letter in enumerate(letters)}
    following = np.zeros((len(nodes), len(letters)), np.uint16)
    for node, text in enumerate(nodes[1:], 1):
        following[node_of[text[:-1]], column[text[-1]]] = node
    ending, shorter = np.zeros(len(nodes), np.uint16), np.full(len(texts), _NONE)
    # The node of the longest end of a node's text that is a node too. It is shorter, so it and its row come before.
    rest = np.zeros(len(nodes), np.int64)
    for node, text in enumerate(nodes[1:], 1):
        parent = node_of[text[:-1]]
        rest[node] = following[rest[parent], column[text[-1]]] if parent else 0
        following[node] = np.where(following[node], following[node], following[rest[node]])
        ending[node] = number.get(text, ending[rest[node]])
        if text in number and rest[node]:
            shorter[number[text]] = ending[rest[node]]
    letter_of = np.full(256, _NO_LETTER, np.uint8)
    letter_of[[ord(letter) for letter in letters]] = range(len(letters))
    size = np.array([len(text) if text in number else 0 for text in texts], np.uint8)
    return _Words(letter_of, following, ending, shorter, size, ids)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled by numba when first called, and kept on disk where there is a folder for it."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:
        # Neither beside this file, nor in the user's cache, nor in NUMBA_CACHE_DIR can be written.
        return numba.njit(function)


@_compiled
def _slot(key, keys):  # type: ignore[no-untyped-def]
    """The place of a key among the keys, or of the free one where it belongs."""
    mask = len(keys) - 1
    place = ((key ^ (key >> 29)) * 0x9E3779B97F4A7C1 >> 20) & mask
    while keys[place] != key and keys[place] != -1:
        place = (place + 1) & mask
    return place


@_compiled
def _compatible(first, second, limit, merges):  # type: ignore[no-untyped-def]
    """Whether merges of a lower rank than `limit` leave two tokens' texts, one after the other, as these two tokens.

    The merges that made the two are undone from the last to the first. Were the pieces that then meet ever merged with
    one another before they were merged otherwise, the two would not come out.
    """
    while True:
        key = (np.int64(first) << 32) | np.int64(second)
        place = _slot(key, merges.keys)
        if merges.keys[place] == key and merges.ranks[place] < limit:
            return False
        if merges.rank[first] > merges.rank[second]:
            limit = merges.rank[first]
            first = merges.right[first]
        elif merges.rank[second] >= 0:
            # Of equal pairs the left one is merged first: the one that meets would come before this one.
            limit = merges.rank[second] + 1
            second = merges.left[second]
        else:
            return True


@_compiled
def _derive(pairs, ranks, made, merges, possible):  # type: ignore[no-untyped-def]
    """Fill the merges, and tell which tokens are `possible`: what BPE makes of their own text.

    Returns whether no token is merged from one that a later merge makes, which `_compatible` relies on.
    """
    for number in range(len(pairs)):
        key = (np.int64(pairs[number, 0]) << 32) | np.int64(pairs[number, 1])
        place = _slot(key, merges.keys)
        merges.keys[place] = key
        merges.ranks[place] = ranks[number]
    early = np.zeros(len(pairs), np.bool_)
    for number in range(len(pairs)):
        first, second, token = pairs[number, 0], pairs[number, 1], made[number]
        if not (possible[first] and possible[second]):
            early[number] = True
        elif not possible[token] and _compatible(first, second, ranks[number], merges):
            possible[token] = True
            merges.left[token], merges.right[token], merges.rank[token] = first, second, ranks[number]
    for number in range(len(pairs)):
        if early[number] and possible[pairs[number, 0]] and possible[pairs[number, 1]]:
            return False
    return True


@_compiled
def _meet(first, second, merges, pairs):  # type: ignore[no-untyped-def]
    """Find, and keep, whether two tokens are compatible; _APART or _JOINED."""
    found = _APART if _compatible(first, second, _NEVER, merges) else _JOINED
    pairs[first, second >> 2] |= found << ((second & 3) * 2)
    return found


@_compiled
def _encode(text, offsets, shortest, words, merges, pairs, source, lengths):  # type: ignore[no-untyped-def]
    """Write the ids of each sequence to `source`, one after the other, and its tokens, or -1 for one that is to be
    asked for, to `lengths`; returns the ids written."""
    written, longest = 0, 0
    for row in range(len(lengths)):
        longest = max(longest, offsets[row + 1] - offsets[row])
    # The last token of the text up to each place. An index without a sign is faster: it may not count from the end.
    last = np.empty(longest + 1, np.uint16)
    for row in range(len(lengths)):
        begin, size = offsets[row], offsets[row + 1] - offsets[row]
        node, token = np.uint16(0), _NONE
        for place in range(1, size + 1):
            letter = words.letter_of[text[np.uintp(begin + place - 1)]]
            token = _NONE
            if letter == _NO_LETTER:
                break
            node = words.following[node, letter]
            token = words.ending[node]
            while token != _NONE:
                before = place - words.size[token]
                if before == 0:
                    break
                previous = last[np.uintp(before)]
                known = (pairs[previous, np.uintp(token >> 2)] >> ((token & 3) * 2)) & 3
                if known == _UNSEEN:
                    known = _meet(previous, token, merges, pairs)
                if known == _APART:
                    break
                token = words.shorter[token]
            if token == _NONE:
                break
            last[np.uintp(place)] = token
        if size and (token == _NONE or size < shortest):
            lengths[row] = -1
            continue
        count, place = 0, size
        while place > 0:
            count += 1
            place -= words.size[last[place]]
        lengths[row] = count
        written += count
        index, place = written, size
        while place > 0:
            index -= 1
            source[index] = words.ids[last[place]]
            place -= words.size[last[place]]
    return written
