"""Adapters: what a stage changed, alone, in PEFT's own format, and bound to the base weights that it rests on.

LoRA's matrices (and DoRA's magnitudes) stand there as PEFT names them, with each module's rank and alpha; modules that
trained in full stand there whole (PEFT's `modules_to_save`), so `peft.PeftModel.from_pretrained(base, folder)` computes
what was trained. All values are fp32. Of PEFT's options three hold for all modules of an adapter, and rules may mix
them:

- alpha/r beside alpha/sqrt(r): written as alpha/r, with the alpha that gives the same factor;
- DoRA beside LoRA: written as DoRA, with the magnitudes at which it computes what LoRA does; training that goes on from
  the adapter would train those magnitudes too;
- differing dropout, which acts in training alone: written as 0.

Where the tokenizer adds tokens to the base's own, `load_adapter` gives the base their rows; PEFT alone does not.

A stage that trains in bf16 sees its base rounded to bf16. On a base kept in fp32 its adapter differs from the merged
export by that rounding.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from polysome.config import ConfigurationError
from polysome.data.tokenizer_files import load_tokenizer
from polysome.models import vocabulary
from polysome.models.adapter import ADAPTER_WEIGHTS, BASE, Base, base_name, check_base, digests, require_adapter_files
from polysome.models.backbone import load_weights
from polysome.models.trainability import ADAPTER
from polysome.storage import exists, fingerprint, join, write_json
from polysome.storage.local import local_folder

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."


def write_adapter(model: PreTrainedModel, folder: str, *, base: str | None) -> bool:
    """Write adapter_config.json, adapter_model.safetensors and base.json below the local `folder`, which is made.

    Args:
        model: the trained model in fp32 on the CPU, LoRA not merged, `requires_grad` as it was in training.
        base: folder or hub id that the model started from; None for weights drawn from a configuration.

    Returns:
        False, and nothing is written, where no module trained through LoRA: such a stage has no adapter.

    Raises:
        ConfigurationError: a module that trained in full holds a LoRA module inside, which PEFT's format cannot say.
    """
    from safetensors.torch import save_file

    layers, saved = _lora_layers(model), _trained_in_full(model)
    if not layers:
        return False
    for name in saved:
        if inside := next((layer for layer in layers if layer.startswith(f"{name}.")), None):
            raise ConfigurationError(
                f"PEFT's format cannot hold {name}, trained in full, with {inside}, trained through LoRA, inside",
                where="trainability",
                fix="use the merged export; an adapter needs one rule for both",
            )
    owned = [id(value) for name in saved for value in model.get_submodule(name).parameters(recurse=False)]
    config = _peft_config(layers, saved, base, tied=len(set(owned)) < len(owned))
    tensors = {
        f"{_PREFIX}{name}.{key}": value
        for name, layer in layers.items()
        for key, value in _lora_tensors(layer, dora=bool(config.use_dora)).items()
    }
    for name in saved:
        for key, value in model.get_submodule(name).state_dict().items():
            # Tied modules are named both, and a file holds no tensor twice under two names.
            tensors[f"{_PREFIX}{name}.{key}"] = value.clone()
    os.makedirs(folder)
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, join(folder, ADAPTER_WEIGHTS))
    weights = digests(
        {
            base_name(name): value
            for name, value in model.named_parameters()
            if f".{ADAPTER}." not in name and not any(name.startswith(f"{module}.") for module in saved)
        }
    )
    record = Base(model=base, fingerprint=fingerprint(weights), weights=weights)
    write_json(join(folder, BASE), record.model_dump())
    config.save_pretrained(folder)
    return True


def load_adapter(base: str | PreTrainedModel, adapter_folder: str, **options: Any) -> PeftModel:
    """The base with the adapter on it, in evaluation mode; `merge_and_unload()` makes it a plain model.

    A base from a folder or hub id first gets the rows for tokens that the adapter's tokenizer adds to its own.

    Args:
        base: model folder (path or URL), hub id, or a loaded model, which is changed in place.
        adapter_folder: local path or URL.
        options: of transformers' `from_pretrained`, for a base that is not loaded yet.

    Raises:
        DataError, ConfigurationError: those of `check_base` and of loading the base.
    """
    from peft import PeftModel

    require_adapter_files(adapter_folder)
    folder = local_folder(adapter_folder)
    model = _load_base(local_folder(base), folder, **options) if isinstance(base, str) else base
    check_base(model, adapter_folder)
    return PeftModel.from_pretrained(model, folder).eval()


def _load_base(base: str, folder: str, **options: Any) -> PreTrainedModel:
    model = load_weights(base, where="base", **options)
    if exists(join(folder, "tokenizer.json")) and (added := vocabulary.new_rows(load_tokenizer(folder), base)):
        vocabulary.grow(model, added)
    return model


def _lora_layers(model: PreTrainedModel) -> dict[str, Any]:
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer")
    }


def _trained_in_full(model: PreTrainedModel) -> list[str]:
    """Names of modules with trainable parameters of their own; of tied ones all names, LoRA's inner layers not."""
    return [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if f".{ADAPTER}" not in name and any(value.requires_grad for value in module.parameters(recurse=False))
    ]


def _peft_config(layers: dict[str, Any], saved: list[str], base: str | None, *, tied: bool) -> LoraConfig:
    """One configuration for all layers: the commonest rank and alpha, and patterns for the others."""
    from peft import LoraConfig, TaskType

    stabilized = all(layer.use_rslora[ADAPTER] for layer in layers.values())
    ranks = {name: int(layer.r[ADAPTER]) for name, layer in layers.items()}
    alphas = {
        name: layer.lora_alpha[ADAPTER]
        if layer.use_rslora[ADAPTER] == stabilized
        else layer.scaling[ADAPTER] * ranks[name]
        for name, layer in layers.items()
    }
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    dropouts = {getattr(layer.lora_dropout[ADAPTER], "p", 0.0) for layer in layers.values()}
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base,
        inference_mode=True,
        r=rank,
        lora_alpha=alpha,
        rank_pattern={name: value for name, value in ranks.items() if value != rank},
        alpha_pattern={name: value for name, value in alphas.items() if value != alpha},
        use_rslora=stabilized,
        use_dora=any(_has_magnitude(layer) for layer in layers.values()),
        lora_dropout=dropouts.pop() if len(dropouts) == 1 else 0.0,
        fan_in_fan_out=any(layer.fan_in_fan_out for layer in layers.values()),
        target_modules=sorted(layers),
        modules_to_save=saved or None,
        ensure_weight_tying=tied,
    )


def _has_magnitude(layer: Any) -> bool:
    return ADAPTER in layer.lora_magnitude_vector


def _lora_tensors(layer: Any, *, dora: bool) -> dict[str, torch.Tensor]:
    lora_a, lora_b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    tensors: dict[str, torch.Tensor] = {"lora_A.weight": lora_a.weight, "lora_B.weight": lora_b.weight}
    if _has_magnitude(layer):
        tensors["lora_magnitude_vector"] = layer.lora_magnitude_vector[ADAPTER].weight
    elif dora:
        from peft.tuners.lora.dora import DoraLinearLayer

        # With the norms of the sum itself as magnitudes, DoRA's factor is exactly 1.
        plain = DoraLinearLayer(fan_in_fan_out=layer.fan_in_fan_out)
        tensors["lora_magnitude_vector"] = plain.get_weight_norm(
            layer.get_base_layer().weight, plain.get_lora_weight(lora_a, lora_b), layer.scaling[ADAPTER]
        )
    return tensors
