"""What an adapter must be to be published: safetensors and plain text, LoRA within bounds, and on the base it names."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fsspec.core import url_to_fs
from pydantic import Field

from polysome.config import Config, ConfigurationError, DataError, validate
from polysome.data.tokenizer_files import tokenizer_fingerprint
from polysome.models.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE, check_base, require_adapter_files
from polysome.storage import exists, join, read_json
from polysome.storage.local import local_folder

FILE_NAME = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,127}\.(json|jinja|md|txt)|adapter_model\.safetensors)$"
"""Names of the files that an adapter may have: its weights, and text."""

MOST_RANK = 256
MOST_MODULES = 10_000
MOST_WEIGHT_BYTES = 16 * 1024**3
MOST_TEXT_BYTES = 64 * 1024**2

_FILE_NAME = re.compile(FILE_NAME)

_Module = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,256}$")]
_Rank = Annotated[int, Field(ge=1, le=MOST_RANK)]
_Alpha = Annotated[float, Field(allow_inf_nan=False)]


class _Options(Config):
    """What adapter_config.json may say; every option that is not here must be as PEFT leaves it.

    Several others change the base's own weights when the adapter is loaded (`bias`, `init_lora_weights`,
    `layer_replication`), and with them other callers' answers, or name code to import (`auto_mapping`).
    """

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    r: _Rank
    rank_pattern: Annotated[dict[_Module, _Rank], Field(max_length=MOST_MODULES)] | None = None
    """Keys are regular expressions to PEFT, and plain names here."""
    lora_alpha: _Alpha
    alpha_pattern: Annotated[dict[_Module, _Alpha], Field(max_length=MOST_MODULES)] | None = None
    target_modules: Annotated[list[_Module], Field(min_length=1, max_length=MOST_MODULES)]
    """A text instead of a list would be a regular expression."""
    modules_to_save: Annotated[list[_Module], Field(max_length=MOST_MODULES)] | None = None
    use_dora: bool = False
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    ensure_weight_tying: bool = False
    lora_dropout: float = 0.0
    inference_mode: bool = True
    base_model_name_or_path: str | None = None
    revision: str | None = None
    peft_version: str | None = None


class File(Config):
    """What a file must be."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


def describe(folder: str) -> dict[str, File]:
    """Size and hash of every file in a local folder, by name."""
    paths = {name: os.path.join(folder, name) for name in sorted(os.listdir(folder))}
    return {name: File(sha256=_sha256(path), size=os.path.getsize(path)) for name, path in paths.items()}


def differing(folder: str, files: Mapping[str, File]) -> str | None:
    """The first of `files` that is missing in a local folder or is not as described; None: all are there."""
    for name, file in files.items():
        path = os.path.join(folder, name)
        if not os.path.isfile(path) or os.path.getsize(path) != file.size or _sha256(path) != file.sha256:
            return name
    return None


def copy_adapter(source: str, folder: str) -> None:
    """Copy an adapter's files from a path or URL to a local folder, where nobody changes them while they are checked.

    Raises:
        DataError: there is no adapter, or something beside it that an adapter has not: pickle files, links, folders.
    """
    require_adapter_files(source)
    filesystem, path = url_to_fs(source)
    for entry in filesystem.ls(path, detail=True):
        name, size = os.path.basename(entry["name"].rstrip("/")), int(entry["size"] or 0)
        if entry.get("islink") or entry["type"] != "file":
            raise DataError(f"{name} is no plain file", where=source, fix="publish a folder of plain files")
        if not _FILE_NAME.fullmatch(name):
            raise DataError(
                f"{name} is neither {ADAPTER_WEIGHTS} nor text; other files can run code when they are read",
                where=source,
                fix="take it out of the folder; weights must be saved as safetensors",
            )
        if size > (MOST_WEIGHT_BYTES if name == ADAPTER_WEIGHTS else MOST_TEXT_BYTES):
            raise DataError(f"{name} is too large ({size:,} bytes)", where=source, fix="publish the adapter alone")
        with filesystem.open(entry["name"], "rb") as read, open(os.path.join(folder, name), "wb") as write:
            shutil.copyfileobj(read, write, 1 << 22)


def check_adapter(folder: str, model: str, *, where: str) -> int:
    """Hold an adapter in a local folder against its base; returns its largest rank.

    Args:
        folder: what `copy_adapter` made.
        model: folder of the base, which is loaded (in its own precision) and hashed.
        where: told in errors.

    Raises:
        DataError: the weights are no safetensors, or not finite.
        ConfigurationError: the adapter is of a kind that is not served, larger than the bounds, or of another base.
    """
    rank = _check_options(read_json(join(folder, ADAPTER_CONFIG)), where)
    _check_weights(join(folder, ADAPTER_WEIGHTS), where)
    if not exists(join(folder, BASE)):
        raise ConfigurationError(
            f"the adapter has no {BASE}, which says the weights that it was trained on: it cannot be told from one of "
            "another base",
            where=where,
            fix="publish the adapter/ of a training run of Polysome",
        )
    local = local_folder(model)
    if exists(join(folder, "tokenizer.json")) and tokenizer_fingerprint(folder) != tokenizer_fingerprint(local):
        raise ConfigurationError(
            "the adapter was trained with another tokenizer or chat template than the base is served with",
            where=where,
            fix="serve the merged export/ of its run",
        )
    from polysome.models.backbone import load_weights

    check_base(load_weights(local, where=model, dtype="auto"), folder)
    return rank


def _check_options(content: dict[str, Any], where: str) -> int:
    """Of adapter_config.json; returns the largest rank."""
    from peft import LoraConfig

    where = join(where, ADAPTER_CONFIG)
    options = validate(
        _Options, {name: content[name] for name in _Options.model_fields if name in content}, where=where
    )
    usual = LoraConfig().to_dict()
    for name in sorted(set(content) - set(_Options.model_fields)):
        if content[name] not in (usual.get(name), None, False):
            raise ConfigurationError(
                f"adapters with {name}: {json.dumps(content[name])[:100]} are not served",
                where=where,
                fix="serve the merged export/ of its run",
            )
    return max(options.r, *(options.rank_pattern or {}).values(), 0)


def _check_weights(path: str, where: str) -> None:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                    raise DataError(f"{name} holds what is no number", where=where, fix="train the adapter again")
    except SafetensorError as error:
        raise DataError(
            f"{ADAPTER_WEIGHTS} is no safetensors file: {error}", where=where, fix="save or copy the adapter again"
        ) from error


def _sha256(path: str) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
