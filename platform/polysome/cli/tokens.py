"""`polysome tokens`: what a tokenizer makes of sequences, and tokenizers made for them."""

from typing import Annotated

import typer

from polysome.cli.console import JsonOption, console, next_step, print_json
from polysome.config import ConfigurationError

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


@app.command("build")
def build(
    folder: Annotated[str, typer.Argument(help="Local folder to write; it may not exist yet.")],
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="Whose wordings become tokens; may be repeated. Default: all.")
    ] = None,
    vocabulary_size: Annotated[int, typer.Option(min=276, help="Without the k-mers.")] = 4096,
    kmer: Annotated[int, typer.Option(min=1, max=6, help="1: a token a base; else overlapping k-mers.")] = 1,
    protein_kmer: Annotated[int, typer.Option(min=1, max=3, help="The same for proteins.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Build Polysome's own vocabulary: bases or k-mers, amino acids, and the phrases of the templates."""
    import os
    from typing import get_args

    from polysome import specs
    from polysome.data.render import wordings
    from polysome.models.tokenizer import build_per_base_tokenizer

    if os.path.exists(folder) and os.listdir(folder):
        raise ConfigurationError(f"{folder} is not empty", where=folder, fix="name a folder that does not exist yet")
    names = dataset or [name for name in specs.names() if specs.dataset(name).task]
    prompts = [specs.system_prompt(prompt) or "" for prompt in get_args(specs.Prompt)]
    texts = [*prompts, *(text for name in names for text in wordings(specs.dataset(name)))]
    build_per_base_tokenizer(folder, texts, vocabulary_size=vocabulary_size, kmer=kmer, protein_kmer=protein_kmer)
    if as_json:
        print_json({"folder": folder, "datasets": names, "kmer": kmer, "protein_kmer": protein_kmer})
        return
    console().print(f"a vocabulary of {len(names)} data sets is in {folder}", markup=False, soft_wrap=True)
    next_step(f"polysome tokens audit {folder}")


@app.command("extend")
def extend(
    base: Annotated[str, typer.Argument(help="Hugging Face tokenizer with a chat template; folder, URL or hub id.")],
    folder: Annotated[str, typer.Argument(help="Local folder to write; it may not exist yet.")],
    as_json: JsonOption = False,
) -> None:
    """Add a token for every base and amino acid to a model's tokenizer; a stage then gives the model rows for them."""
    from polysome.data.tokenizer_files import local_tokenizer, tokenizer_fingerprint
    from polysome.models.vocabulary import extend_tokenizer

    local = local_tokenizer(base)
    added = extend_tokenizer(local, folder, fingerprint=tokenizer_fingerprint(local))
    if as_json:
        print_json({"folder": folder, "base": base, "added": list(added)})
        return
    console().print(f"{base} with {len(added)} added tokens is in {folder}", markup=False, soft_wrap=True)
    next_step(f"polysome tokens audit {folder}")


@app.callback()
def tokens() -> None:
    """Look at tokenizers."""
