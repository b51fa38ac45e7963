"""`polysome adapters`: publish trained adapters for serving, list them, and go back to an earlier version."""

import shlex
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from polysome.cli.console import JsonOption, console, next_step, print_json
from polysome.config import ConfigurationError, DataError

app = typer.Typer(help="Publish adapters to a registry that served models read.", no_args_is_help=True)

RegistryOption = Annotated[
    str,
    typer.Option(
        "--registry",
        envvar="POLYSOME_ADAPTERS",
        help="Folder or URL (any fsspec) of the registry, the `adapters` of a serving recipe.",
    ),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits, '.', '_' and '-'.")]


@app.command("publish")
def publish(
    folder: Annotated[str, typer.Argument(metavar="RUN|FOLDER", help="A training run, or a folder in PEFT's format.")],
    name: NameArgument,
    registry: RegistryOption,
    base: Annotated[
        str | None, typer.Option(help="Folder or run of the base model. Default: what the adapter says.")
    ] = None,
    note: Annotated[str, typer.Option(help="What is new.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Check an adapter against its base and make it the next version of a name; gateways serve it within seconds."""
    from polysome.operations.provenance import user
    from polysome.serving.adapters import Registry

    published = Registry(registry).publish(folder, name, model=base, user=user(), note=note)
    if as_json:
        print_json({**vars(published), "id": published.id})
        return
    console().print(f"published {published.id}, fingerprint {published.fingerprint}", markup=False)
    next_step(f"polysome serve MODEL adapters={shlex.quote(registry)}")


@app.command("ls")
def list_adapters(registry: RegistryOption, as_json: JsonOption = False) -> None:
    """List every version of every adapter; the one that answers under the name alone is marked."""
    from polysome.serving.adapters import Damaged, Registry

    store = Registry(registry)
    found: list[dict[str, Any]] = []
    for name in store.names():
        current, unknown = None, ""
        try:
            current = store.current(name)
        except (DataError, ConfigurationError) as error:
            unknown = f"which version is current cannot be read: {error.what}"
        for entry in store.versions(name):
            told: dict[str, Any] = {"current": entry.version == current, "problem": unknown or None}
            if isinstance(entry, Damaged):
                found.append({**vars(entry), **told, "problem": entry.problem})
                continue
            manifest = entry.model_dump(mode="json", exclude={"files", "format"})
            found.append({**manifest, "fingerprint": entry.fingerprint, **told})
    if as_json:
        print_json(found)
        return
    table = Table("adapter", "", "rank", "base", "published (UTC)", "user", "note", box=None, pad_edge=False)
    for row in found:
        table.add_row(
            f"{row['name']}@{row['version']}",
            "[green]current[/]" if row["current"] else "",
            str(row.get("rank", "")),
            row.get("base_fingerprint", ""),
            row.get("published", "")[:19].replace("T", " "),
            escape(row.get("user", "")),
            f"[red]{escape(row['problem'])}[/]" if row["problem"] else escape(row["note"]),
        )
    if found:
        console().print(table)
    else:
        console().print(f"no adapters in {registry}", markup=False)
    next_step(f"polysome adapters publish RUN NAME --registry {shlex.quote(registry)}")


@app.command("rollback")
def rollback(
    name: NameArgument,
    registry: RegistryOption,
    to: Annotated[int | None, typer.Option(help="A version. Default: the one before the current one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Let another version answer under a name; gateways follow within seconds."""
    from polysome.serving.adapters import Registry

    published = Registry(registry).rollback(name, to)
    if as_json:
        print_json({**vars(published), "id": published.id})
        return
    console().print(f"{name} is {published.id} now", markup=False)
    next_step(f"polysome adapters ls --registry {shlex.quote(registry)}")
