"""`polysome grade`: answers in free text in; grades of people, a rule and a judge, and their agreement, out."""

import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from polysome.cli.console import JsonOption, console, next_step, print_json
from polysome.cli.evaluation import MarkdownOption, RunsOption, evaluation_folders
from polysome.config import ConfigurationError

if TYPE_CHECKING:
    from polysome.evaluation.graders import Grader

RECORD = "judge.sqlite"


def grade(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder or URL of an evaluation, or id below --runs.")],
    human: Annotated[
        list[str] | None, typer.Option("--human", help="CSV file: key, grade (1 or 0), grader; may repeat.")
    ] = None,
    rule: Annotated[
        bool, typer.Option("--rule", help="1 where the answer holds all identifiers and numbers of the reference.")
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option("--judge", help="Language model that grades: a folder, or an endpoint's address."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", help="The endpoint's model; default: the only one that it lists.")
    ] = None,
    record: Annotated[
        str | None, typer.Option("--record", help=f"Local file of the endpoint's answers; default: {RECORD} in RUN.")
    ] = None,
    sheet: Annotated[
        str | None, typer.Option("--sheet", help="Write a CSV file for people to fill in, and grade nothing.")
    ] = None,
    markdown: MarkdownOption = None,
    runs: RunsOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Grade answers in free text, and tell how far the graders agree (Cohen's kappa); writes grades.jsonl into RUN."""
    from polysome.evaluation import agreement, graders
    from polysome.evaluation.results import read_evaluation
    from polysome.operations import provenance
    from polysome.operations.program import announcer
    from polysome.storage import open_atomic

    folders = evaluation_folders([run], runs)
    if len(folders) > 1:
        raise ConfigurationError(
            f"{run} holds {len(folders)} evaluations", where="RUN", fix=f"name one: {', '.join(folders.values())}"
        )
    folder = next(iter(folders.values()))
    if not sheet and not (human or rule or judge):
        raise ConfigurationError(
            "no grader is named", where="command line", fix="add --human FILE, --rule or --judge MODEL; or --sheet FILE"
        )
    items = graders.items_of(read_evaluation(folder), folder)
    if sheet:
        graders.write_sheet(sheet, items)
        if as_json:
            print_json({"folder": folder, "sheet": sheet, "answers": len(items)})
            return
        console().print(f"written: {sheet}, {len(items):,} answers", markup=False, soft_wrap=True)
        next_step(shlex.join(["polysome", "grade", run, "--human", sheet]))
        return
    chosen: list[Grader] = [person for path in human or [] for person in graders.read_human(path, items)]
    if rule:
        chosen.append(graders.RuleGrader())
    if judge:
        chosen.append(_judge(judge, judge_model, record, folder, announcer(sys.stderr if as_json else sys.stdout)))
    found = agreement.grade(items, chosen)
    written = found.write(folder)
    if markdown:
        with open_atomic(markdown, "w") as handle:
            handle.write(f"# Grades of {folder}\n\nMade by `{provenance.command()}`.\n\n{found.markdown()}")
    if as_json:
        print_json({"folder": folder, "grades": written, **found.to_json()})
        return
    console().print(found.rich())
    console().print(f"written: {written}", markup=False, soft_wrap=True)


def _judge(
    source: str, model: str | None, record: str | None, folder: str, announce: Callable[[str], None]
) -> "Grader":
    from polysome.config import validate
    from polysome.evaluation.graders import JudgeGrader
    from polysome.inference.endpoint import Endpoint, as_endpoint
    from polysome.inference.engine import open_engine
    from polysome.storage import join

    endpoint = as_endpoint(source)
    if endpoint is None:
        if model or record:
            raise ConfigurationError(
                f"{source} is no address", where="--judge-model, --record", fix="they are of endpoints: leave them out"
            )
        return JudgeGrader(open_engine(source), announce=announce)
    if record is None and "://" in folder:
        raise ConfigurationError(
            "the judge's answers are recorded in a local file, and the run is not local",
            where=folder,
            fix="name one: --record FILE",
        )
    settings = {"url": endpoint.url, "model": model, "record": record or join(folder, RECORD)}
    return JudgeGrader(open_engine(validate(Endpoint, settings, where="--judge")), announce=announce)
