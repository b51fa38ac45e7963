"""Questions with places for their molecules: a template or a record's own wording, molecule tags and task tags.

Everything of a question but its sequences stands in a `Skeleton`, which is made once for all examples that share it.
"""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from polysome.config import Config, ConfigurationError, DataError
from polysome.data.frame import UNSPELLED, Spelling, TagStyle, tags_around
from polysome.specs import Dataset, MoleculeType, Task
from polysome.specs import TagStyle as TaskTagStyle

Wording = Literal["faithful", "conditioned"]
"""`conditioned` questions also name the mark, factor or cell line that the example belongs to (AMB-12)."""


class TaskTag(Config):
    """The label of the task that some questions carry (A-60..62)."""

    fraction: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of chats that carry it, drawn by the recipe's seed."""
    position: Literal["before_question", "before_sequence"] = "before_question"
    """Between the sequences and the question, as the paper's examples have it (in front, where the sequences do not
    come first); or in front of everything."""
    style: TaskTagStyle = "uniform"
    """`[Classification: <name>]`, or the text of the authors' release."""


@dataclass(frozen=True)
class Style:
    """How questions are worded and their molecules and tasks are tagged."""

    task_tag: TaskTag = field(default_factory=TaskTag)
    wording: Wording = "faithful"
    tag_style: TagStyle = "xml"


PLAIN = Style()
"""Faithful wording, 30 % task tags before the question, well-formed molecule tags."""


@dataclass(frozen=True)
class Skeleton:
    """A user's message with places for molecules, whose tags stand in the text around them.

    Attributes:
        pieces: the text, one more piece than there are places.
        places: which of the example's sequences stands in each place.
        types: molecule type of each place.
    """

    pieces: tuple[str, ...]
    places: tuple[int, ...]
    types: tuple[MoleculeType, ...]

    def fill(self, sequences: Sequence[str]) -> str:
        """The message."""
        parts = [self.pieces[0]]
        for place, piece in zip(self.places, self.pieces[1:], strict=True):
            parts += (sequences[place], piece)
        return "".join(parts)


def check_style(spec: Dataset, style: Style, *, spelling: Spelling = UNSPELLED) -> None:
    """Whether a data set can be rendered in a style, for asking before any work starts.

    Raises:
        ConfigurationError: it has no conditioned questions or no release tag, or the tags hide sequences that must be
            spelled.
    """
    if style.tag_style == "release" and not spelling.plain:
        raise ConfigurationError(
            "molecule tags of style 'release' do not close, so the template would not spell the sequences in "
            + ("letter tokens" if spelling.letters else "k-mers"),
            where="tag_style",
            fix="use tag_style: xml, or a tokenizer that reads sequences as they stand",
        )
    if spec.task is None:
        return
    questions(spec, style.wording)
    if style.task_tag.fraction > 0:
        _tag(spec, spec.task, style.task_tag)


def skeleton(
    spec: Dataset, example: Mapping[str, Any], template: int | None, *, tagged: bool, style: Style = PLAIN
) -> Skeleton:
    """The question of an example (a row of EXAMPLES): template `template`, or the record's own if None.

    Raises:
        DataError: the record's own question does not hold its molecules, or a conditioned question lacks its subset.
    """
    own = template is None
    parts = _given_parts(spec, example) if own else _template_parts(spec, template or 0, example, style.wording)
    if tagged and spec.task is not None:
        parts = _with_tag(parts, _tag(spec, spec.task, style.task_tag), style.task_tag.position)
    pieces = [""]
    places: list[int] = []
    types: list[MoleculeType] = []
    for part in parts:
        if isinstance(part, str):
            pieces[-1] += part
            continue
        opening, closing = tags_around(part.type, style.tag_style)
        pieces[-1] += opening
        pieces.append(closing)
        places.append(part.index)
        types.append(part.type)
    return Skeleton(tuple(pieces), tuple(places), tuple(types))


def questions(spec: Dataset, wording: Wording) -> list[str]:
    """The question templates of a wording.

    Raises:
        ConfigurationError: the data set has no task, or no conditioned questions.
    """
    task = task_of(spec)
    if wording == "faithful":
        return task.templates.questions
    if not task.templates.conditioned:
        raise ConfigurationError(
            f"{spec.name!r} has no conditioned questions",
            where=f"datasets_spec/{spec.name}.yaml",
            fix="declare task.templates.conditioned, or use wording: faithful",
        )
    return task.templates.conditioned


def task_of(spec: Dataset) -> Task:
    """The task of a data set.

    Raises:
        ConfigurationError: it has none.
    """
    if spec.task is None:
        raise ConfigurationError(
            f"data set {spec.name!r} has no task of its own to word questions for",
            where=f"datasets_spec/{spec.name}.yaml",
            fix="name a data set with a task",
        )
    return spec.task


_GIVEN_PLACE = re.compile(r"\{((?:dna|rna|protein)\d*)\}")


@dataclass(frozen=True)
class _Place:
    """A place of a question: which of the example's sequences stands there."""

    index: int
    type: MoleculeType


_Parts = list["str | _Place"]


def _template_parts(spec: Dataset, template: int, example: Mapping[str, Any], wording: Wording) -> _Parts:
    task = task_of(spec)
    places = {molecule.role: _Place(index, molecule.type) for index, molecule in enumerate(spec.molecules)}
    parts: _Parts = []
    for literal, name, _, _ in string.Formatter().parse(questions(spec, wording)[template]):
        parts.append(literal)
        if name in places:
            parts.append(places[name])
        elif name is not None:
            parts.append(_subset_title(task, example))
    return parts


def _subset_title(task: Task, example: Mapping[str, Any]) -> str:
    subset = example.get("subset")
    if subset is None:
        raise DataError(
            "a conditioned question names the example's subset, and it has none",
            where=str(example.get("id", task.name)),
            fix="declare the subset of its file in the data set's spec, or use wording: faithful",
        )
    return task.subset_titles.get(subset, subset)


def _given_parts(spec: Dataset, example: Mapping[str, Any]) -> _Parts:
    """A question that came with the record: places are named by role, or by molecule type in order of appearance."""
    if example["question"] is None:
        raise DataError(
            "the record has no question of its own, and its data set has no task to word one",
            where=str(example["id"]),
            fix="quarantine the record, or declare a task",
        )
    text, count = str(example["question"]), len(example["sequences"])
    if spec.molecules:
        places = {molecule.role: _Place(index, molecule.type) for index, molecule in enumerate(spec.molecules)}
        pattern = re.compile(r"\{(" + "|".join(re.escape(role) for role in places) + r")\}")
        pieces = pattern.split(text)
    else:
        pieces = _GIVEN_PLACE.split(text)
        names = list(dict.fromkeys(pieces[1::2]))
        places = {name: _Place(index, _type_named(name)) for index, name in enumerate(names)}
    if set(pieces[1::2]) != set(places) or len(places) != count:
        raise DataError(
            f"the question holds the places {sorted(set(pieces[1::2]))} for {count} sequences",
            where=str(example["id"]),
            fix="every molecule of the record needs one place in its question",
        )
    return [places[piece] if index % 2 else piece for index, piece in enumerate(pieces)]


def _type_named(name: str) -> MoleculeType:
    return next(kind for kind in get_args(MoleculeType) if name.startswith(kind))


def _tag(spec: Dataset, task: Task, settings: TaskTag) -> str:
    if settings.style == "uniform":
        return task.tag
    if task.release_tag is None:
        raise ConfigurationError(
            f"{spec.name!r} declares no task tag of the authors' release",
            where=f"datasets_spec/{spec.name}.yaml",
            fix="declare task.release_tag, or use task_tag.style: uniform",
        )
    return task.release_tag


def _with_tag(parts: _Parts, tag: str, position: Literal["before_question", "before_sequence"]) -> _Parts:
    """The parts with the tag: after the leading molecules if all of them lead, else in front."""
    first_text = next((index for index, part in enumerate(parts) if isinstance(part, str) and part.strip()), len(parts))
    after = parts[first_text:]
    leads = first_text > 0 and any(isinstance(part, _Place) for part in parts[:first_text])
    if position == "before_sequence" or not leads or not after or any(isinstance(part, _Place) for part in after):
        return [f"{tag} ", *parts]
    rest = "".join(part for part in after if isinstance(part, str))
    # A colon belongs to the sequence before it: `<dna>…</dna>: [tag] Evaluate …`.
    stop = re.match(r"\s*(?:[:;,.]\s+)?", rest)
    assert stop is not None
    return [*parts[:first_text], f"{stop.group().rstrip()} {tag} {rest[stop.end() :]}"]
