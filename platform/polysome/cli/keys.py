"""`polysome keys`: make, list and end the API keys of a served model."""

import re
import shlex
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from polysome.cli.console import JsonOption, console, next_step, print_json
from polysome.config import ConfigurationError
from polysome.serving import keys as store

app = typer.Typer(help="Make, list and end API keys of a served model.", no_args_is_help=True)

FileOption = Annotated[
    str,
    typer.Option("--keys", envvar="POLYSOME_KEYS", help="File of keys, the `keys` of a serving recipe; mode 0600."),
]


@app.command("create")
def create(
    keys: FileOption,
    team: Annotated[str, typer.Option(help="Whose key it is; teams own batches and jobs.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="infer: ask, read evaluations; batch: whole files; submit: jobs; admin: all, of every team. May be "
            "repeated. Default: infer."
        ),
    ] = None,
    expires: Annotated[str, typer.Option(help="Days (90d), a date (2027-01-31, UTC), or never.")] = "90d",
    note: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, once: the file keeps its hash alone."""
    key, text = store.create(keys, team=team, scopes=scope or ["infer"], expires=_moment(expires), note=note)
    if as_json:
        print_json({"key": text, **_row(key)})
        return
    screen = console()
    screen.print(text, markup=False, soft_wrap=True)
    screen.print(f"{key.team}, {', '.join(key.scopes)}, until {_day(key.expires)}; it is not shown again", style="dim")
    next_step(f"polysome serve MODEL keys={shlex.quote(keys)}")


@app.command("ls")
def list_keys(keys: FileOption, as_json: JsonOption = False) -> None:
    """List the keys of a file: all but the secrets, which it has not."""
    found = store.read(keys)
    if as_json:
        print_json([_row(key) for key in found])
        return
    table = Table("id", "state", "team", "scopes", "created", "expires", "note", box=None, pad_edge=False)
    colours = {"active": "green", "expired": "yellow", "revoked": "red"}
    for key in found:
        state = key.state()
        scopes, note = ", ".join(key.scopes), escape(key.note)
        table.add_row(
            key.id, f"[{colours[state]}]{state}[/]", key.team, scopes, _day(key.created), _day(key.expires), note
        )
    if found:
        console().print(table)
    else:
        console().print(f"no keys in {keys}", markup=False)
    next_step(f"polysome keys create --keys {shlex.quote(keys)} --team TEAM")


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="Of the key, or the key itself.")],
    keys: FileOption,
    as_json: JsonOption = False,
) -> None:
    """End a key; gateways refuse it from their next request on."""
    ended = store.revoke(keys, key)
    if as_json:
        print_json(_row(ended))
        return
    console().print(f"key {ended.id} of {ended.team} is revoked", markup=False)
    next_step(f"polysome keys ls --keys {shlex.quote(keys)}")


def _row(key: store.Key) -> dict[str, Any]:
    return {**key.model_dump(mode="json", exclude={"sha256"}), "state": key.state()}


def _moment(text: str) -> datetime | None:
    if text == "never":
        return None
    now = datetime.now(UTC).replace(microsecond=0)
    if days := re.fullmatch(r"([1-9][0-9]{0,4})d", text):
        return now + timedelta(days=int(days[1]))
    try:
        moment = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is no time", where="--expires", fix="write days (90d), a date (2027-01-31), or never"
        ) from error
    if moment <= now:
        raise ConfigurationError(f"{text} is past", where="--expires", fix="name a day to come")
    return moment


def _day(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d}" if moment else "never"
