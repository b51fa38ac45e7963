"""`polysome report`, `compare`, `datasets export-harness`: what finished evaluations say, for people and programs."""

import shlex
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polysome.cli.console import JsonOption, console, next_step, print_json
from polysome.config import ConfigurationError, DataError

if TYPE_CHECKING:
    from polysome.evaluation.report import Report

RunsArgument = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Run folders or URLs of evaluations or pipelines, or ids below --runs."),
]
RunsOption = Annotated[
    str, typer.Option("--runs", envvar="POLYSOME_RUNS", help="Folder or URL (any fsspec) that holds the runs.")
]
MarkdownOption = Annotated[str | None, typer.Option("--markdown", help="Also write Markdown to this file or URL.")]
STYLES = ("strict", "official", "scored")


def report(
    evaluations: RunsArgument,
    html: Annotated[str | None, typer.Option("--html", help="Write the page, one file, to this file or URL.")] = None,
    markdown: MarkdownOption = None,
    audit: Annotated[
        str | None, typer.Option("--audit", help="What `polysome datasets audit -o FILE` wrote, for the page.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Default: the name of the run.")] = None,
    runs: RunsOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Lay evaluations beside baselines and published numbers; a pipeline gives one column per evaluated stage."""
    from polysome.evaluation.report import table
    from polysome.evaluation.results import read_evaluation
    from polysome.operations import provenance
    from polysome.storage import open_atomic

    folders = evaluation_folders(evaluations, runs)
    found = {name: read_evaluation(folder) for name, folder in folders.items()}
    shown = table(found)
    heading = title or _last(evaluations[0])
    command = provenance.command()
    written = {}
    if html:
        from polysome.evaluation.page import read_subject, write_page

        subjects = [read_subject(folder, name) for name, folder in folders.items()]
        write_page(html, subjects, title=heading, command=command, audit=_text(audit) if audit else "")
        written["html"] = html
    if markdown:
        with open_atomic(markdown, "w") as handle:
            made = "".join(f"- {name}: `{evaluation.command}`\n" for name, evaluation in found.items())
            handle.write(f"# {heading}\n\nMade by `{command}`, of\n\n{made}\n{shown.markdown()}")
        written["markdown"] = markdown
    if as_json:
        print_json({"evaluations": folders, "written": written, **_report_json(shown)})
        return
    console().print(shown.rich(heading))
    for note in shown.notes:
        console().print(f"- {note}", markup=False, soft_wrap=True)
    for path in written.values():
        console().print(f"written: {path}", markup=False, soft_wrap=True)
    if not html:
        next_step(shlex.join(["polysome", "report", *evaluations, "--html", "report.html"]))


def compare(
    evaluations: RunsArgument,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", help="Also compare with this baseline, e.g. kmer, of the first run; may repeat."),
    ] = None,
    style: Annotated[str, typer.Option("--style", help="How answers are read: strict, official or scored.")] = "strict",
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Of the paired bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", help="Of the paired bootstrap.")] = 42,
    markdown: MarkdownOption = None,
    runs: RunsOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Compare evaluations, and baselines, on the same rows: paired differences, Holm-corrected over all tasks."""
    from polysome.evaluation import compare as comparison
    from polysome.operations import provenance
    from polysome.storage import open_atomic

    if style not in STYLES:
        raise ConfigurationError(f"no style {style!r}", where="--style", fix=f"choose one of {', '.join(STYLES)}")
    folders = evaluation_folders(evaluations, runs)
    contestants = [comparison.read_contestant(folder, name, style) for name, folder in folders.items()]  # type: ignore[arg-type]
    first = next(iter(folders.values()))
    contestants += [comparison.read_baseline(contestants[0], first, name) for name in baseline or []]
    if not as_json and sys.stderr.isatty():
        print("resampling", file=sys.stderr)
    found = comparison.compare(contestants, resamples=resamples, seed=seed)
    if markdown:
        names = " against ".join(item.name for item in contestants)
        with open_atomic(markdown, "w") as handle:
            handle.write(f"# {names}\n\nMade by `{provenance.command()}`.\n\n{found.markdown()}")
    if as_json:
        print_json({"evaluations": folders, **found.to_json()})
        return
    console().print(found.rich())
    for note in found.notes:
        console().print(f"- {note}", markup=False, soft_wrap=True)
    next_step(shlex.join(["polysome", "report", *evaluations, "--html", "report.html"]))


def export_harness(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL to write to.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Names of data sets, separated by commas.")],
    split: Annotated[str, typer.Option("--split", help="test, dev, train or stage3_pool.")] = "test",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Rows of each task, drawn by the seed.")] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="concise, reasoning, concise_reference, none.")] = "concise",
    seed: Annotated[int, typer.Option("--seed", help="Of the rows of a limit and the choice of wordings.")] = 42,
    wording: Annotated[int, typer.Option("--wording", min=0, help="Answer template that words a class.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer in words.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Write tasks for lm-evaluation-harness: its YAML, the documents as JSON lines, and the metrics."""
    from typing import get_args

    from polysome import specs
    from polysome.evaluation.harness import export_harness as export

    for value, known, option in ((split, specs.Split, "--split"), (prompt, specs.Prompt, "--prompt")):
        if value not in get_args(known):
            raise ConfigurationError(
                f"no {option[2:]} {value!r}", where=option, fix=f"choose one of {', '.join(get_args(known))}"
            )
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise ConfigurationError("no task is named", where="--tasks", fix="name data sets, separated by commas")
    exported = export(
        names,
        folder,
        split=split,  # type: ignore[arg-type]
        limit=limit,
        prompt=prompt,  # type: ignore[arg-type]
        seed=seed,
        wording=wording,
        max_new_tokens=max_new_tokens,
    )
    if as_json:
        print_json({"folder": folder, "tasks": [vars(item) for item in exported]})
        return
    for item in exported:
        console().print(f"{item.name}  {item.output_type}  {item.documents:,} documents", markup=False)
    chosen = ",".join(item.name for item in exported)
    next_step(
        f"cd {shlex.quote(folder)} && lm-eval run --model hf --model_args pretrained=MODEL --apply_chat_template "
        f"--include_path . --tasks {chosen}"
    )


def evaluation_folders(given: list[str], runs: str) -> dict[str, str]:
    """Folders of evaluations by the name that each is told by; of a pipeline all its evaluations, oldest first."""
    from polysome.evaluation.results import RESULTS_FILE
    from polysome.operations.runs import list_steps
    from polysome.storage import exists, join

    found: list[tuple[str, str]] = []
    for name in given:
        folder = next((path for path in (name, join(runs, name)) if _holds_run(path)), None)
        if folder is None:
            raise DataError(
                f"there is no run {name!r}",
                where=f"{name} and {join(runs, name)}",
                fix="name a run folder, or an id that `polysome runs` lists",
            )
        if exists(join(folder, RESULTS_FILE)):
            found.append((_last(folder), folder))
            continue
        steps = [
            (record.name.removeprefix("evaluate-"), step)
            for step, record in list_steps(folder)
            if record.job == "evaluate" and exists(join(step, RESULTS_FILE))
        ]
        if not steps:
            raise DataError("the run holds no finished evaluation", where=folder, fix=_going_on(folder))
        found += [(step if len(given) == 1 else f"{_last(folder)}/{step}", path) for step, path in steps]
    names = [name for name, _ in found]
    return {name if names.count(name) == 1 else folder: folder for name, folder in found}


def _holds_run(folder: str) -> bool:
    from polysome.evaluation.results import RESULTS_FILE
    from polysome.operations.runs import RECORD
    from polysome.storage import exists, join

    return exists(join(folder, RESULTS_FILE)) or exists(join(folder, RECORD))


def _report_json(shown: "Report") -> dict[str, Any]:
    from polysome.specs import dataset

    return {
        "tasks": [
            {
                "dataset": task,
                "omics": dataset(task).omics,
                "columns": [
                    {"title": column.title, "reading": column.reading, **column.measurements[task].to_json()}
                    for column in shown.columns
                    if task in column.measurements
                ],
            }
            for task in shown.tasks
        ],
        "notes": list(shown.notes),
    }


def _text(path: str) -> str:
    import fsspec

    try:
        with fsspec.open(path, "r", encoding="utf-8") as handle:
            return str(handle.read())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the audit: {error}", where=path, fix="make it: `polysome datasets audit -o FILE`"
        ) from error


def _going_on(folder: str) -> str:
    """What to do about a run without results."""
    from polysome.operations.runs import RECORD, read_run
    from polysome.storage import exists, join

    if not exists(join(folder, RECORD)):
        return "evaluate first: `polysome evaluate …`"
    record = read_run(folder)
    return f"go on with the run, which is {record.status}: `{record.command}`, with `--run-id {record.id}`"


def _last(folder: str) -> str:
    return PurePath(folder.rstrip("/")).name or folder
