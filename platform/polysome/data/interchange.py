"""Interchange with the authors' instruction rows, JSON Lines of `input, output, label, task` (XP-3, A-5).

Import takes an `input` apart into molecules and a wording with a placeholder for each; export puts it together again,
and makes such rows from declared data sets. What was imported is exported equal in every field.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import pyarrow as pa

from polysome.config import DataError
from polysome.data.clean import Refused
from polysome.data.frame import tags_around
from polysome.data.readers.json_records import json_text, loads
from polysome.data.readers.lines import whole_lines
from polysome.data.readers.records import BLOCK_BYTES, BLOCK_RECORDS
from polysome.data.readers.stream import open_stream
from polysome.data.render import PLAIN, Style, render
from polysome.specs import Dataset, MoleculeType, MulticlassLabel, MultilabelLabel, MultiRegressionLabel, Prompt

Closing = Literal["xml", "release", "stray"]
"""How a sequence was closed: `</rna>`; `<rna>` as in the release; `<rna>>` as the paper prints some (A-52, A-53)."""

IMPORTED = pa.schema(
    [
        pa.field("record", pa.int64(), nullable=False),
        pa.field("task", pa.string()),
        pa.field("subset", pa.string()),
        pa.field("types", pa.list_(pa.string()), nullable=False),
        pa.field("sequences", pa.list_(pa.string()), nullable=False),
        pa.field("closings", pa.list_(pa.string()), nullable=False),
        pa.field("question", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("label", pa.string()),
        pa.field("model_output", pa.string()),
        pa.field("rest", pa.string(), nullable=False),
    ]
)
"""One row: `record` counts from 0; `types`, `sequences` and `closings` are of its molecules, in the order of their
places in `question`; `question` and `answer` are as in EXAMPLES; `label` and `model_output` (also from `result`) are
text, of other values than texts their JSON.

`question` is null where `input` could not be taken apart. `rest` is the whole row as JSON, in which null stands for an
`input` or `output` that `question` or `answer` holds; task, subset, label and model_output are read from it, and kept
in it as they are.
"""

RELEASE_TAGS = (
    "[RNA modification classification]",
    "[Noncoding RNA family classification]",
    "[Isoform prediction]",
    "[Ribosome loading prediction]",
    "[Programmable RNA switches prediction]",
    "[SiRNA Efficiency prediction]",
    "[CRISPR On target prediction]",
    "[Solubility Prediction Binary Classification]",
    "[EC Number Prediction Multilabel Classification]",
    "[Fluorescence Prediction Regression]",
    "[Stability Prediction Regression]",
    "[Thermostability Prediction Regression]",
)
"""Task tags of the release that do not begin with `Classification:` or `Regression:` (A-61)."""


@dataclass(frozen=True)
class TaggedMolecule:
    """A sequence that stood between tags, as it stood there."""

    type: MoleculeType
    sequence: str
    closing: Closing


@dataclass(frozen=True)
class ParsedInput:
    """An `input` taken apart.

    Attributes:
        wording: the text with `{dna}`, `{rna}` or `{protein}` where a molecule stood, numbered from 1 (`{protein1}`)
            where several are of that type; a task tag stays in it.
        molecules: in the order of their places.
        tag: the task tag in the wording, None without one.
    """

    wording: str
    molecules: tuple[TaggedMolecule, ...]
    tag: str | None


def parse_input(text: str) -> ParsedInput:
    """Take an `input` apart; `write_input` puts it together again, equal in every character.

    Raises:
        Refused: a molecule tag has no counterpart, or the text itself holds what would be taken for a placeholder.
    """
    pieces = _MOLECULE.split(text)
    # Four pieces a molecule: the text before it, its type, sequence and closing tag.
    types, sequences, closings = pieces[1::4], pieces[2::4], pieces[3::4]
    for piece in pieces[::4]:
        if alone := _TAG.search(piece):
            reason = "a molecule tag without its counterpart"
            raise Refused(f"{alone.group()}: {reason}", reason)
        if found := _PLACE.search(piece):
            reason = "the text holds a placeholder of its own"
            raise Refused(f"{found.group()}: {reason}", reason)
    molecules = tuple(
        TaggedMolecule(cast(MoleculeType, name), sequence, _closing_kind(closing))
        for name, sequence, closing in zip(types, sequences, closings, strict=True)
    )
    wording = pieces[0]
    for index, (name, after) in enumerate(zip(types, pieces[4::4], strict=True)):
        number = "" if types.count(name) == 1 else str(types[: index + 1].count(name))
        wording += f"{{{name}{number}}}{after}"
    tag = _TASK_TAG.search(wording)
    return ParsedInput(wording, molecules, tag.group() if tag else None)


def write_input(parsed: ParsedInput) -> str:
    """The `input` with its molecules in their places.

    Raises:
        DataError: the wording has not one place for each molecule.
    """
    pieces = _PLACE.split(parsed.wording)
    texts = pieces[::2]
    if len(texts) != len(parsed.molecules) + 1:
        raise DataError(
            f"{len(texts) - 1} places for {len(parsed.molecules)} molecules",
            where=parsed.wording,
            fix="give each molecule one place in the wording",
        )
    written = texts[0]
    for molecule, after in zip(parsed.molecules, texts[1:], strict=True):
        opening, closing = tags_around(molecule.type, "xml" if molecule.closing == "xml" else "release")
        written += f"{opening}{molecule.sequence}{closing}{'>' if molecule.closing == 'stray' else ''}{after}"
    return written


def split_task_name(name: str) -> tuple[str, str | None]:
    """Task and subset of a `task` field, with the names that the authors' evaluator gives (A-6).

    Example:
        >>> split_task_name("tf-h-0"), split_task_name("rna_protein_interaction")
        (('tf_h', '0'), ('ncRNAProteinInter', None))
    """
    for written, task in _HYPHENATED.items():
        if name == written or name.startswith(f"{written}-"):
            name = task + name[len(written) :]
    task, _, subset = name.partition("-")
    return _RENAMED.get(task, task), subset or None


def join_task_name(task: str, subset: str | None) -> str:
    """The `task` field of a task and its subset, as the release writes it; undoes `split_task_name`."""
    task = next((written for written, renamed in _RENAMED.items() if renamed == task), task)
    task = next((written for written, name in _HYPHENATED.items() if name == task), task)
    return f"{task}-{subset}" if subset else task


def import_rows(url: str, *, block_bytes: int = BLOCK_BYTES) -> Iterator[pa.Table]:
    """The rows of a JSON Lines file in tables of schema IMPORTED, a block of the file at a time; blank lines are none.

    A row whose `input` is missing, no text, or cannot be taken apart is imported all the same, whole in `rest`.

    Raises:
        DataError: the file cannot be read, or a line is not one JSON object; it is named by its byte.
    """
    rows: list[dict[str, Any]] = []
    number = 0
    with open_stream(url) as stream:
        for offset, block in whole_lines(stream, block_bytes):
            at = offset
            for line in block.split(b"\n"):
                if line.strip():
                    rows.append(_imported(number, line, f"{url}, byte {at}"))
                    number += 1
                at += len(line) + 1
                if len(rows) == BLOCK_RECORDS:
                    yield pa.Table.from_pylist(rows, schema=IMPORTED)
                    rows = []
            if rows:
                yield pa.Table.from_pylist(rows, schema=IMPORTED)
                rows = []


def export_imported(imported: pa.Table) -> Iterator[str]:
    """Rows of schema IMPORTED as the JSON lines (without line ends) that they came from: the same fields in the same
    order with equal values, numbers with the same digits; blanks between fields, and escapes, are not kept."""
    for row in imported.to_pylist():
        fields = loads(row["rest"])
        if row["question"] is not None:
            molecules = zip(row["types"], row["sequences"], row["closings"], strict=True)
            tagged = tuple(TaggedMolecule(*molecule) for molecule in molecules)
            fields["input"] = write_input(ParsedInput(row["question"], tagged, None))
        if row["answer"] is not None:
            fields["output"] = row["answer"]
        yield json_text(fields)


def export_rows(
    examples: pa.Table, spec: Dataset, *, prompt: Prompt = "concise", seed: int = 42, style: Style = PLAIN
) -> Iterator[str]:
    """Examples of a declared data set (schema EXAMPLES) as the authors' rows, JSON lines without line ends.

    `input` and `output` are the rendered question and answer, which `style.tag_style` writes as in the release if asked
    to; `label` has the authors' form: `positive` or `negative`, a class name, names joined by commas, a number, an
    object of numbers by output, null for generated text; `task` is `<task>-<subset>` (A-6).

    Raises:
        DataError: an example cannot be rendered; see `polysome.data.render.asked`.
    """
    for batch in examples.to_batches(max_chunksize=BLOCK_RECORDS):
        table = pa.Table.from_batches([batch])
        block = render(table, spec, prompt=prompt, seed=seed, style=style)
        columns = [table[name].to_pylist() for name in ("sequences", "label", "subset")]
        for row, (sequences, label, subset) in enumerate(zip(*columns, strict=True)):
            fields = {
                "input": block.skeletons[block.skeleton_of[row]].fill(sequences),
                "output": block.answers[block.answer_of[row]],
                "label": _written_label(spec, label),
                "task": join_task_name(spec.task.name if spec.task else spec.name, subset),
            }
            yield json.dumps(fields, ensure_ascii=False)


def _imported(number: int, line: bytes, where: str) -> dict[str, Any]:
    try:
        fields = loads(line.decode())
        # JSON can write half a surrogate pair, which is no text.
        json_text(fields).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(f"not one JSON object: {error}", where=where, fix="mend or remove the line") from error
    if not isinstance(fields, dict):
        raise DataError("not a JSON object", where=where, fix="mend or remove the line")
    task, subset = split_task_name(fields["task"]) if _is_text(fields.get("task")) else (None, None)
    row: dict[str, Any] = {
        "record": number,
        "task": task,
        "subset": subset,
        "types": [],
        "sequences": [],
        "closings": [],
        "question": None,
        "answer": None,
        "label": _text(fields.get("label")),
        "model_output": _text(fields.get("model_output", fields.get("result"))),
    }
    if _is_text(fields.get("input")):
        try:
            parsed = parse_input(fields["input"])
        except Refused:
            # Such a row stays whole in `rest`; who trains on it sets it aside with the reason.
            pass
        else:
            row["types"] = [molecule.type for molecule in parsed.molecules]
            row["sequences"] = [molecule.sequence for molecule in parsed.molecules]
            row["closings"] = [molecule.closing for molecule in parsed.molecules]
            row["question"], fields["input"] = parsed.wording, None
    if _is_text(fields.get("output")):
        row["answer"], fields["output"] = fields["output"], None
    row["rest"] = json_text(fields)
    return row


def _is_text(value: Any) -> bool:
    # Numbers are texts too, of a class of their own.
    return type(value) is str


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json_text(value)


def _written_label(spec: Dataset, label: list[float] | None) -> str | float | Mapping[str, float] | None:
    if spec.task is None or label is None:
        return None
    codec, value = spec.task.label, tuple(label)
    match codec.kind:
        case "generation":
            return None
        case "binary":
            return codec.pool(value)
        case "regression":
            return value[0]
    if isinstance(codec, MultiRegressionLabel):
        return dict(zip(codec.outputs, value, strict=True))
    if isinstance(codec, MultilabelLabel):
        return ",".join(codec.classes[int(index)] for index in value) or codec.none
    assert isinstance(codec, MulticlassLabel)
    return codec.classes[int(value[0])]


def _closing_kind(tag: str) -> Closing:
    if tag.startswith("</"):
        return "xml"
    return "stray" if tag.endswith(">>") else "release"


_MOLECULE = re.compile(r"<(dna|rna|protein)>([^<>]*)(</\1>|<\1>>?)")
_TAG = re.compile(r"</?(?:dna|rna|protein)>")
_PLACE = re.compile(r"\{((?:dna|rna|protein)\d*)\}")
_TASK_TAG = re.compile(
    r"\[(?:Classification|Regression)\s*:[^\[\]]+\]|" + "|".join(re.escape(tag) for tag in RELEASE_TAGS)
)
_HYPHENATED = {"tf-h": "tf_h", "tf-m": "tf_m"}
"""Tasks whose own name has a hyphen in the release."""
_RENAMED = {"rna_protein_interaction": "ncRNAProteinInter", "antibody_antigen": "AntibodyAntigen"}
