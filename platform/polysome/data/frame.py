"""The frame of a chat: messages, molecule tags, k-mer spelling, and a tokenizer's chat template taken apart."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from polysome.config import ConfigurationError
from polysome.specs import Prompt, system_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TagStyle = Literal["xml", "release"]
"""How a sequence is delimited (AMB-4): `<rna>…</rna>`, or `<rna>…<rna>` as in the authors' release."""


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


def spell_sequence(molecule: str, sequence: str, kmer: int) -> str:
    """DNA or RNA as overlapping k-mers, each after a blank; a protein, a shorter sequence, or k = 1: unchanged."""
    if kmer == 1 or molecule == "protein" or len(sequence) < kmer:
        return sequence
    return "".join(" " + sequence[start : start + kmer] for start in range(len(sequence) - kmer + 1))


def spell(text: str, kmer: int) -> str:
    """DNA and RNA between their tags as overlapping k-mers, each after a space; 1, or a shorter sequence: unchanged.

    Example:
        >>> spell("<dna>ACGTA</dna>", 3)
        '<dna> ACG CGT GTA</dna>'
    """
    if kmer == 1:
        return text
    return _NUCLEIC.sub(lambda match: tagged_sequence(match[1], spell_sequence(match[1], match[2], kmer)), text)


def sequence_kmer(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The k in which the tokenizer's chat template spells sequences; 1 for any tokenizer that does not say."""
    return int(tokenizer.init_kwargs.get("sequence_kmer", 1))


@dataclass(frozen=True)
class ChatFrame:
    """A tokenizer's chat template, taken apart around question and answer, so that workers need no template engine.

    A prompt is `before + question + between`; a training text goes on with `answer + after`, where `after` closes the
    assistant's turn. Loss is on `answer + after`.
    """

    before: str
    between: str
    after: str
    kmer: int = 1

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
        frame = cls(before, between, after, sequence_kmer(tokenizer))
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
        sample = "is <dna>ACGTACGTAC</dna> near <rna>ACGUACGUAC</rna> or <protein>MKV</protein>?"
        rendered = tokenizer.apply_chat_template(messages(prompt, sample), add_generation_prompt=True, tokenize=False)
        if frame.prompt(sample) != rendered:
            raise ConfigurationError(
                "the chat template rewrites the messages in a way that is not known here",
                where=where,
                fix="use a template that keeps the messages' text, or one that Polysome built",
            )
        return frame

    def prompt(self, question: str) -> str:
        """The text that a model is asked to continue."""
        return self.before + spell(question, self.kmer) + self.between


_NUCLEIC = re.compile(r"<(dna|rna)>([^<]*)</\1>")
