"""Backbones: a causal language model from a configuration (seeded, from scratch) or from a Hugging Face folder."""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from polysome.config import Config, ConfigurationError, DataError
from polysome.models import vocabulary
from polysome.models.isolation import check_isolation

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


class ModelSource(Config):
    """Where a model comes from: exactly one of `path` and `config`."""

    path: str | None = None
    """A Hugging Face folder (path or URL) or hub id with safetensors weights and without code of its own."""
    config: dict[str, Any] | None = None
    """Fields of a transformers configuration with the key `model_type`; the model is trained from scratch.
    Vocabulary size and special token ids come from the tokenizer of the prepared data."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelSource:
        if (self.path is None) == (self.config is None):
            raise ValueError("give exactly one of path (a Hugging Face folder) and config (model_type and sizes)")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs the key model_type, for example llama")
        return self


def build_model(source: ModelSource, tokenizer_folder: str, *, seed: int, meta: bool = False) -> PreTrainedModel:
    """A causal language model in fp32 with packed attention and no key-value cache.

    Args:
        source: a configuration (weights drawn from `seed`, the same in every process), or a local folder or hub id.
        tokenizer_folder: the tokenizer that the model will read; local path.
        meta: build the architecture alone, on the meta device, without memory for weights.

    Raises:
        ConfigurationError: the model type or a field is unknown, the folder is absent, holds no safetensors weights or
            asks for code of its own, the tokenizer has more entries than the embedding has rows (tokens added to the
            model's own tokenizer apart, which get rows), or the architecture does not keep packed documents apart.
        DataError: a weight is missing, has another shape, or its file is broken.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from polysome.models.attention import ATTENTION, register

    register()
    tokenizer = vocabulary.read_tokenizer(tokenizer_folder)
    added: dict[int, list[int]] = {}
    if source.config is not None:
        config = _configuration(source.config, tokenizer)
    else:
        folder = str(source.path)
        _refuse_other_folders(folder)
        try:
            _refuse_remote_code(folder)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot read a model configuration from {source.path}: {error}",
                where="model.path",
                fix="name a Hugging Face folder that holds config.json and *.safetensors, or a hub id you can reach",
            ) from error
        added = vocabulary.new_rows(tokenizer, folder)
    _check_vocabulary(config, len(tokenizer) - len(added), where="model")
    check_isolation(config)
    if meta:
        if added:
            text = config.get_text_config()
            text.vocab_size = max(text.vocab_size, max(added) + 1)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, trust_remote_code=False)
    elif source.config is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=ATTENTION, trust_remote_code=False
            )
    else:
        model = load_weights(folder, where="model.path", dtype=torch.float32, attn_implementation=ATTENTION)
        if added:
            vocabulary.grow(model, added)
    model.config.use_cache = False
    return model


def load_weights(folder: str, *, where: str, **options: Any) -> PreTrainedModel:
    """A causal language model with every weight read from `folder`'s safetensors; none is left as it was drawn.

    Args:
        folder: local Hugging Face folder or hub id.
        where: named in errors.
        options: of transformers' `from_pretrained`.

    Raises:
        ConfigurationError: there are no safetensors weights.
        DataError: a weight is missing or has another shape than the configuration says, or a file is broken. An output
            layer that the configuration ties to the embedding need not be there.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            # Told below, together with what is missing.
            ignore_mismatched_sizes=True,
            **options,
        )
    except OSError as error:
        raise ConfigurationError(
            f"cannot load weights from {folder}: {error}", where=where, fix="name a folder with *.safetensors weights"
        ) from error
    except SafetensorError as error:
        raise DataError(
            f"a weight file of {folder} is broken: {error}", where=where, fix="copy or export the model again"
        ) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(key[0]) for key in info["mismatched_keys"])
    if missing or mismatched:
        told = [f"{len(missing)} weights are missing, the first is {missing[0]}"] if missing else []
        told += [f"{len(mismatched)} weights have another shape, the first is {mismatched[0]}"] if mismatched else []
        raise DataError(
            f"the weights of {folder} are not those of its config.json: {'; '.join(told)}",
            where=where,
            fix="copy or export the model again, weights and config.json together",
        )
    return model


def parameter_count(model: torch.nn.Module) -> int:
    """Parameters of a model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _configuration(fields: dict[str, Any], tokenizer: Any) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig

    content = dict(fields)
    model_type = str(content.pop("model_type"))
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, list(CONFIG_MAPPING), n=1)
        raise ConfigurationError(
            f"model_type {model_type!r} is unknown",
            where="model.config.model_type",
            fix=f"did you mean {near[0]!r}?" if near else "name a model type of transformers, for example llama",
        )
    known = {name for name in CONFIG_MAPPING[model_type].__dataclass_fields__ if not name.startswith("_")}
    unknown = sorted(set(content) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], sorted(known), n=1)
        raise ConfigurationError(
            f"{unknown[0]!r} is no field of a {model_type} configuration",
            where=f"model.config.{unknown[0]}",
            fix=f"did you mean {near[0]!r}?" if near else "remove it",
        )
    content.setdefault("vocab_size", len(tokenizer))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        content.setdefault(name, getattr(tokenizer, name))
    try:
        return AutoConfig.for_model(model_type, **content)
    except Exception as error:  # transformers validates with several exception types, none of which is its own base
        raise ConfigurationError(
            f"not a valid {model_type} configuration: {error}", where="model.config", fix="mend the named field"
        ) from error


def _refuse_other_folders(folder: str) -> None:
    if not os.path.isdir(folder):
        if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", folder):
            return  # a hub id
        raise ConfigurationError(
            f"there is no folder {folder}", where="model.path", fix="name a Hugging Face folder or a hub id"
        )
    if not os.path.isfile(os.path.join(folder, "config.json")) and os.path.isdir(os.path.join(folder, "export")):
        raise ConfigurationError(
            f"{folder} is a training run, not a model", where="model.path", fix="name the folder export/ in it"
        )
    if os.path.isfile(os.path.join(folder, "adapter_config.json")):
        raise ConfigurationError(
            f"{folder} holds an adapter, not a model",
            where="model.path",
            fix="name the merged export/ of the adapter's run; or merge the adapter into its base "
            "(polysome.training.adapter.load_adapter, merge_and_unload, save_pretrained)",
        )


def _refuse_remote_code(folder: str) -> None:
    from transformers import PretrainedConfig

    content, _ = PretrainedConfig.get_config_dict(folder)
    if "auto_map" in content:
        raise ConfigurationError(
            f"config.json of {folder} asks for code of its own (auto_map: {', '.join(sorted(content['auto_map']))}), "
            "which is never run",
            where="model.path",
            fix="use the model's version for transformers' own classes (often named -hf); where they are what the "
            "weights were made with, remove auto_map from config.json",
        )


def _check_vocabulary(config: PretrainedConfig, tokens: int, *, where: str) -> None:
    rows = config.get_text_config().vocab_size
    if tokens > rows:
        raise ConfigurationError(
            f"the tokenizer has {tokens} entries and the embedding only {rows} rows",
            where=where,
            fix="use the tokenizer that the model was made with, or a model with a larger vocab_size",
        )
