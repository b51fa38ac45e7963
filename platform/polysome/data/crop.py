"""Cropping: molecules of a chat that is too long are cut to a budget of tokens, question and answer never (AMB-14).

The budget is shared among the croppable molecules in proportion to their length. Tokens are measured, not assumed, so
it holds for any tokenizer.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polysome.config import DataError
from polysome.data.clean import reverse_complement
from polysome.specs import Dataset, MoleculeType

_ATTEMPTS = 4

Measure = Callable[[pa.Table], npt.NDArray[np.int64]]
"""Tokens, int64 [examples], of the whole chats of a table of examples."""


@dataclass(frozen=True)
class CropCount:
    """What cropping took.

    Attributes:
        examples: how many were cropped.
        unmatched: of these, how many kept the centre because `crop: match` found no match.
        cut: characters taken from each molecule type.
    """

    examples: int = 0
    unmatched: int = 0
    cut: Counter[MoleculeType] = field(default_factory=Counter)


def crop_to_fit(
    examples: pa.Table, spec: Dataset, lengths: npt.NDArray[np.int64], limit: int, measure: Measure
) -> tuple[pa.Table, CropCount]:
    """The examples with their croppable molecules cut until each chat has at most `limit` tokens.

    Characters are cut in proportion to the tokens that are too many, and measured again, a few times; then as if each
    character that is kept were a token, which fits every tokenizer that has no more tokens than characters.

    Args:
        examples: schema EXAMPLES, all of them too long.
        lengths: int64 [examples], tokens of their chats.

    Raises:
        DataError: a chat has no molecule that may be cropped, or would be left with less of one than its
            `minimum_length`.
    """
    croppable = [place for place, molecule in enumerate(spec.molecules) if molecule.crop is not None]
    if not croppable:
        raise _too_long(examples, 0, lengths, limit, spec, "declare `crop` for a molecule or bound its maximum_length")
    whole = examples["sequences"].to_pylist()
    full = np.array([[len(sequences[place]) for place in croppable] for sequences in whole], np.int64)
    least = np.minimum([spec.molecules[place].minimum_length for place in croppable], full)
    # One character of each is left, because a sequence is never empty; it counts as one token.
    bare = measure(_with(examples, _cropped(whole, spec, croppable, np.ones_like(full)))) - len(croppable)
    keep, tokens = full.copy(), lengths.copy()
    for attempt in range(_ATTEMPTS + 1):
        over = np.flatnonzero(tokens > limit)
        if not len(over):
            break
        # Characters that the room takes at the tokens per character just measured, at last at one token for each.
        density = (tokens[over] - bare[over]) / keep[over].sum(axis=1) if attempt < _ATTEMPTS else 1.0
        room = (limit - bare[over]) / np.maximum(density, 1e-9) * (1 - attempt / 50)
        keep[over] = _shared(room, keep[over], least[over])
        part = _cropped([whole[row] for row in over.tolist()], spec, croppable, keep[over])
        tokens[over] = measure(_with(examples.take(pa.array(over)), part))
    if len(over := np.flatnonzero(tokens > limit)):
        remedy = "lower the minimum_length of the molecules that are cropped"
        raise _too_long(examples, int(over[0]), lengths, limit, spec, remedy)
    cut: Counter[MoleculeType] = Counter()
    for place, characters in zip(croppable, (full - keep).sum(axis=0).tolist(), strict=True):
        cut[spec.molecules[place].type] += characters
    sought = [place for place in croppable if spec.molecules[place].crop == "match"]
    unmatched = sum(any(_match(sequences, spec, place) is None for place in sought) for sequences in whole)
    return _with(examples, _cropped(whole, spec, croppable, keep)), CropCount(len(whole), unmatched, cut)


def window(sequences: Sequence[str], spec: Dataset, place: int, keep: int) -> str:
    """The `keep` characters of molecule `place` that its rule keeps.

    Args:
        sequences: all molecules of the example, whole.
    """
    sequence, rule = sequences[place], spec.molecules[place].crop
    spare = len(sequence) - keep
    if spare <= 0:
        return sequence
    start = spare // 2
    if rule == "head":
        start = 0
    elif rule == "tail":
        start = spare
    elif rule == "match" and (found := _match(sequences, spec, place)) is not None:
        start = min(max((found[0] + found[1] - keep) // 2, 0), spare)
    return sequence[start : start + keep]


def _match(sequences: Sequence[str], spec: Dataset, place: int) -> tuple[int, int] | None:
    """Begin and end of the stretch that pairs with, or equals, the molecule that `match_role` names."""
    wanted = spec.molecules[place].match_role
    partner = next(index for index, molecule in enumerate(spec.molecules) if molecule.role == wanted)
    sequence, sought = (sequences[index].upper().replace("U", "T") for index in (place, partner))
    for form in (reverse_complement(sought), sought):
        begin = sequence.find(form)
        if begin >= 0:
            return begin, begin + len(form)
    return None


def _shared(
    room: npt.NDArray[np.float64], kept: npt.NDArray[np.int64], least: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Characters [examples, molecules] that share the room in proportion to their length, at least `least` of each, and
    fewer than were kept so far wherever that is possible."""
    ratio = (room - least.sum(axis=1)) / np.maximum((kept - least).sum(axis=1), 1)
    shared = least + np.floor((kept - least) * np.clip(ratio, 0, 1)[:, None]).astype(np.int64)
    return np.maximum(np.minimum(shared, kept - 1), least)


def _cropped(
    whole: list[list[str]], spec: Dataset, croppable: list[int], keep: npt.NDArray[np.int64]
) -> list[list[str]]:
    made = []
    for sequences, lengths in zip(whole, keep.tolist(), strict=True):
        shorter = list(sequences)
        for place, length in zip(croppable, lengths, strict=True):
            shorter[place] = window(sequences, spec, place, length)
        made.append(shorter)
    return made


def _with(examples: pa.Table, sequences: list[list[str]]) -> pa.Table:
    place = examples.schema.get_field_index("sequences")
    return examples.set_column(place, examples.schema.field(place), pa.array(sequences, pa.list_(pa.string())))


def _too_long(
    examples: pa.Table, row: int, lengths: npt.NDArray[np.int64], limit: int, spec: Dataset, remedy: str
) -> DataError:
    return DataError(
        f"the chat has {lengths[row]} tokens, a row takes {limit}",
        where=str(examples["id"][row].as_py()),
        fix=f"raise max_length, or in datasets_spec/{spec.name}.yaml {remedy}",
    )
