"""How commands speak: tables and hints for people, JSON for programs, errors on standard error."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from polysome.config import PolysomeError

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def console() -> Console:
    """A console for people: no colour unless it is a terminal, and no folding of what is piped."""
    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, highlight=False, width=None if terminal else 200)


def next_step(command: str) -> None:
    """Say what to run next."""
    console().print(f"next: {command}", markup=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """The result for a program."""
    json.dump(content, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def told(error: PolysomeError) -> dict[str, Any]:
    """An error for a program."""
    return {
        "type": type(error).__name__,
        "what": error.what,
        "where": error.where,
        "fix": error.fix,
        "text": str(error),
        "exit_code": error.exit_code,
    }


def report_error(problem: dict[str, Any], as_json: bool) -> None:
    """An error for people on standard error, for programs on standard output."""
    if as_json:
        print_json({"error": problem})
    else:
        Console(file=sys.stderr, highlight=False, soft_wrap=True).print(f"[red]error[/] {escape(str(problem['text']))}")


def indented(text: str) -> str:
    """Every line behind six blanks."""
    return "\n".join(f"      {line}" for line in text.splitlines())
