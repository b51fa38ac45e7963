"""Backbones: a causal language model from a configuration (seeded, from scratch) or from a Hugging Face folder."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from polysome.config import Config, ConfigurationError, DataError

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
            the tokenizer has more entries than the embedding has rows, or the model's attention is one that packed
            attention does not compute (sliding window, soft-capping).
        DataError: a weight is missing, has another shape, or its file is broken.
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
    _check_attention(config)
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
        model = load_weights(folder, where="model.path", dtype=torch.float32, attn_implementation=ATTENTION)
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


def _check_vocabulary(config: PretrainedConfig, tokens: int, *, where: str) -> None:
    rows = config.get_text_config().vocab_size
    if tokens > rows:
        raise ConfigurationError(
            f"the tokenizer has {tokens} entries and the embedding only {rows} rows",
            where=where,
            fix="use the tokenizer that the model was made with, or a model with a larger vocab_size",
        )


def _check_attention(config: PretrainedConfig) -> None:
    """Refuse what `packed_sdpa` would compute wrongly; a window that no document can exceed changes nothing."""
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["sliding_attention"])
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    context = getattr(text, "max_position_embeddings", float("inf"))
    obstacle = None
    if other := sorted(layers - {"full_attention", "sliding_attention"}):
        obstacle = f"layers of type {other[0]}"
    elif window and "sliding_attention" in layers and window < context:
        obstacle = f"a sliding window of {window} tokens in a context of {context}"
    elif getattr(text, "attn_logit_softcapping", None):
        obstacle = f"soft-capped attention (attn_logit_softcapping {text.attn_logit_softcapping})"
    if obstacle:
        raise ConfigurationError(
            f"the model has {obstacle}, which packed attention does not compute",
            where="model",
            fix="use a model with full attention in every layer; when training from scratch, set the field to null",
        )
