"""Which tokens of a document are trained on: shown to a reader, and verified against the text that they should be."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer

from polysome.config import DataError
from polysome.data.encode import Rendering, framed, plain_tokenizer
from polysome.data.frame import Spelling, spell_sequence, unspell_sequence
from polysome.data.render import chosen, told
from polysome.data.skeleton import Skeleton
from polysome.specs import Dataset

VERIFIED_DOCUMENTS = 64
_INCOMPLETE = "\ufffd"


def trained_spans(input_ids: Sequence[int], target_start: int, tokenizer_json: str) -> list[tuple[str, bool]]:
    """A document's tokens as text, in order, each with whether it is trained on.

    The loss is on `input_ids[target_start:]`, never on a document's first token. Tokens that hold only a part of a
    character are joined.
    """
    tokenizer = plain_tokenizer(tokenizer_json)
    first_target = max(target_start, 1)
    spans: list[tuple[str, bool]] = []
    for part, trained in ((input_ids[:first_target], False), (input_ids[first_target:], True)):
        spans += [(text, trained) for text in _texts(tokenizer, part)]
    return spans


def verify_spans(
    documents: pa.Table,
    examples: pa.Table,
    spec: Dataset,
    rendering: Rendering,
    tokenizer_json: str,
    *,
    sample: int = VERIFIED_DOCUMENTS,
) -> int:
    """Decode documents and compare: what is not trained on is the prompt, what is trained on is the answer and the end
    of its turn, and molecules are those of the example, or the part of them that cropping kept.

    Args:
        documents: schema TOKENS, all that `tokenize` made of `examples`, in its order.
        examples: schema EXAMPLES.
        sample: how many examples are looked at, the first ones.

    Returns:
        How many examples were verified.

    Raises:
        DataError: a document says something else than its example; the tokenizer or its template is not usable.
    """
    tokenizer = plain_tokenizer(tokenizer_json)
    examples = examples.slice(0, sample)
    block = framed(examples, spec, rendering)
    rows = examples.to_pylist()
    for row, number, (prompt_ids, answer_ids) in zip(rows, block.skeleton_of, _parts(documents, rows), strict=True):
        prompt, answer = (tokenizer.decode(ids, skip_special_tokens=False) for ids in (prompt_ids, answer_ids))
        kept = _molecules(block.skeletons[number], row["sequences"], prompt, rendering.spelling)
        if kept is None:
            raise _wrong(row, "prompt", prompt)
        if rendering.frame is None:
            if kept != row["sequences"]:
                raise _wrong(row, "document", prompt)
            continue
        # A reasoning answer is about the molecules as they stand in the prompt.
        shown = row | {"sequences": kept}
        draw = chosen(spec, row, rendering.seed, rendering.style)
        if not _same(answer, told(spec, shown, draw, rendering.prompt) + rendering.frame.after):
            raise _wrong(row, "answer that is trained on", answer)
    return len(rows)


def _parts(documents: pa.Table, rows: list[dict[str, Any]]) -> Iterator[tuple[list[int], list[int]]]:
    """Ids before and from the target's start, for each example; the pieces of a record that was split joined again."""
    place = 0
    for row in rows:
        identity, begun = row["id"], place
        prompt: list[int] = []
        answer: list[int] = []
        while place < documents.num_rows:
            document = documents.slice(place, 1).to_pylist()[0]
            if document["id"] != identity and (place == begun or not _is_piece(document["id"], identity, len(prompt))):
                break
            start = document["target_start"] or len(document["input_ids"])
            prompt += document["input_ids"][:start]
            answer += document["input_ids"][start:]
            place += 1
        yield prompt, answer


def _is_piece(document: str, identity: str, start: int) -> bool:
    return document == f"{identity}/{start}"


def _molecules(skeleton: Skeleton, sequences: list[str], prompt: str, spelling: Spelling) -> list[str] | None:
    """What a prompt holds of each sequence; None when it is not this skeleton filled with these sequences."""
    shown = list(sequences)
    first = skeleton.pieces[0]
    if not prompt.startswith(first):
        first, prompt = first.lstrip(" "), prompt.lstrip(" ")
    if not prompt.startswith(first):
        return None
    position = len(first)
    for piece, index, molecule in zip(skeleton.pieces[1:], skeleton.places, skeleton.types, strict=True):
        end = prompt.find(piece, position)
        if end < 0:
            return None
        spelled = prompt[position:end]
        sequence = unspell_sequence(molecule, spelled, spelling)
        if sequence not in sequences[index] or spell_sequence(molecule, sequence, spelling) != spelled:
            return None
        shown[index] = sequence
        position = end + len(piece)
    return shown if position == len(prompt) else None


def _same(found: str, wanted: str) -> bool:
    # Some tokenizers put a blank before the first word when they encode, and take it away when they decode.
    return found == wanted or found.lstrip(" ") == wanted.lstrip(" ")


def _texts(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[str]:
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        text = tokenizer.decode(pending, skip_special_tokens=False)
        if not text.endswith(_INCOMPLETE):
            yield text
            pending = []
    if pending:
        yield tokenizer.decode(pending, skip_special_tokens=False)


def _wrong(row: Mapping[str, Any], what: str, found: str) -> DataError:
    shown = found if len(found) <= 400 else f"{found[:200]} … {found[-200:]}"
    return DataError(
        f"decoding the tokens does not give the {what}, but {shown!r}",
        where=str(row["id"]),
        fix="use a tokenizer that encodes without loss: no lower-casing, no cleaning, nothing unknown",
    )
