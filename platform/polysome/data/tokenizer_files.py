"""A tokenizer folder as files: its fingerprint, and copying it into a prepared folder."""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polysome.config import ConfigurationError
from polysome.storage import join, open_atomic
from polysome.storage.local import local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FOLDER = "tokenizer"
_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MEANING = ("bos_token", "eos_token", "pad_token", "chat_template", "sequence_kmer")
_MEANING_IF_THERE = ("sequence_letters", "protein_kmer")
"""Counted where they stand alone, so that tokenizers without them keep their fingerprints."""


def tokenizer_fingerprint(folder: str | Path) -> str:
    """16 hex digits of what decides token ids and chat layout: vocabulary, special tokens, chat template.

    Raises:
        ConfigurationError: the folder holds no fast tokenizer.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ConfigurationError(
            f"no tokenizer.json in {folder}", where=str(folder), fix="name a folder with a fast (tokenizers) tokenizer"
        )
    content = _json(folder / "tokenizer.json")
    # Truncation and padding are set per call; they do not change what a token is.
    content.pop("truncation", None), content.pop("padding", None)
    settings_file = folder / "tokenizer_config.json"
    settings = _json(settings_file) if settings_file.is_file() else {}
    template = folder / "chat_template.jinja"
    if template.is_file():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    kept = {name: _token_text(settings.get(name)) for name in _MEANING}
    kept |= {name: settings[name] for name in _MEANING_IF_THERE if name in settings}
    text = json.dumps([content, kept], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def base_fingerprint(folder: str | Path) -> str | None:
    """The fingerprint of the tokenizer that the one in `folder` extends; None when it extends none."""
    settings_file = Path(folder) / "tokenizer_config.json"
    found = _json(settings_file).get("extends") if settings_file.is_file() else None
    return None if found is None else str(found)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(
            f"{path.name} is not JSON: {error}", where=str(path), fix="save the tokenizer again, or copy it again"
        ) from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path.name} holds no object", where=str(path), fix="save the tokenizer again")
    return content


def _token_text(value: object) -> object:
    return value.get("content") if isinstance(value, dict) else value


def copy_tokenizer(source: str | Path, destination: str) -> None:
    """Copy the tokenizer's files into `destination` (any fsspec URL)."""
    for name in _FILES:
        path = Path(source) / name
        if path.is_file():
            with open_atomic(join(destination, name)) as handle:
                handle.write(path.read_bytes())


def local_tokenizer(folder: str) -> Path:
    """A local folder with the tokenizer's files: the folder itself, or a copy of a remote one.

    Args:
        folder: path, URL, or, where there is no such folder, the hub id `owner/name`.

    Raises:
        ConfigurationError: the folder holds no fast tokenizer.
    """
    copy = Path(local_folder(folder))
    if not copy.is_dir() and _HUB_ID.fullmatch(folder):
        copy = _fetched(folder)
    if not (copy / "tokenizer.json").is_file():
        raise ConfigurationError(
            f"no tokenizer.json in {folder}",
            where=folder,
            fix="name a local folder or URL with a fast (tokenizers) tokenizer; `polysome tokens build` makes one",
        )
    tokenizer_fingerprint(copy)
    return copy


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerBase":
    """The Hugging Face tokenizer in a local folder, ready to render and encode.

    Raises:
        ConfigurationError: it lacks an end or a padding token.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer_fingerprint(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    if tokenizer.eos_token is None:
        raise ConfigurationError("the tokenizer has no eos token", where=str(folder), fix="declare eos_token in it")
    return tokenizer


def _fetched(hub_id: str) -> Path:
    """The tokenizer files of a repository of the hub, fetched or found in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_FILES)))
    except (OSError, HFValidationError) as error:
        raise ConfigurationError(
            f"neither a local folder nor a model on the hub: {str(error).splitlines()[0]}",
            where=hub_id,
            fix="name a folder with tokenizer.json, or a hub id you can reach",
        ) from error
