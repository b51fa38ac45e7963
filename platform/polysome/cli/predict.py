"""`polysome predict`: sequences in; labels with probabilities, or numbers with intervals, out."""

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from polysome.cli.console import JsonOption, console, next_step, print_json
from polysome.config import ConfigurationError

if TYPE_CHECKING:
    from polysome.serving.client import Answers

RESEARCH_ONLY = "For research use only."


class Form(StrEnum):
    """What is printed."""

    TABLE = "table"
    LABEL = "label"
    CSV = "csv"
    TSV = "tsv"
    JSON = "json"


def predict(
    sequences: Annotated[
        list[str],
        typer.Argument(
            metavar="SEQUENCE|FILE|role=SEQ,role=SEQ...",
            help="What to ask about: sequences, or files of FASTA, CSV or TSV; - reads standard input.",
        ),
    ],
    task: Annotated[str, typer.Option(help="Name of a data set with a task; see `polysome datasets ls`.")],
    url: Annotated[
        str | None, typer.Option(help="A served model; its key from POLYSOME_API_KEY. Default: http://127.0.0.1:8000.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="A published adapter of the served model, NAME or NAME@3.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model folder, asked in this process instead.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="With --model: run folder of a finished evaluation of it.")
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="label: one label or number a line.")] = Form.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Ask a declared task of sequences."""
    from polysome.serving import client

    if model and (url or adapter):
        raise ConfigurationError(
            f"--model and {'--url' if url else '--adapter'} exclude each other",
            where="command line",
            fix="give one of them",
        )
    if calibration and not model:
        raise ConfigurationError(
            "--calibration is for --model: a server names its own", where="command line", fix="leave it out"
        )
    records = client.read_records(sequences, task)
    raw = [record for _, record in records]
    if model:
        from polysome.config import validate
        from polysome.serving import checks
        from polysome.serving.config import ServeConfig

        told = {"model": checks.model_folder(model), "calibration": calibration}
        found = client.ask_folder(validate(ServeConfig, told, where="--model"), task, raw)
    else:
        found = client.ask_server(url or "http://127.0.0.1:8000", task, raw, model=adapter)
    named = [item.model_copy(update={"id": name}) for (name, _), item in zip(records, found.predictions, strict=True)]
    _tell(client.Answers(found.told, tuple(named)), Form.JSON if as_json else form)


def _tell(answers: "Answers", form: Form) -> None:
    if form is Form.JSON:
        shared = answers.told.model_dump(exclude={"object"})
        print_json([{**item.model_dump(), **shared} for item in answers.predictions])
    elif form is Form.LABEL:
        sys.stdout.writelines(f"{item.label or _number(item.value)}\n" for item in answers.predictions)
    elif form is Form.TABLE:
        _print(answers)
    else:
        from polysome.serving.prediction import task_spec
        from polysome.serving.records import answer_row, header, written

        spec = task_spec(answers.told.task)
        rows = (answer_row(spec, answers.told, item) for item in answers.predictions)
        sys.stdout.write(written([header(spec), *rows], "\t" if form is Form.TSV else ","))


def _print(answers: "Answers") -> None:
    numbers = all(item.label is None for item in answers.predictions)
    table = Table(
        "record",
        "answer",
        "90 % interval" if numbers else "probability",
        "in the model's words",
        "warnings",
        box=None,
        pad_edge=False,
    )
    for item in answers.predictions:
        sure: Any = "" if item.probability is None else f"{item.probability:.3f}"
        if item.interval:
            sure = f"{item.interval[0]:g} to {item.interval[1]:g}"
        warned = "; ".join(caution.message for caution in item.warnings)
        table.add_row(*map(escape, (item.id, item.label or _number(item.value), sure, item.text, warned)))
    screen = console()
    screen.print(table)
    told = answers.told
    who = told.model + (f" with adapter {told.adapter}" if told.adapter else "")
    screen.print(f"{who} ({told.system_fingerprint})", markup=False, style="dim", soft_wrap=True)
    screen.print(f"{told.calibration}. {RESEARCH_ONLY}", markup=False, style="dim", soft_wrap=True)
    next_step("polysome predict --format csv …")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
