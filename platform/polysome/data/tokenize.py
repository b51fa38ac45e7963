"""Examples to token documents: encoded a block at a time, cropped or split to the length of a row."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polysome.data.crop import CropCount, crop_to_fit
from polysome.data.encode import Encoded, Encoder, Rendering
from polysome.data.ragged import Ragged
from polysome.data.schema import TOKENS
from polysome.data.spans import trained_spans, verify_spans
from polysome.specs import Dataset, MoleculeType

__all__ = ["Rendering", "Tokenized", "tokenize", "trained_spans", "verify_spans"]


@dataclass(frozen=True)
class Tokenized:
    """Token documents and what was done to get them.

    Attributes:
        documents: schema TOKENS.
        cropped: examples with a molecule that was cropped.
        unmatched: cropped examples in which `crop: match` found no match and kept the centre.
        cut: characters of each molecule type that cropping took away.
        characters: characters of each molecule type in the documents.
        split: corpus records that became several documents.
    """

    documents: pa.Table
    cropped: int
    unmatched: int
    cut: dict[MoleculeType, int]
    characters: dict[MoleculeType, int]
    split: int


def tokenize(
    examples: pa.Table, spec: Dataset, rendering: Rendering, tokenizer_json: str, max_length: int
) -> Tokenized:
    """Token documents (schema TOKENS) of examples (schema EXAMPLES).

    A corpus document longer than `max_length` is split into consecutive pieces, nothing lost; a piece's id ends with
    `/<its first token>`. A chat that is longer is cropped by the rules of its molecules, which never touch the question
    or the answer (AMB-14); one whose molecules may not be cropped is refused, because a cut chat is a wrong lesson.

    Args:
        tokenizer_json: content of tokenizer.json.

    Raises:
        DataError: a chat does not fit into `max_length`.
    """
    encoder = Encoder.of(tokenizer_json, rendering.spelling)
    if rendering.frame is None:
        encoded = encoder.encode(examples, spec, rendering)
        count = CropCount()
        documents, split = _corpus_pieces(examples["id"], encoded.ids, max_length)
    else:
        encoded, count = _fitting_chats(encoder, examples, spec, rendering, max_length)
        documents, split = _table(examples["id"], encoded.ids, encoded.target_starts), 0
    return Tokenized(documents, count.examples, count.unmatched, dict(count.cut), dict(encoded.characters), split)


def _fitting_chats(
    encoder: Encoder, examples: pa.Table, spec: Dataset, rendering: Rendering, max_length: int
) -> tuple[Encoded, CropCount]:
    encoded = encoder.encode(examples, spec, rendering)
    long = np.flatnonzero(encoded.ids.lengths > max_length)
    if not len(long):
        return encoded, CropCount()
    fitting, count = crop_to_fit(
        examples.take(pa.array(long)),
        spec,
        encoded.ids.lengths[long],
        max_length,
        lambda changed: encoder.encode(changed, spec, rendering).ids.lengths,
    )
    short = encoder.encode(fitting, spec, rendering)
    starts, lengths, target_starts = encoded.ids.offsets[:-1].copy(), encoded.ids.lengths, encoded.target_starts.copy()
    starts[long] = len(encoded.ids.values) + short.ids.offsets[:-1]
    lengths[long], target_starts[long] = short.ids.lengths, short.target_starts
    source = np.concatenate([encoded.ids.values, short.ids.values])
    ids = Ragged.gather(source, starts[:, None], lengths[:, None])
    return Encoded(ids, target_starts, encoded.characters - count.cut), count


def _corpus_pieces(identities: pa.ChunkedArray, documents: Ragged, max_length: int) -> tuple[pa.Table, int]:
    """A table of documents cut into pieces of at most `max_length` tokens, and how many had to be cut."""
    lengths = documents.lengths
    if not len(lengths) or lengths.max() <= max_length:
        return _table(identities, documents, np.zeros(len(lengths), np.int32)), 0
    pieces = np.maximum(1, -(-lengths // max_length))
    rows = np.repeat(np.arange(len(lengths)), pieces)
    within = (np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * max_length
    names = identities.take(pa.array(rows)).to_pylist()
    for place in np.flatnonzero(within).tolist():
        names[place] = f"{names[place]}/{within[place]}"
    # The pieces of a document follow one another, so its ids stay where they are.
    offsets = np.append(documents.offsets[rows] + within, documents.offsets[-1])
    cut = Ragged(offsets, documents.values)
    return _table(pa.array(names, pa.string()), cut, np.zeros(len(rows), np.int32)), int((pieces > 1).sum())


def _table(identities: pa.Array | pa.ChunkedArray, documents: Ragged, target_starts: npt.NDArray[np.int32]) -> pa.Table:
    names = identities.combine_chunks() if isinstance(identities, pa.ChunkedArray) else identities
    ids = pa.ListArray.from_arrays(pa.array(documents.offsets.astype(np.int32)), pa.array(documents.values))
    return pa.Table.from_arrays([names, ids, pa.array(target_starts, pa.int32())], schema=TOKENS)
