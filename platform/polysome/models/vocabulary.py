"""Added vocabulary: tokens of single bases and amino acids for any tokenizer, and the rows that a model gets for them.

`<dna:A>`, `<rna:A>` and `<protein:A>` are tokens of their own: a molecule costs a token a letter, a substitution
changes one token, and an adenine is no alanine and no letter of a word. The words of the language keep their tokens.
The chat template spells the molecules of system and user messages, so whoever renders it asks as was trained; answers
stay text. Every added token begins as the mean of the rows that stood for its text before (J. Hewitt: Initializing new
word embeddings for pretrained language models, 2021, for the mean; here of its own pieces, not of the vocabulary).

In tokenizer_config.json stand `sequence_letters` (which letters are tokens), `added_from` (for every added token the
base's ids of its text) and `extends` (the base tokenizer's fingerprint).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polysome.config import ConfigurationError
from polysome.models.tokenizer import MOLECULE_TAGS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LETTERS = {"dna": "ACGTN", "rna": "ACGUN", "protein": "ABCDEFGHIKLMNOPQRSTUVWXYZ*"}
"""What is spelled; of amino acids the twenty, selenocysteine U, pyrrolysine O, the ambiguous B, Z and X, and a stop."""

_SPECIAL, _TEMPLATE = "special_tokens_map.json", "chat_template.jinja"


def extend_tokenizer(base: str | Path, folder: str | Path, *, fingerprint: str) -> dict[str, list[int]]:
    """Write a tokenizer folder: the base's with the molecule tags and the letters of `LETTERS` added.

    Args:
        base: local folder of a fast tokenizer with a chat template.
        folder: local folder, not there yet; it appears whole or not at all.
        fingerprint: of the base tokenizer, by which a model's folder is known as the one that these tokens extend.

    Returns:
        For each added token the base's ids of its text.

    Raises:
        ConfigurationError: the base has no tokenizer.json or not exactly one chat template, it spells molecules
            already, or it does not read the added tokens as such.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import AutoTokenizer

    base, folder = Path(base), Path(folder)
    if folder.exists():
        raise ConfigurationError(f"{folder} exists", where=str(folder), fix="name a folder that does not exist yet")
    if not (base / "tokenizer.json").is_file():
        raise ConfigurationError(
            f"no tokenizer.json in {base}", where=str(base), fix="name a folder with a fast (tokenizers) tokenizer"
        )
    settings_file = base / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.is_file() else {}
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    letter_tokens = [_token(molecule, letter) for molecule, letters in LETTERS.items() for letter in letters]
    known = [token for token in letter_tokens if tokenizer.token_to_id(token) is not None]
    if (
        known
        or "sequence_letters" in settings
        or any(int(settings.get(name, 1)) > 1 for name in ("sequence_kmer", "protein_kmer"))
    ):
        raise ConfigurationError(
            f"the tokenizer spells molecules already{f', it has the token {known[0]}' if known else ''}",
            where=str(base),
            fix="use it as it is, or extend the tokenizer that it was made from",
        )
    template = _template(read_tokenizer(base).chat_template, str(base))
    added_from = {
        token: tokenizer.encode(token if token in MOLECULE_TAGS else token[-2], add_special_tokens=False).ids
        for token in (*MOLECULE_TAGS, *letter_tokens)
        if tokenizer.token_to_id(token) is None
    }
    taken = set(tokenizer.get_vocab().values())
    # Not special: they belong to the text and must survive decoding.
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=False) for token in (*MOLECULE_TAGS, *letter_tokens)]
    )
    if any(not ids for ids in added_from.values()) or taken & {tokenizer.token_to_id(token) for token in added_from}:
        raise ConfigurationError(
            "the tokenizer makes nothing of a letter, or its ids have gaps that added tokens would fall into",
            where=str(base),
            fix="use another base tokenizer",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tokenizer-") as scratch:
        written = Path(scratch) / "tokenizer"
        written.mkdir()
        if (base / _SPECIAL).is_file():
            (written / _SPECIAL).write_bytes((base / _SPECIAL).read_bytes())
        tokenizer.save(str(written / "tokenizer.json"))
        settings.pop("chat_template", None)
        # Without a config.json beside it, transformers must be told.
        settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        settings |= {"sequence_letters": LETTERS, "added_from": added_from, "extends": fingerprint}
        (written / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (written / _TEMPLATE).write_text(_spelling_template() + template, encoding="utf-8")
        # By transformers' own choice of a class, as others will read it: this class must not split what was added.
        _check(AutoTokenizer.from_pretrained(written, trust_remote_code=False), tokenizer, str(base))
        os.rename(written, folder)
    return added_from


def read_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer in a local folder or behind a hub id, with the entries of its tokenizer.json and no others.

    `AutoTokenizer` goes by the model type that a config.json beside it names, and for some (qwen2) adds a token.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(str(source))
    return tokenizer


def new_rows(tokenizer: PreTrainedTokenizerBase, model_folder: str) -> dict[int, list[int]]:
    """The rows that a model must be given before it reads `tokenizer`, each with the rows whose mean it begins as.

    Empty where the tokenizer adds nothing, and for a model whose own tokenizer knows the added tokens.

    Args:
        model_folder: local folder or hub id.

    Raises:
        ConfigurationError: the model's folder holds no tokenizer, so that this cannot be told.
    """
    added: Mapping[str, list[int]] = tokenizer.init_kwargs.get("added_from", {})
    if not added:
        return {}
    try:
        known = read_tokenizer(model_folder).get_vocab()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"the data's tokenizer has added tokens, and the model's own cannot be read: {str(error).splitlines()[0]}",
            where=f"model.path = {model_folder}",
            fix="put the model's tokenizer files into its folder",
        ) from error
    place_of = tokenizer.get_vocab()
    return {place_of[token]: ids for token, ids in added.items() if token not in known}


def grow(model: PreTrainedModel, rows: Mapping[int, list[int]]) -> None:
    """Make every row of embedding and output layer that `rows` names the mean of the rows that it names for it.

    Both get more rows where they have too few; `config.vocab_size` follows.

    Args:
        rows: what `new_rows` gives.
    """
    import torch

    weight: Any = model.get_input_embeddings().weight
    size = max(len(weight), max(rows) + 1)
    if size > len(weight):
        # It draws the rows before they are set below.
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for values in () if layer is None else layer.parameters(recurse=False):
                values[list(rows)] = torch.stack([values[ids].mean(dim=0) for ids in rows.values()])


def _token(molecule: str, letter: str) -> str:
    # As polysome.data.frame writes it, which compares what it writes with what the template does.
    return f"<{molecule}:{letter}>"


def _template(found: Any, where: str) -> str:
    if not found:
        raise ConfigurationError("the tokenizer has no chat template", where=where, fix="use a chat model's tokenizer")
    if not isinstance(found, str):
        raise ConfigurationError(
            f"the tokenizer has several chat templates: {', '.join(sorted(found))}",
            where=where,
            fix="keep the one that is to be trained with, as chat_template.jinja",
        )
    return found


def _spelling_template() -> str:
    """Jinja that puts spelled messages in the place of `messages`; the base's template follows it.

    A molecule is what stands between a tag and the tag that closes it, without a `<`.
    """
    content = "message['content']"
    for molecule, letters in LETTERS.items():
        content = f"polysome_spell({content}, '{molecule}', '{letters}')"
    return (
        "{% macro polysome_spell(text, tag, letters) %}{% for part in text.split('<' + tag + '>') %}"
        "{% set sequence = part.split('</' + tag + '>')[0] %}"
        "{% if loop.first %}{{ part }}{% else %}{{ '<' + tag + '>' }}"
        "{% if '<' in sequence or sequence == part %}{{ part }}{% else %}"
        "{% for letter in sequence %}{{ '<' + tag + ':' + letter + '>' if letter in letters else letter }}{% endfor %}"
        "{{ part[sequence|length:] }}{% endif %}{% endif %}{% endfor %}{% endmacro %}"
        "{% set polysome = namespace(messages=[]) %}{% for message in messages %}"
        "{% if message['role'] == 'assistant' or not message['content'] %}"
        "{% set polysome.messages = polysome.messages + [message] %}"
        "{% elif message['content'] is string %}"
        f"{{% set polysome.messages = polysome.messages + [dict(message, content={content})] %}}"
        "{% else %}{{ raise_exception('the content of a message must be one text, to spell the molecules in it') }}"
        "{% endif %}{% endfor %}{% set messages = polysome.messages %}"
    )


def _check(loaded: PreTrainedTokenizerBase, wanted: Tokenizer, where: str) -> None:
    """What transformers loads reads every added token as one, and the text around them is given back as it was."""
    tokens = [
        [f"<{molecule}>", *(_token(molecule, letter) for letter in letters), f"</{molecule}>"]
        for molecule, letters in LETTERS.items()
    ]
    text = "Is it " + ", or a word and ".join("".join(molecule) for molecule in tokens) + "? Yes, x"
    ids = loaded.encode(text, add_special_tokens=False)
    added = [wanted.token_to_id(token) for molecule in tokens for token in molecule]
    if [token for token in ids if token in set(added)] != added:
        raise ConfigurationError(
            "the tokenizer does not read added tokens as such", where=where, fix="use another base tokenizer"
        )
    decoded = wanted.decode(ids, skip_special_tokens=False)
    # Some put a blank before the first word.
    if decoded.lstrip(" ") != text:
        raise ConfigurationError(
            f"the tokenizer does not give back text that stands between added tokens: {decoded!r}",
            where=where,
            fix="use another base tokenizer; one that puts a blank before every piece of text has a newer form, which "
            "puts it before the first alone (Metaspace with prepend_scheme first)",
        )
