"""Examples to chat: seeded template choice, task tags, system prompts, and the frame of a tokenizer's chat template."""

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polysome.config import ConfigurationError
from polysome.data.reasoning import explain
from polysome.specs import Dataset, Prompt, Task, system_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tagged_sequence(molecule: str, sequence: str) -> str:
    """A sequence between its molecule tags, well-formed (A-52, AMB-4)."""
    return f"<{molecule}>{sequence}</{molecule}>"


def question(spec: Dataset, sequences: list[str], *, template: int = 0, tagged: bool = False) -> str:
    """The user's message: question template `template` filled with the sequences, and the task tag before it (A-60).

    A template that names the sequence first keeps it first: the tag stands between sequence and question, as printed
    in the paper's examples; where molecules stand elsewhere, the tag comes first.
    """
    task = _task(spec)
    filled = {
        molecule.role: tagged_sequence(molecule.type, sequence)
        for molecule, sequence in zip(spec.molecules, sequences, strict=True)
    }
    wording = task.templates.questions[template]
    if not tagged:
        return wording.format_map(filled)
    first = "{" + spec.molecules[0].role + "}"
    if len(spec.molecules) == 1 and wording.startswith(first):
        return f"{first} {task.tag}{wording.removeprefix(first)}".format_map(filled)
    return f"{task.tag} {wording.format_map(filled)}"


def answer(spec: Dataset, label: float, template: int = 0) -> str:
    """The concise answer: template `template` of the label's pool, with the label written by its codec."""
    task = _task(spec)
    return task.templates.answers[task.label.pool(label)][template].format(label=task.label.encode(label))


def reasoning_answer(spec: Dataset, sequences: list[str], label: float) -> str:
    """The task's checkable steps worked out on the sequences, then the answer (A-81, A-84).

    Raises:
        ConfigurationError: the task declares no reasoning steps.
    """
    task = _task(spec)
    if not task.reasoning:
        raise ConfigurationError(
            f"task {spec.name!r} has no reasoning steps",
            where=f"datasets_spec/{spec.name}.yaml",
            fix="declare task.reasoning, or use the concise prompt for this source",
        )
    by_role = {molecule.role: sequence for molecule, sequence in zip(spec.molecules, sequences, strict=True)}
    return f"{explain(task.reasoning, by_role)} Therefore the answer is {task.label.encode(label)}."


def messages(prompt: Prompt, question: str, answer: str | None = None) -> list[dict[str, str]]:
    """Chat messages in Hugging Face form: system (unless `none`), user, and the assistant's answer if given (A-72)."""
    system = system_prompt(prompt)
    chat = [{"role": "system", "content": system}] if system else []
    chat.append({"role": "user", "content": question})
    if answer is not None:
        chat.append({"role": "assistant", "content": answer})
    return chat


def choose(example_id: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments: the same in every process and order."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{example_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def choose_question_template(spec: Dataset, example_id: str, seed: int) -> int:
    """Index of the question template for an example, seeded."""
    return int(choose(example_id, seed, "question") * len(_task(spec).templates.questions))


def choose_answer_template(spec: Dataset, label: float, example_id: str, seed: int) -> int:
    """Index of the answer template within the label's pool, seeded."""
    task = _task(spec)
    return int(choose(example_id, seed, "answer") * len(task.templates.answers[task.label.pool(label)]))


def wordings(spec: Dataset) -> list[str]:
    """Every fixed wording of a task, for building a vocabulary: templates, tag, class names, reasoning sentences."""
    if spec.task is None:
        return []
    task = spec.task
    texts = [*task.templates.questions, *(text for pool in task.templates.answers.values() for text in pool), task.tag]
    texts += getattr(task.label, "classes", [])
    if task.reasoning:
        # Worked out on two made sequences, so that both outcomes of a motif step are worded.
        for filler in ("G", "".join(step.pattern for step in task.reasoning) or "A"):
            sequences = [filler * 40 for _ in spec.molecules]
            texts.append(reasoning_answer(spec, sequences, 0.0))
    return [_without_placeholders(text) for text in texts]


def _without_placeholders(text: str) -> str:
    for character in "{}":
        text = text.replace(character, "\x00")
    return "".join(text.split("\x00")[::2])


def _task(spec: Dataset) -> Task:
    if spec.task is None:
        raise ConfigurationError(
            f"data set {spec.name!r} is an unlabelled corpus and has no task",
            where=f"datasets_spec/{spec.name}.yaml",
            fix="name a data set with a task",
        )
    return spec.task


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
        kmer = sequence_kmer(tokenizer)
        frame = cls(before, between, after, kmer)
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


def spell(text: str, kmer: int) -> str:
    """DNA and RNA between their tags as overlapping k-mers, each after a space; 1, or a shorter sequence: unchanged.

    Example:
        >>> spell("<dna>ACGTA</dna>", 3)
        '<dna> ACG CGT GTA</dna>'
    """
    if kmer == 1:
        return text

    def words(match: re.Match[str]) -> str:
        tag, sequence = match.groups()
        if len(sequence) < kmer:
            return match.group(0)
        spelled = "".join(" " + sequence[start : start + kmer] for start in range(len(sequence) - kmer + 1))
        return f"<{tag}>{spelled}</{tag}>"

    return _NUCLEIC.sub(words, text)


def sequence_kmer(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The k in which the tokenizer's chat template spells sequences; 1 for any tokenizer that does not say."""
    return int(tokenizer.init_kwargs.get("sequence_kmer", 1))
