"""`polysome tokens`: what a tokenizer makes of sequences."""

from typing import Annotated

import typer

from polysome.cli.console import JsonOption, console, next_step, print_json

app = typer.Typer(help="Look at tokenizers.", no_args_is_help=True)


@app.command("audit")
def audit(
    folder: Annotated[str, typer.Argument(help="Of a Hugging Face tokenizer; path or URL.")],
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="Take its sequences; may be repeated. Default: random ones.")
    ] = None,
    sequences: Annotated[int, typer.Option(min=1, help="Per molecule type.")] = 200,
    as_json: JsonOption = False,
) -> None:
    """What a tokenizer makes of sequences: characters per token, effect of a substitution, of case, of U and T."""
    from rich.table import Table

    from polysome.data.token_audit import audit_tokens

    found = audit_tokens(folder, dataset or [], sequences=sequences)
    if as_json:
        print_json(found.content())
        return
    header, *lines = found.table()
    table = Table(*header, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*line)
    console().print(table)
    next_step(f"polysome datasets sample {(dataset or ['planted_promoter'])[0]} --tokenizer {folder}")


@app.callback()
def tokens() -> None:
    """Look at tokenizers."""
