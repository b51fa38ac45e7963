"""Backbones: a causal language model from a configuration (seeded, from scratch) or from a Hugging Face folder."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from polysome.config import Config, ConfigurationError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


class ModelSource(Config):
    """Where a model comes from: exactly one of `path` and `config`."""

    path: str | None = None
    """A Hugging Face folder (path or URL) or hub id with safetensors weights."""
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
        ConfigurationError: the model type or a field is unknown, the folder is absent or holds no safetensors weights,
            or the tokenizer has more entries than the embedding has rows.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from polysome.models.attention import ATTENTION, register

    register()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    if source.config is not None:
        config = _configuration(source.config, tokenizer)
    else:
        folder = str(source.path)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot read a model configuration from {source.path}: {error}",
                where="model.path",
                fix="name a Hugging Face folder that holds config.json and *.safetensors, or a hub id you can reach",
            ) from error
    _check_vocabulary(config, len(tokenizer), where="model")
    if meta:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, trust_remote_code=False)
    elif source.config is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=ATTENTION, trust_remote_code=False
            )
    else:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation=ATTENTION,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except OSError as error:
            raise ConfigurationError(
                f"cannot load weights from {source.path}: {error}",
                where="model.path",
                fix="name a folder with *.safetensors weights",
            ) from error
    model.config.use_cache = False
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


def _check_vocabulary(config: PretrainedConfig, tokens: int, *, where: str) -> None:
    rows = config.get_text_config().vocab_size
    if tokens > rows:
        raise ConfigurationError(
            f"the tokenizer has {tokens} entries and the embedding only {rows} rows",
            where=where,
            fix="use the tokenizer that the model was made with, or a model with a larger vocab_size",
        )
