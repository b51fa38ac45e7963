"""Model folders: what one must hold, and its fingerprint; nothing here loads a model."""

import hashlib
import json

import fsspec

from polysome.config import DataError
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


def require_model_folder(url: str) -> None:
    """Check that `url` holds a model that can be asked: config, safetensors weights, tokenizer with a chat template.

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
    if "tokenizer.json" not in names:
        raise DataError("the model folder has no tokenizer.json", where=url, fix=_EXPORT_FIX)
    has_template = "chat_template.jinja" in names or (
        "tokenizer_config.json" in names and read_json(join(url, "tokenizer_config.json")).get("chat_template")
    )
    if not has_template:
        raise DataError(
            "the tokenizer has no chat template",
            where=url,
            fix="add chat_template.jinja, or `chat_template` in tokenizer_config.json",
        )


def model_fingerprint(url: str) -> str:
    """A short hash (16 hex digits) of everything that shapes an answer: weights, config, tokenizer, chat template.

    The same folder at another address has the same fingerprint. Weights are read whole: about 1 GB/s from a local disk.

    Raises:
        DataError: the folder is not a model folder.
    """
    require_model_folder(url)
    names = list_folder(url)
    chosen = [name for name in names if name in _READ_BY_ENGINES or name.endswith(".safetensors")]
    return fingerprint({name: _file_hash(join(url, name)) for name in chosen})


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
