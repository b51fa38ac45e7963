"""The frame of a chat: messages, molecule tags, the spelling of molecules, a tokenizer's chat template taken apart."""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from polysome.config import ConfigurationError
from polysome.specs import Prompt, system_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TagStyle = Literal["xml", "release"]
"""How a sequence is delimited (AMB-4): `<rna>…</rna>`, or `<rna>…<rna>` as in the authors' release."""


@dataclass(frozen=True)
class Spelling:
    """How molecules are written between their tags, so that a tokenizer's tokens follow their letters.

    Attributes:
        kmer: DNA and RNA as overlapping k-mers, each after a blank; 1: not so.
        protein_kmer: proteins as such.
        letters: molecule types, and the letters of each that are written as tokens of their own, `<dna:A>`; any other
            letter stays as it is.
    """

    kmer: int = 1
    letters: tuple[tuple[str, str], ...] = ()
    protein_kmer: int = 1

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Spelling":
        """What a tokenizer_config.json declares in `sequence_kmer` and `protein_kmer`, or `sequence_letters`; nothing:
        molecules stay."""
        return cls(
            int(settings.get("sequence_kmer", 1)),
            tuple(sorted(settings.get("sequence_letters", {}).items())),
            int(settings.get("protein_kmer", 1)),
        )

    def kmer_of(self, molecule: str) -> int:
        """Letters of one word of a molecule of this type; 1: it is not spelled in words."""
        return self.protein_kmer if molecule == "protein" else self.kmer

    @property
    def plain(self) -> bool:
        """Whether molecules stay as they are."""
        return self == UNSPELLED


UNSPELLED = Spelling()
"""Molecules stay as they are."""


def letter_token(molecule: str, letter: str) -> str:
    """The token of one letter of a molecule."""
    return f"<{molecule}:{letter}>"


def tags_around(molecule: str, tags: TagStyle = "xml") -> tuple[str, str]:
    """The tag that opens a molecule and the one that closes it."""
    opening = f"<{molecule}>"
    return opening, opening if tags == "release" else f"</{molecule}>"


def tagged_sequence(molecule: str, sequence: str, tags: TagStyle = "xml") -> str:
    """A sequence between its molecule tags (A-52, AMB-4)."""
    opening, closing = tags_around(molecule, tags)
    return f"{opening}{sequence}{closing}"


def messages(prompt: Prompt, question: str, answer: str | None = None) -> list[dict[str, str]]:
    """Chat messages in Hugging Face form: system (unless `none`), user, and the assistant's answer if given (A-72)."""
    system = system_prompt(prompt)
    chat = [{"role": "system", "content": system}] if system else []
    chat.append({"role": "user", "content": question})
    if answer is not None:
        chat.append({"role": "assistant", "content": answer})
    return chat


def spell_sequence(molecule: str, sequence: str, spelling: Spelling) -> str:
    """A molecule as it stands between its tags; in k-mers, what is shorter than k stays as it is."""
    if spelling.letters:
        return sequence.translate(_tokens(molecule, spelling))
    kmer = spelling.kmer_of(molecule)
    if kmer == 1 or len(sequence) < kmer:
        return sequence
    return "".join(" " + sequence[start : start + kmer] for start in range(len(sequence) - kmer + 1))


def unspell_sequence(molecule: str, spelled: str, spelling: Spelling) -> str:
    """The molecule of which `spell_sequence` makes `spelled`; any other text gives something that it does not."""
    if spelling.letters:
        return re.sub(letter_token(molecule, "(.)"), r"\1", spelled)
    if spelling.kmer_of(molecule) == 1 or not spelled.startswith(" "):
        return spelled
    words = spelled.split(" ")[1:]
    return "".join([words[0], *(word[-1:] for word in words[1:])])


def spell(text: str, spelling: Spelling) -> str:
    """A text whose molecules, between their tags, are spelled.

    Example:
        >>> spell("<dna>ACGTA</dna>", Spelling(kmer=3))
        '<dna> ACG CGT GTA</dna>'
        >>> spell("<dna>ACg</dna>", Spelling(letters=(("dna", "ACGT"),)))
        '<dna><dna:A><dna:C>g</dna>'
    """
    if spelling.plain:
        return text
    return _TAGGED.sub(lambda match: tagged_sequence(match[1], spell_sequence(match[1], match[2], spelling)), text)


def sequence_spelling(tokenizer: "PreTrainedTokenizerBase") -> Spelling:
    """How the tokenizer's chat template spells molecules."""
    return Spelling.of(tokenizer.init_kwargs)


@dataclass(frozen=True)
class ChatFrame:
    """A tokenizer's chat template, taken apart around question and answer, so that workers need no template engine.

    A prompt is `before + question + between`; a training text goes on with `answer + after`, where `after` closes the
    assistant's turn. Loss is on `answer + after`.
    """

    before: str
    between: str
    after: str
    spelling: Spelling = UNSPELLED

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> "ChatFrame":
        """Take the template apart, and verify that putting it together again gives what the template gives.

        Raises:
            ConfigurationError: the tokenizer has no chat template, or one that rewrites or reorders the messages.
        """
        where = f"tokenizer {tokenizer.name_or_path}"
        if not tokenizer.chat_template:
            raise ConfigurationError(
                "the tokenizer has no chat template", where=where, fix="use a chat model's tokenizer"
            )
        marks = ("QUESTION-MARK", "ANSWER-MARK")
        asked = tokenizer.apply_chat_template(messages(prompt, marks[0]), add_generation_prompt=True, tokenize=False)
        told = tokenizer.apply_chat_template(messages(prompt, *marks), tokenize=False)
        before, question_found, between = str(asked).partition(marks[0])
        rest, answer_found, after = str(told).partition(marks[1])
        frame = cls(before, between, after, sequence_spelling(tokenizer))
        if not (question_found and answer_found) or rest != before + marks[0] + between:
            raise ConfigurationError(
                "the chat template's generation prompt is not how it begins an answer",
                where=where,
                fix="use a template whose add_generation_prompt text precedes every assistant message",
            )
        if not after:
            raise ConfigurationError(
                "the chat template does not close the assistant's turn, so a model would never learn to stop",
                where=where,
                fix="end the assistant message with the tokenizer's end-of-turn token",
            )
        rendered = tokenizer.apply_chat_template(messages(prompt, _SAMPLE), add_generation_prompt=True, tokenize=False)
        if frame.prompt(_SAMPLE) != rendered:
            raise ConfigurationError(
                "the chat template rewrites the messages in a way that is not known here",
                where=where,
                fix="use a template that keeps the messages' text, or one that Polysome built",
            )
        return frame

    def prompt(self, question: str) -> str:
        """The text that a model is asked to continue."""
        return self.before + spell(question, self.spelling) + self.between


_TAGGED = re.compile(r"<(dna|rna|protein)>([^<]*)</\1>")
_SAMPLE = (
    f"is <dna>ACGTACGTAC</dna> near <rna>ACGUACGUAC</rna> or <protein>MKV</protein>, or <dna>{string.ascii_uppercase}"
    f"acgt</dna>{string.ascii_uppercase}<protein>mk-{string.ascii_uppercase}*</protein>{string.ascii_uppercase}<rna>A"
    f"<rna>{string.ascii_uppercase} 7</rna>?"
)


@lru_cache(maxsize=32)
def _tokens(molecule: str, spelling: Spelling) -> dict[int, str]:
    letters = dict(spelling.letters).get(molecule, "")
    return {ord(letter): letter_token(molecule, letter) for letter in letters}
