"""Examples to token documents: rendered by template, encoded a whole column at a time by the fast tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from polysome.config import DataError
from polysome.data import render
from polysome.data.render import ChatFrame
from polysome.data.schema import TOKENS
from polysome.specs import Dataset, Prompt

_PIECE_SUFFIX = "/"


@dataclass(frozen=True)
class Rendering:
    """How the examples of one source become text.

    Attributes:
        frame: the chat template taken apart; None for a corpus, which is trained on as raw text.
        kmer: in which DNA and RNA are spelled.
        bos, eos: text of the tokenizer's begin and end tokens, put around a corpus document (A-92).
        prompt: system prompt; `reasoning` also asks for the worked-out answer (A-73).
        tag_fraction: share of examples that get the task tag (A-60).
        seed: of template and tag choices; differs per repeat of a source.
    """

    frame: ChatFrame | None
    kmer: int
    bos: str
    eos: str
    prompt: Prompt
    tag_fraction: float
    seed: int


def tokenize(examples: pa.Table, spec: Dataset, rendering: Rendering, tokenizer_json: str, max_length: int) -> pa.Table:
    """Token documents (schema TOKENS) of examples (schema EXAMPLES).

    A corpus document longer than `max_length` is split into consecutive pieces, nothing lost. A chat that is longer
    is refused, because a cut chat is a wrong lesson.

    Args:
        tokenizer_json: content of tokenizer.json.

    Raises:
        DataError: a chat does not fit into `max_length`.
    """
    encoder = _encoder(tokenizer_json)
    identities = examples["id"].to_pylist()
    if rendering.frame is None:
        molecule = spec.molecules[0].type
        texts = [
            rendering.bos + render.spell(render.tagged_sequence(molecule, sequences[0]), rendering.kmer) + rendering.eos
            for sequences in examples["sequences"].to_pylist()
        ]
        documents = _encode(encoder, texts)
        return _corpus_pieces(identities, documents, max_length)
    prompts, answers = _chats(examples, spec, rendering)
    asked, told = _encode(encoder, prompts), _encode(encoder, answers)
    for identity, left, right in zip(identities, asked, told, strict=True):
        if len(left) + len(right) > max_length:
            raise DataError(
                f"the chat has {len(left) + len(right)} tokens, a row takes {max_length}",
                where=identity,
                fix="raise max_length, or bound the molecule's maximum_length in the data set's spec",
            )
    ids = [left + right for left, right in zip(asked, told, strict=True)]
    return _table(identities, ids, [len(left) for left in asked])


def _chats(examples: pa.Table, spec: Dataset, rendering: Rendering) -> tuple[list[str], list[str]]:
    """Prompts and the answers (with the end of the turn) that are trained on, in the order of the examples."""
    assert rendering.frame is not None
    prompts, answers = [], []
    columns = (examples[name].to_pylist() for name in ("id", "sequences", "label"))
    for identity, sequences, label in zip(*columns, strict=True):
        asked = render.question(
            spec,
            sequences,
            template=render.choose_question_template(spec, identity, rendering.seed),
            tagged=render.choose(identity, rendering.seed, "tag") < rendering.tag_fraction,
        )
        if rendering.prompt == "reasoning":
            told = render.reasoning_answer(spec, sequences, label)
        else:
            told = render.answer(spec, label, render.choose_answer_template(spec, label, identity, rendering.seed))
        prompts.append(rendering.frame.prompt(asked))
        answers.append(told + rendering.frame.after)
    return prompts, answers


@cache
def _encoder(tokenizer_json: str) -> Tokenizer:
    """One encoder per worker process."""
    encoder = Tokenizer.from_str(tokenizer_json)
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _encode(encoder: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in encoder.encode_batch_fast(list(texts), add_special_tokens=False)]


def _corpus_pieces(identities: list[str], documents: list[list[int]], max_length: int) -> pa.Table:
    pieces = [
        (identity if not start else f"{identity}{_PIECE_SUFFIX}{start}", ids[start : start + max_length])
        for identity, ids in zip(identities, documents, strict=True)
        for start in range(0, len(ids), max_length)
    ]
    return _table([name for name, _ in pieces], [ids for _, ids in pieces], [0] * len(pieces))


def _table(identities: list[str], documents: list[list[int]], target_starts: list[int]) -> pa.Table:
    lengths = np.fromiter((len(ids) for ids in documents), np.int32, len(documents))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    values = np.fromiter((token for ids in documents for token in ids), np.int32, int(offsets[-1]))
    return pa.Table.from_arrays(
        [
            pa.array(identities, pa.string()),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)),
            pa.array(target_starts, pa.int32()),
        ],
        schema=TOKENS,
    )
