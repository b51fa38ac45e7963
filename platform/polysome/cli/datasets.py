"""`polysome datasets`: look at what is declared, at the data behind it, and at what a model would see of it."""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from polysome.cli.console import JsonOption, console, indented, next_step, print_json, told
from polysome.config import ConfigurationError, PolysomeError

if TYPE_CHECKING:
    from polysome.specs import Dataset, SourceFile

app = typer.Typer(help="Look at the declared data sets.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="Of a data set; see `polysome datasets ls`.")]
SplitOption = Annotated[str | None, typer.Option(help="Default: train, or the first one declared.")]
SubsetsOption = Annotated[
    list[str] | None,
    typer.Option("--subset", help="Only this subset; may be repeated. Default: all but optional ones."),
]


@app.command("ls")
def list_datasets(as_json: JsonOption = False) -> None:
    """List the declared data sets."""
    from polysome import specs

    declared = []
    for name in specs.names():
        try:
            declared.append(specs.dataset(name))
        except ConfigurationError as error:
            print(f"{name} is left out, its spec is wrong: {error.what}", file=sys.stderr)
    if as_json:
        print_json([spec.model_dump(mode="json") for spec in declared])
        return
    table = Table("name", "task", "metric", "molecules", "splits (declared rows)", "licence", box=None, pad_edge=False)
    for spec in declared:
        counts = ", ".join(_declared_rows(split, files) for split, files in spec.splits.items())
        kind = spec.task.label.kind if spec.task else spec.kind
        metric = spec.task.metric if spec.task else "-"
        molecules = " + ".join(molecule.type for molecule in spec.molecules) or "-"
        table.add_row(spec.name, kind, metric, molecules, counts, escape(spec.licence))
    console().print(table)
    next_step(f"polysome datasets show {declared[0].name}" if declared else "polysome doctor")


def _declared_rows(split: str, files: "Sequence[SourceFile]") -> str:
    """`dev (part of) 5,920`: how many rows a split's files declare, and whether it takes all of them."""
    taken = [file for file in files if not file.optional] or list(files)
    if not all(file.rows for file in taken):
        return split
    part = " (part of)" if any(file.share for file in taken) else ""
    return f"{split}{part} {sum(file.rows or 0 for file in taken):,}"


@app.command("show")
def show(name: NameArgument, as_json: JsonOption = False) -> None:
    """Print one data set's spec, with where each file is read from."""
    import yaml

    from polysome import specs
    from polysome.storage import resolve

    spec = specs.dataset(name)
    content = spec.model_dump(mode="json", exclude_none=True)
    for files in content["splits"].values():
        for file in files:
            file["read_from"] = resolve(file["uri"], file.get("mirror_path"))
    if as_json:
        print_json(content)
        return
    console().print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110), end="", markup=False)
    next_step(f"polysome datasets sample {name} -n 3")


@app.command("validate")
def validate(
    only: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all.")] = None,
    read: Annotated[bool, typer.Option("--read", help="Read every file whole: checksum, rows, labels.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Validate specs and their templates; with --read also the data behind them."""
    from polysome import specs
    from polysome.specs.lint import lint

    results: list[dict[str, Any]] = []
    for name in only or specs.names():
        problem = None
        rows: dict[str, int] = {}
        findings: list[Any] = []
        try:
            spec = specs.dataset(name)
            findings = lint(spec)
            if read:
                for split, files in spec.splits.items():
                    counts = [_count(spec, split, file) for file in files]
                    rows[split] = sum(n for n, file in zip(counts, files, strict=True) if not file.optional)
        except PolysomeError as error:
            problem = error
        wrong = problem is not None or any(finding.level == "error" for finding in findings)
        results.append(
            {
                "name": name,
                "ok": not wrong,
                "rows": rows,
                "findings": [vars(finding) for finding in findings],
                "error": problem and told(problem),
            }
        )
    failed = [result for result in results if not result["ok"]]
    if as_json:
        print_json(results)
    else:
        for result in results:
            told_rows = ", ".join(f"{split} {count:,}" for split, count in result["rows"].items())
            verdict = "[green]ok[/]   " if result["ok"] else "[red]wrong[/]"
            console().print(f"{verdict} {result['name']}  {told_rows}")
            for finding in result["findings"]:
                text = f"{finding['level']}: {finding['problem']}: {finding['template']!r}"
                console().print(indented(text), markup=False, soft_wrap=True)
            if result["error"]:
                console().print(indented(str(result["error"]["text"])), markup=False, soft_wrap=True)
        next_step(f"polysome datasets show {failed[0]['name']}" if failed else "polysome datasets ls")
    if failed:
        raise typer.Exit(ConfigurationError.exit_code)


def _count(spec: "Dataset", split: Any, file: "SourceFile") -> int:
    """Examples of one file, read to its end."""
    from polysome.data.examples import FileReport, read_file

    report = FileReport(file.uri)
    for _ in read_file(spec, split, file, report):
        pass
    return report.examples


@app.command("stats")
def stats(name: NameArgument, as_json: JsonOption = False) -> None:
    """Read every split and print counts, lengths, labels, and what was set aside."""
    from polysome import specs

    spec = specs.dataset(name)
    found = {split: _split_stats(spec, split) for split in spec.splits}
    if as_json:
        print_json({"name": name, "splits": found})
        return
    table = Table(
        "split",
        "examples",
        "set aside",
        "molecule",
        "shortest",
        "median",
        "mean",
        "longest",
        "labels",
        box=None,
        pad_edge=False,
    )
    for split, content in found.items():
        for place, (role, lengths) in enumerate(content["lengths"].items()):
            row = [split, f"{content['examples']:,}", f"{content['quarantined']:,}"] if not place else ["", "", ""]
            numbers = [f"{lengths[key]:,.0f}" for key in ("minimum", "median", "mean", "maximum")]
            table.add_row(*row, role, *numbers, escape(content["labels"]) if not place else "")
    console().print(table)
    for split, content in found.items():
        for reason, count in content["reasons"].items():
            console().print(f"{split}: {count:,} set aside: {reason}", markup=False)
        for kind, count in content["changed"].items():
            console().print(f"{split}: {count:,} sequences changed: {kind}", markup=False)
    next_step(f"polysome datasets audit {name}")


def _split_stats(spec: "Dataset", split: Any) -> dict[str, Any]:
    import numpy as np
    import pyarrow.compute as pc

    from polysome.data.examples import FileReport, read_file

    examples = quarantined = 0
    reasons: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    lengths: dict[str, list[Any]] = {}
    labels: list[Any] = []
    for file in spec.files(split):
        report = FileReport(file.uri)
        for batch in read_file(spec, split, file, report):
            found = batch.examples["sequences"].combine_chunks()
            sizes = pc.binary_length(found.flatten()).to_numpy(zero_copy_only=False)
            if spec.molecules:
                for place, molecule in enumerate(spec.molecules):
                    lengths.setdefault(molecule.role, []).append(sizes[place :: len(spec.molecules)])
            else:
                lengths.setdefault("all molecules", []).append(sizes)
            labels += [value for value in batch.examples["label"].to_pylist() if value is not None]
        examples += report.examples
        quarantined += report.quarantined
        reasons.update(report.reasons)
        changed.update(report.changed)
    summary = {}
    for role, parts in lengths.items():
        sizes = np.concatenate(parts)
        summary[role] = {
            "minimum": int(sizes.min()),
            "median": float(np.median(sizes)),
            "mean": float(sizes.mean()),
            "maximum": int(sizes.max()),
        }
    return {
        "examples": examples,
        "quarantined": quarantined,
        "reasons": dict(reasons),
        "changed": dict(changed),
        "lengths": summary,
        "labels": _label_summary(spec, labels),
    }


def _label_summary(spec: "Dataset", labels: list[list[float]]) -> str:
    if spec.task is None or not labels:
        return "-"
    label = spec.task.label
    if label.kind in ("binary", "multiclass"):
        counts = Counter(label.encode(tuple(value)) for value in labels)
        return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(13))
    if label.kind == "multilabel":
        count = sum(len(value) for value in labels) / len(labels)
        return f"{len({index for value in labels for index in value})} names used, {count:.2f} per example"
    numbers = list(zip(*labels, strict=True))
    names = getattr(label, "outputs", [spec.task.name])
    return "; ".join(
        f"{name} {min(column):g} to {max(column):g}, mean {sum(column) / len(column):.3g}"
        for name, column in zip(names, numbers, strict=True)
    )


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a data set's YAML (always JSON)."""
    from polysome.specs import Dataset

    print_json(Dataset.model_json_schema())


@app.command("sample")
def sample(
    name: NameArgument,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Examples to print.")] = 3,
    split: SplitOption = None,
    subset: SubsetsOption = None,
    prompt: Annotated[str, typer.Option(help="System prompt: concise, reasoning, none, …")] = "concise",
    wording: Annotated[
        str, typer.Option(help="faithful, or conditioned: questions that name the subset.")
    ] = "faithful",
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer folder. Default: a per-base vocabulary of this data set.")
    ] = None,
    max_length: Annotated[int, typer.Option(min=16, help="Tokens that a document may have.")] = 8192,
    seed: Annotated[int, typer.Option(help="Of the choice of templates.")] = 42,
    as_json: JsonOption = False,
) -> None:
    """Print examples as a model sees them, what is trained on in colour (between > and < where there is none)."""
    from typing import get_args

    from polysome import specs
    from polysome.data.render import Style, Wording

    spec = specs.dataset(name)
    for value, known, option in ((prompt, specs.Prompt, "--prompt"), (wording, Wording, "--wording")):
        if value not in get_args(known):
            raise ConfigurationError(
                f"no {option[2:]} {value!r}", where=option, fix=f"choose one of {', '.join(get_args(known))}"
            )
    chosen: Any = split or ("train" if "train" in spec.splits else next(iter(spec.splits)))
    style = Style(wording=wording)  # type: ignore[arg-type]
    documents = _rendered(spec, chosen, subset, count, prompt, style, tokenizer, max_length, seed)
    if as_json:
        print_json(documents)
        return
    screen = console()
    for document in documents:
        screen.print(
            f"[bold]{escape(document['id'])}[/]  {document['tokens']} tokens, {document['targets']} trained on"
        )
        screen.print(_coloured(document["spans"], screen.is_terminal), soft_wrap=True)
    next_step(f"polysome datasets stats {name}")


def _rendered(
    spec: "Dataset",
    split: Any,
    subsets: list[str] | None,
    count: int,
    prompt: Any,
    style: Any,
    tokenizer_folder: str | None,
    max_length: int,
    seed: int,
) -> list[dict[str, Any]]:
    import tempfile

    from polysome.data.examples import read_examples
    from polysome.data.render import wordings
    from polysome.data.tokenize import Rendering, tokenize, trained_spans, verify_spans
    from polysome.data.tokenizer_files import load_tokenizer, local_tokenizer
    from polysome.models.tokenizer import build_per_base_tokenizer
    from polysome.specs import system_prompt

    examples = read_examples(spec, split, limit=count, subsets=subsets)
    with tempfile.TemporaryDirectory() as built:
        if tokenizer_folder is None:
            build_per_base_tokenizer(built, [system_prompt(prompt) or "", *wordings(spec)], vocabulary_size=2048)
        folder = local_tokenizer(tokenizer_folder or built)
        tokenizer = load_tokenizer(folder)
        tokenizer_json = (folder / "tokenizer.json").read_text(encoding="utf-8")
    rendering = Rendering.of(tokenizer, chat=spec.kind != "corpus", prompt=prompt, seed=seed, style=style)
    documents = tokenize(examples, spec, rendering, tokenizer_json, max_length).documents
    verify_spans(documents, examples, spec, rendering, tokenizer_json)
    rows = {example["id"]: example for example in examples.to_pylist()}
    chats = {name: _chat(spec, example, prompt, seed, style) for name, example in rows.items()}
    return [
        {
            "id": row["id"],
            "label": rows[row["id"]]["label"] if row["id"] in rows else None,
            "messages": chats.get(row["id"], []),
            "tokens": len(row["input_ids"]),
            "targets": len(row["input_ids"]) - max(1, row["target_start"]),
            "spans": trained_spans(row["input_ids"], row["target_start"], tokenizer_json),
        }
        for row in documents.to_pylist()
    ]


def _chat(spec: "Dataset", example: dict[str, Any], prompt: Any, seed: int, style: Any) -> list[dict[str, str]]:
    """The messages of one example; none in a corpus."""
    from polysome.data.render import asked, chosen, messages, told

    if spec.kind == "corpus":
        return []
    draw = chosen(spec, example, seed, style)
    return messages(prompt, asked(spec, example, draw, style), told(spec, example, draw, prompt))


def _coloured(spans: list[tuple[str, bool]], terminal: bool) -> Any:
    """Tokens in turn brighter and dimmer, so that their bounds are seen; green is trained on."""
    from rich.text import Text

    text = Text()
    before = False
    for place, (token, trained) in enumerate(spans):
        if not terminal and trained != before:
            text.append(">" if trained else "<")
        before = trained
        shade = ("green", "bold green") if trained else ("dim", "none")
        text.append(token, style=shade[place % 2] if terminal else None)
    if not terminal and before:
        text.append("<")
    return text


@app.command("audit")
def audit(
    only: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all that can be read.")
    ] = None,
    corpus: Annotated[
        list[str] | None, typer.Option("--corpus", help="Look for test sequences in this corpus; may be repeated.")
    ] = None,
    near: Annotated[bool, typer.Option("--near/--no-near", help="Look for similar sequences across splits.")] = True,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Also write Markdown to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Report duplicates, contradictions, and what train, dev, test and corpora have in common."""
    from polysome import __version__, specs
    from polysome.data.audit import audit as audited
    from polysome.data.audit import markdown
    from polysome.storage import open_atomic

    names = only or [name for name in specs.names() if specs.dataset(name).kind == "task" and _is_here(name)]
    report = audited(names, corpus or [], near=near)
    if output:
        arguments = [*(only or []), *(part for name in corpus or [] for part in ("--corpus", name))]
        command = shlex.join(["polysome", "datasets", "audit", *arguments, *([] if near else ["--no-near"])])
        with open_atomic(output, "w") as handle:
            handle.write(f"# Audit of data sets\n\nMade by `{command} -o …` with Polysome {__version__}.\n\n")
            handle.write(markdown(report))
    if as_json:
        print_json(report.model_dump())
        return
    console().print(markdown(report), markup=False, soft_wrap=True)
    next_step("polysome run jobs/recipes/demo.yaml")


def _is_here(name: str) -> bool:
    """Whether all files of a data set can be reached; what is left out is said."""
    from polysome import specs
    from polysome.data.adapt import absent_file

    spec = specs.dataset(name)
    for files in spec.splits.values():
        for file in files:
            if (url := absent_file(spec, file)) is not None:
                print(f"{name} is left out, {url} is not there", file=sys.stderr)
                return False
    return True


def _export_given(spec: "Dataset", split: Any, subsets: list[str] | None, limit: int | None, output: str) -> int:
    """Ready-made instruction rows as they came, every field and digit; returns how many."""
    from itertools import islice

    from polysome.data.interchange import export_imported, import_rows
    from polysome.storage import open_atomic, resolve

    tables = (t for file in spec.files(split, subsets) for t in import_rows(resolve(file.uri, file.mirror_path)))
    rows = islice((row for table in tables for row in export_imported(table)), limit)
    count = 0
    with nullcontext(sys.stdout) if output == "-" else open_atomic(output, "w") as handle:
        for row in rows:
            handle.write(row + "\n")
            count += 1
    return count


@app.command("export")
def export(
    name: NameArgument,
    split: SplitOption = None,
    subset: SubsetsOption = None,
    output: Annotated[str, typer.Option("-o", "--output", help="File or URL; - is standard output.")] = "-",
    tag_style: Annotated[
        str, typer.Option(help="xml closes with </rna>, release with <rna> as the authors do.")
    ] = "release",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many examples.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of templates.")] = 42,
) -> None:
    """Write a split as the authors' instruction rows, JSON lines of input, output, label and task (XP-3); ready-made
    rows as they came."""
    from typing import get_args

    from polysome import specs
    from polysome.data.examples import read_examples
    from polysome.data.interchange import export_rows
    from polysome.data.render import Style, TagStyle
    from polysome.storage import open_atomic

    spec = specs.dataset(name)
    if tag_style not in get_args(TagStyle):
        raise ConfigurationError(
            f"no tag style {tag_style!r}", where="--tag-style", fix=f"choose one of {', '.join(get_args(TagStyle))}"
        )
    chosen: Any = split or ("train" if "train" in spec.splits else next(iter(spec.splits)))
    if spec.instructions is not None and spec.format.kind == "jsonl":
        count = _export_given(spec, chosen, subset, limit, output)
        if output != "-":
            console().print(f"{count:,} rows written to {output}", markup=False, soft_wrap=True)
        return
    examples = read_examples(spec, chosen, limit=limit, subsets=subset)
    rows = export_rows(examples, spec, seed=seed, style=Style(tag_style=tag_style))  # type: ignore[arg-type]
    if output == "-":
        for row in rows:
            print(row)
        return
    with open_atomic(output, "w") as handle:
        handle.writelines(row + "\n" for row in rows)
    console().print(f"{examples.num_rows:,} rows written to {output}", markup=False, soft_wrap=True)
