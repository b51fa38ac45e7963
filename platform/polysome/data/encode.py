"""Encoding: how the examples of a source become text, and a block of them token ids, by table or by the tokenizer."""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from polysome.config import DataError
from polysome.data.frame import ChatFrame, Spelling, TagStyle, sequence_spelling, spell, spell_sequence, tags_around
from polysome.data.lookup import LookupTokenizer
from polysome.data.molecule_table import TYPES, MoleculeTable, encode_texts
from polysome.data.ragged import Ragged
from polysome.data.render import Block, choose, render
from polysome.data.skeleton import Skeleton, Style, TaskTag, Wording, check_style
from polysome.specs import Dataset, MoleculeType, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rendering:
    """How the examples of one source become text.

    Attributes:
        frame: the chat template taken apart; None for a corpus, which is trained on as raw text.
        spelling: how molecules are written between their tags.
        bos, eos: text of the tokenizer's begin and end tokens, put around a corpus document (A-92).
        prompt: system prompt; `reasoning` also asks for the worked-out answer (A-73).
        seed: of template and tag choices.
        wording, task_tag, tag_style: see `Style`.
    """

    frame: ChatFrame | None
    spelling: Spelling
    bos: str
    eos: str
    prompt: Prompt
    seed: int
    wording: Wording = "faithful"
    task_tag: TaskTag = dataclasses.field(default_factory=TaskTag)
    tag_style: TagStyle = "xml"

    @classmethod
    def of(
        cls, tokenizer: "PreTrainedTokenizerBase", *, chat: bool, prompt: Prompt, seed: int, style: Style | None = None
    ) -> "Rendering":
        """The rendering for a tokenizer that `load_tokenizer` gave: chats with `prompt`, or raw documents."""
        style = style or Style()
        return cls(
            frame=ChatFrame.of(tokenizer, prompt) if chat else None,
            spelling=sequence_spelling(tokenizer),
            bos=str(tokenizer.bos_token or ""),
            eos=str(tokenizer.eos_token),
            prompt=prompt,
            seed=seed,
            wording=style.wording,
            task_tag=style.task_tag,
            tag_style=style.tag_style,
        )

    @property
    def style(self) -> Style:
        """How questions are worded and tagged."""
        return Style(self.task_tag, self.wording, self.tag_style)

    def for_pass(self, number: int) -> "Rendering":
        """The same for another pass over the source, 0 being the first: templates and tags are drawn anew (A-91)."""
        if number == 0:
            return self
        return dataclasses.replace(self, seed=int(choose(str(number), self.seed, "pass") * 2**31))


@dataclass(frozen=True)
class Encoded:
    """Token ids of whole documents.

    Attributes:
        ids: a row per document.
        target_starts: int32 [documents], tokens before the answer; 0 in a corpus.
        characters: characters of each molecule type.
    """

    ids: Ragged
    target_starts: npt.NDArray[np.int32]
    characters: Counter[MoleculeType]


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, and its table of molecules if it has one; one of a kind in a worker process."""

    tokenizer: Tokenizer
    table: MoleculeTable | None

    @staticmethod
    def of(tokenizer_json: str, spelling: Spelling) -> "Encoder":
        """The encoder for the content of a tokenizer.json."""
        return _encoder(tokenizer_json, spelling)

    def encode(self, examples: pa.Table, spec: Dataset, rendering: Rendering) -> Encoded:
        """Documents of examples (schema EXAMPLES), however long, in their order.

        Raises:
            ConfigurationError, DataError: the examples cannot be rendered so; or a record's own wording holds a special
                token of the tokenizer, which would begin or end a turn.
        """
        _refuse_special_tokens(self.tokenizer, examples)
        block = framed(examples, spec, rendering)
        layout = _Layout.of(block, examples["sequences"].combine_chunks())
        answers = encode_texts(self.tokenizer, block.answers)
        if self.table is None:
            asked = encode_texts(self.tokenizer, prompts(block, examples, rendering.spelling))
            source = np.concatenate([asked.values, answers.values])
            starts, lengths = asked.offsets[:-1, None], asked.lengths[:, None]
        else:
            # The same from pieces: wordings encoded once each, molecules by table. Tags are tokens and part the two.
            wordings = encode_texts(self.tokenizer, layout.texts)
            molecules, molecule_lengths, found = self.table.locate(layout.values, layout.types)
            source = np.concatenate([found, wordings.values, answers.values])
            starts, lengths = layout.interleave(
                (len(found) + wordings.offsets[:-1], wordings.lengths), (molecules, molecule_lengths)
            )
        told = block.answer_of
        starts = np.column_stack([starts, len(source) - len(answers.values) + answers.offsets[told]])
        ids = Ragged.gather(source, starts, np.column_stack([lengths, answers.lengths[told]]))
        target_starts = np.zeros(len(told)) if rendering.frame is None else lengths.sum(axis=1)
        return Encoded(ids, target_starts.astype(np.int32), layout.characters())


def framed(examples: pa.Table, spec: Dataset, rendering: Rendering) -> Block:
    """Rendered examples in the frame of the chat, or of a corpus document; answers close the assistant's turn.

    Raises:
        ConfigurationError, DataError: the examples cannot be rendered so.
    """
    check_style(spec, rendering.style, spelling=rendering.spelling)
    frame = rendering.frame
    if frame is None:
        molecule = spec.molecules[0].type
        opening, closing = tags_around(molecule, rendering.tag_style)
        skeleton = Skeleton((rendering.bos + opening, closing + rendering.eos), (0,), (molecule,))
        first = np.zeros(examples.num_rows, np.int64)
        return Block([skeleton], first, [""], first)
    block = render(examples, spec, prompt=rendering.prompt, seed=rendering.seed, style=rendering.style)
    skeletons = []
    for skeleton in block.skeletons:
        pieces = [spell(piece, rendering.spelling) for piece in skeleton.pieces]
        pieces[0], pieces[-1] = frame.before + pieces[0], pieces[-1] + frame.between
        skeletons.append(dataclasses.replace(skeleton, pieces=tuple(pieces)))
    return Block(skeletons, block.skeleton_of, [text + frame.after for text in block.answers], block.answer_of)


def prompts(block: Block, examples: pa.Table, spelling: Spelling) -> list[str]:
    """The texts that stand before the answers, with molecules spelled."""
    if spelling.plain and len(block.skeletons) == 1 and len(block.skeletons[0].places) == 1:
        # A corpus: one molecule between the same two texts, whole columns at once.
        before, after = block.skeletons[0].pieces
        sequences = examples["sequences"].combine_chunks().flatten()
        return list(pc.binary_join_element_wise(before, sequences, after, "").to_pylist())
    made = []
    for number, sequences in zip(block.skeleton_of.tolist(), examples["sequences"].to_pylist(), strict=True):
        skeleton = block.skeletons[number]
        for index, molecule in zip(skeleton.places, skeleton.types, strict=True):
            sequences[index] = spell_sequence(molecule, sequences[index], spelling)
        made.append(skeleton.fill(sequences))
    return made


def _refuse_special_tokens(tokenizer: Tokenizer, examples: pa.Table) -> None:
    own = [name for name in ("question", "answer") if examples[name].null_count < examples.num_rows]
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    if not own or not special:
        return
    pattern = "|".join(re.escape(token) for token in special)
    for name in own:
        found = pc.match_substring_regex(examples[name], pattern).to_pylist()
        if True in found:
            row = found.index(True)
            token = re.search(pattern, examples[name][row].as_py())
            raise DataError(
                f"the record's own {name} holds {token and token[0]!r}, a special token of the tokenizer",
                where=str(examples["id"][row].as_py()),
                fix="remove it from the source, or replace it by an adapter step",
            )


@dataclass(frozen=True)
class _Layout:
    """Which text and which molecule stands where in each document.

    Attributes:
        texts: the different wordings.
        values: all molecules of all documents.
        types: int8 [values], place of each one's type in `MoleculeType`.
        text_of: int64 [documents, places + 1], and value_of: int64 [documents, places]; -1 where a document has fewer.
    """

    texts: list[str]
    values: pa.StringArray
    types: npt.NDArray[np.int8]
    text_of: npt.NDArray[np.int64]
    value_of: npt.NDArray[np.int64]

    @classmethod
    def of(cls, block: Block, sequences: pa.ListArray) -> "_Layout":
        values = sequences.flatten()
        offsets = sequences.offsets.to_numpy().astype(np.int64)
        width = max((len(skeleton.places) for skeleton in block.skeletons), default=0)
        count = len(block.skeletons)
        texts: dict[str, int] = {}
        text_of = np.full((count, width + 1), -1, np.int64)
        place_of, type_of = np.full((count, width), -1, np.int64), np.zeros((count, width), np.int8)
        for number, skeleton in enumerate(block.skeletons):
            here = len(skeleton.places)
            text_of[number, : here + 1] = [texts.setdefault(piece, len(texts)) for piece in skeleton.pieces]
            place_of[number, :here] = skeleton.places
            type_of[number, :here] = [TYPES.index(molecule) for molecule in skeleton.types]
        places = place_of[block.skeleton_of]
        there = places >= 0
        value_of = np.where(there, places + (offsets[:-1] - offsets[0])[:, None], -1)
        types = np.zeros(len(values), np.int8)
        types[value_of[there]] = type_of[block.skeleton_of][there]
        return cls(list(texts), values, types, text_of[block.skeleton_of], value_of)

    def interleave(
        self,
        texts: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
        molecules: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Start and length of every text and molecule, each given by (starts, lengths), in the order of the documents:
        int64 [documents, 2 * places + 1], length 0 where a document has fewer."""
        shape = (len(self.text_of), self.text_of.shape[1] + self.value_of.shape[1])
        starts, lengths = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for column, which, (begin, length) in ((0, self.text_of, texts), (1, self.value_of, molecules)):
            there = which >= 0
            starts[:, column::2][there] = begin[which[there]]
            lengths[:, column::2][there] = length[which[there]]
        return starts, lengths

    def characters(self) -> Counter[MoleculeType]:
        """How many characters the molecules of each type have."""
        lengths = pc.binary_length(self.values).to_numpy(zero_copy_only=False)
        counts = np.bincount(self.types, weights=lengths, minlength=len(TYPES)).astype(np.int64).tolist()
        return Counter({molecule: count for molecule, count in zip(TYPES, counts, strict=True) if count})


@lru_cache(maxsize=8)
def plain_tokenizer(tokenizer_json: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json, without truncation and padding."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@lru_cache(maxsize=8)
def _encoder(tokenizer_json: str, spelling: Spelling) -> Encoder:
    table: MoleculeTable | None = LookupTokenizer.of(tokenizer_json, spelling)
    if table is None and spelling.plain:
        # It brings numba, which the per-base vocabularies do without.
        from polysome.data.bpe import BytePairTokenizer

        table = BytePairTokenizer.of(tokenizer_json)
    return Encoder(plain_tokenizer(tokenizer_json), table)
