"""Model folders: what one must hold, and its fingerprint; nothing here loads a model."""

import hashlib
import json

import fsspec

from polysome.config import DataError
from polysome.models.adapter import ADAPTER_CONFIG, require_adapter_files
from polysome.storage import fingerprint, join, list_folder, read_json

_READ_BY_ENGINES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_EXPORT_FIX = "name the export/ folder of a training run, or a Hugging Face folder saved with safetensors"


def require_model_folder(url: str, *, tokenizer: bool = True) -> None:
    """Check that `url` holds a model that can be asked: config, safetensors weights, tokenizer with a chat template.

    Args:
        tokenizer: False where the tokenizer comes from elsewhere, as with an adapter that brings its own.

    Raises:
        DataError: something is missing, or weights stand there as pickle files only.
    """
    names = list_folder(url)
    if not names:
        raise DataError(f"no model folder at {url}", where=url, fix=_EXPORT_FIX)
    if "config.json" not in names:
        raise DataError("the model folder has no config.json", where=url, fix=_EXPORT_FIX)
    if not any(name.endswith(".safetensors") for name in names):
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        found = f"; {pickled[0]} is a pickle file, which can run code when it is read" if pickled else ""
        raise DataError(f"the model folder has no *.safetensors weights{found}", where=url, fix=_EXPORT_FIX)
    index = "model.safetensors.index.json"
    if index in names:
        absent = sorted(set(read_json(join(url, index))["weight_map"].values()) - set(names))
        if absent:
            raise DataError(f"the weight file {absent[0]} is missing", where=url, fix="copy the model folder again")
    if not tokenizer:
        return
    if "tokenizer.json" not in names:
        raise DataError("the model folder has no tokenizer.json", where=url, fix=_EXPORT_FIX)
    if not _has_template(url, names):
        raise DataError(
            "the tokenizer has no chat template",
            where=url,
            fix="add chat_template.jinja, or `chat_template` in tokenizer_config.json",
        )


def require_adapter_folder(url: str) -> bool:
    """Check that `url` holds a PEFT adapter, and say whether it brings a tokenizer with a chat template.

    Raises:
        DataError: something is missing, or weights stand there as a pickle file only.
    """
    names = require_adapter_files(url)
    return "tokenizer.json" in names and _has_template(url, names)


def model_fingerprint(url: str) -> str:
    """A short hash (16 hex digits) of everything that shapes an answer: weights, config, tokenizer, chat template.

    The same folder at another address has the same fingerprint. Weights are read whole: about 1 GB/s from a local disk.

    Raises:
        DataError: the folder is not a model folder.
    """
    require_model_folder(url, tokenizer=False)
    return _fingerprint(url, _READ_BY_ENGINES)


def adapter_fingerprint(url: str) -> str:
    """The same of a PEFT adapter's folder.

    Raises:
        DataError: the folder is not an adapter's.
    """
    require_adapter_folder(url)
    return _fingerprint(url, (ADAPTER_CONFIG, *_READ_BY_ENGINES))


def context_length(url: str) -> int | None:
    """Tokens that prompt and answer may have together, by the folder's `config.json`; None where it does not tell."""
    config = read_json(join(url, "config.json"))
    found = config.get("text_config", config).get("max_position_embeddings")
    return int(found) if found else None


def _fingerprint(url: str, read: tuple[str, ...]) -> str:
    chosen = [name for name in list_folder(url) if name in read or name.endswith(".safetensors")]
    return fingerprint({name: _file_hash(join(url, name)) for name in chosen})


def _has_template(url: str, names: list[str]) -> bool:
    if "chat_template.jinja" in names:
        return True
    settings = "tokenizer_config.json"
    return settings in names and bool(read_json(join(url, settings)).get("chat_template"))


def weights_fingerprint(url: str) -> str:
    """A short hash (16 hex digits) of the weights and the configuration alone, as a stage that starts from them sees.

    Weights are read whole: about 1 GB/s from a local disk.
    """
    names = [name for name in list_folder(url) if name == "config.json" or name.endswith(".safetensors")]
    return fingerprint({name: _file_hash(join(url, name)) for name in names})


def _file_hash(url: str) -> str:
    digest = hashlib.sha256()
    with fsspec.open(url, "rb") as handle:
        if url.endswith("config.json"):
            # Key order and the version of the library that saved it do not shape an answer.
            content = {key: value for key, value in json.load(handle).items() if key != "transformers_version"}
            return fingerprint(content)
        while piece := handle.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
